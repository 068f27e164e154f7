"""Instance masks: for each image a folder with one mask file per object.

Conventions. `masks` is the folder relative to the image's own, as "../masks" or "../masks/{stem}", where {stem} stands
for the image's name without extension. In a mask the pixels of brightness >= `threshold` are the object; objects may
overlap and may have several parts. Each object's label is `label`, or what the one group of the regular expression
`label_pattern` finds in the mask's name.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from medpclip.data.readers.base import Entry, Fault, RawRegion, RawSample, Reader, UnusableError
from medpclip.data.readers.files import list_images, sort_out
from medpclip.data.readers.masks import read_grey
from medpclip.data.schema import encode_mask
from medpclip.errors import MedpclipError


@dataclass(frozen=True)
class InstanceMaskOptions:
    """Options of the reader "instance_mask".

    Attributes:
        images: folder or pattern of the images, as "train/*/images/*".
        masks: folder of an image's masks, see the module.
        label: the source's label of all objects; or
        label_pattern: a regular expression with one group that finds the label in a mask's file name.
        threshold: brightness from which a pixel belongs to the object.
    """

    images: str
    masks: str = "../masks"
    label: str | None = None
    label_pattern: str | None = None
    threshold: int = 1

    def __post_init__(self) -> None:
        if (self.label is None) == (self.label_pattern is None):
            raise ValueError("give one of 'label' and 'label_pattern'")
        if self.label_pattern is not None:
            try:
                groups = re.compile(self.label_pattern).groups
            except re.error as error:
                raise ValueError(f"'label_pattern' is no regular expression ({error})") from None
            if groups != 1:
                raise ValueError(f"'label_pattern' has {groups} groups; expected one, around the label")


class InstanceMaskReader(Reader[InstanceMaskOptions]):
    """Regions from one mask file each; the conventions are in the module's description."""

    name = "instance_mask"

    def scan(self) -> list[Entry | Fault]:
        images, faults = list_images(self.source, self.options.images, "options.images")
        out: list[Entry | Fault] = [*faults]
        owners: dict[Path, list[Path]] = {}
        for image in images:
            owners.setdefault(self._folder(image), []).append(image)
        for folder, mine in owners.items():
            if len(mine) > 1:
                detail = f"{len(mine)} images would share one folder of masks"
                reason = "several files share one name"
                out += [Fault(self.relative(image), "", reason, detail, images=1) for image in mine]
                if folder.is_dir():
                    out.append(Fault(self.relative(folder), "", reason, detail, regions=self.count(folder)))
            elif not folder.is_dir():
                out.append(Fault(self.relative(mine[0]), "", "image without an annotation", images=1))
            else:
                out.append(Entry(self.relative(mine[0]), folder))
        return [*out, *self._orphans(set(owners))]

    def read(self, entry: Entry) -> RawSample:
        sample = RawSample()
        files = sorted(path for path in entry.annotation.iterdir() if path.is_file() and path.name[0] != ".")
        masks, sample.faults = sort_out(self.source, files)
        for path in masks:
            file = self.relative(path)
            label = self._label(path)
            if label is None:
                sample.faults.append(Fault(file, "", "region without a label", regions=1))
                continue
            try:
                mask = read_grey(path, file) >= self.options.threshold
            except UnusableError as unusable:  # one object of many: the image is still good
                fault = unusable.fault
                sample.faults.append(Fault(file, "", fault.reason, fault.detail, regions=1))
                continue
            sample.regions.append(RawRegion(label, file, "", rle=encode_mask(mask)))
        return sample

    def _folder(self, image: Path) -> Path:
        folder = Path(os.path.normpath(image.parent / self.options.masks.replace("{stem}", image.stem)))
        if not folder.is_relative_to(self.source):
            raise MedpclipError(
                f"key 'options.masks' is '{self.options.masks}', which leads out of the source; give a folder inside"
            )
        return folder

    def _orphans(self, owned: set[Path]) -> list[Fault]:
        """Folders of masks beside those that have an image, as "x/masks" where "x/images" is empty."""
        shape = {(folder.parent.parent, folder.name) for folder in owned}
        beside = {path for top, name in shape for path in top.glob(f"*/{name}") if path.is_dir()}
        if "{stem}" in self.options.masks:
            beside = {path for folder in owned for path in folder.parent.iterdir() if path.is_dir()}
        out = []
        for folder in sorted(beside - owned):
            out.append(Fault(self.relative(folder), "", "annotation without an image", regions=self.count(folder)))
        return out

    def _label(self, path: Path) -> str | None:
        if self.options.label_pattern is None:
            return self.options.label
        found = re.search(self.options.label_pattern, path.name)
        return found.group(1) if found else None
