"""Whether text is to be suspected in the pixels, where no header is to be cleaned and no rule for texts sees it.

Nothing here reads pixels. Text that is found by a detector is text that is missed by a detector, and an image that was
"checked" is looked at by nobody; so suspicion follows from what is known of how such images are made.
"""

from __future__ import annotations

from typing import Literal

from medpclip.data.lexicon import Lexicon

# Machines of these write patient, date or clock onto the picture as it is shown or saved. In DICOM's attribute
# Burned In Annotation (0028,0301) the standard leaves it to them to say so (PS3.3, C.7.6.1). Radiographs are left out:
# what stands on them as a rule is the side and the position, and a warning at every one of them would be read by nobody.
_MODALITIES = frozenset({"ultrasound", "endoscopy", "fluoroscopy"})


def suspect_burned_in(modality: str, declared: bool, lexicon: Lexicon) -> Literal["declared", "modality"] | None:
    """Why text is to be suspected in an image's pixels.

    Args:
        modality: how the image was made; a lexicon term, or a word that the lexicon doesn't know.
        declared: whether the image's own header says so, or leaves it open where it should say.
        lexicon: knows that echocardiography is ultrasound.

    Returns:
        "declared", or else "modality" where machines of its kind write on their images, or None.
    """
    if declared:
        return "declared"
    kinds = {modality} | lexicon.ancestors(modality)
    return "modality" if kinds & _MODALITIES else None
