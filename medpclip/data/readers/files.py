"""Finding images and the annotations that belong to them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from medpclip.data.pictures.dicom_headers import DICOM_SUFFIXES
from medpclip.data.readers.base import Entry, Fault
from medpclip.errors import MedpclipError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm", *DICOM_SUFFIXES)
# Files that accompany a data set without being an image or an annotation of one.
_DOCUMENTS = ("", ".md", ".txt", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".html", ".pdf", ".ini", ".db")


def list_files(source: Path, where: str, option: str, suffixes: tuple[str, ...] = ()) -> list[Path]:
    """The files of a folder and its sub-folders, or those that a pattern names, sorted; hidden ones are left out.

    Args:
        source: the source's folder.
        where: a folder, "." for all, or a pattern as "*/images/*.png", relative to `source`.
        option: the recipe's key, for messages.
        suffixes: only files that end so, in any case; all by default.

    Raises:
        MedpclipError: no such folder, or nothing fits the pattern.
    """
    require_inside(where, option)
    if is_pattern(source, where):
        found: Iterable[Path] = list(source.glob(where))
        if not found:
            raise MedpclipError(f"{source}: nothing fits '{where}'; check --source, or the recipe's key '{option}'")
        if all(path.is_dir() for path in found):
            raise MedpclipError(
                f"{source}: only folders fit '{where}'; write '{where}/*' in the recipe's key '{option}'"
            )
    else:
        folder = source / where
        if not folder.is_dir():
            raise MedpclipError(f"{folder}: no such folder; check --source, or the recipe's key '{option}'")
        found = folder.rglob("*")
    files = [path for path in found if path.is_file() and not _hidden(path.relative_to(source))]
    return sorted(path for path in files if not suffixes or path.suffix.lower() in suffixes)


def require_inside(where: str, option: str) -> None:
    """Raise `MedpclipError` if the path of an option leads out of the source's folder."""
    if Path(where).is_absolute() or ".." in Path(where).parts:
        raise MedpclipError(f"key '{option}' is '{where}', which leads out of the source; give a path inside it")


def is_pattern(source: Path, where: str) -> bool:
    """Whether an option names files by a pattern, and isn't just a folder with such characters in its name."""
    return any(character in where for character in "*?[") and not (source / where).is_dir()


def list_images(source: Path, where: str, option: str) -> tuple[list[Path], list[Fault]]:
    """The images there, and a fault for each file that is neither an image we read nor a document."""
    return sort_out(source, list_files(source, where, option))


def sort_out(source: Path, files: Iterable[Path]) -> tuple[list[Path], list[Fault]]:
    """The images among some files, and a fault for each that is neither an image we read nor a document."""
    images, faults = [], []
    for path in files:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            images.append(path)
        elif not is_document(path) or _is_nameless_dicom(path):
            name = path.relative_to(source).as_posix()
            faults.append(Fault(name, "", "file is of a kind that no image reader reads", path.suffix))
    return images, faults


def _is_nameless_dicom(path: Path) -> bool:
    """Whether a file without extension is DICOM: it would else pass for a licence or a readme."""
    if path.suffix:
        return False
    try:
        with open(path, "rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def is_document(path: Path) -> bool:
    """Whether a file is of a kind that accompanies a data set without being an image or an annotation of one."""
    return path.suffix.lower() in _DOCUMENTS


def pair(
    source: Path,
    images: Iterable[Path],
    annotations: Iterable[Path],
    image_key: Callable[[Path], str],
    annotation_key: Callable[[Path], str],
    count: Callable[[Path], int],
) -> list[Entry | Fault]:
    """Images and annotation files that have the same key; a fault for each that stays alone or is ambiguous.

    The entry's annotation is the annotation file's path; `count` says how many regions such a file holds.
    """

    def name(path: Path) -> str:
        return path.relative_to(source).as_posix()

    left = _by_key(images, image_key)
    right = _by_key(annotations, annotation_key)
    out: list[Entry | Fault] = []
    for key in sorted(left.keys() | right.keys()):
        mine, theirs = left.get(key, []), right.get(key, [])
        if len(mine) == 1 and len(theirs) == 1:
            out.append(Entry(name(mine[0]), theirs[0]))
        elif not mine:
            out += [Fault(name(path), "", "annotation without an image", regions=count(path)) for path in theirs]
        elif not theirs:
            out += [Fault(name(path), "", "image without an annotation", images=1) for path in mine]
        else:
            detail = ", ".join(name(path) for path in [*mine, *theirs])
            out += [Fault(name(path), "", "several files share one name", detail, images=1) for path in mine]
            reason = "several files share one name"
            out += [Fault(name(path), "", reason, detail, regions=count(path)) for path in theirs]
    return out


def stem_below(source: Path, where: str, suffix: str | Sequence[str] = "") -> Callable[[Path], str]:
    """A key for `pair`: the path below a folder, without extension and without `suffix` at the end of the name.

    Of several suffixes the longest that fits is taken off.

    Below a pattern there is no one folder, so the key is the file's stem alone.
    """
    patterned = is_pattern(source, where)

    def key(path: Path) -> str:
        below = Path(path.name) if patterned else path.relative_to(source / where)
        return without_suffix(below.with_suffix("").as_posix(), suffix)

    return key


def without_suffix(name: str, suffix: str | Sequence[str]) -> str:
    """A name without a suffix; of several the longest that fits is taken off."""
    suffixes = [suffix] if isinstance(suffix, str) else sorted(suffix, key=len, reverse=True)
    return next((name.removesuffix(one) for one in suffixes if name.endswith(one)), name)


def _by_key(paths: Iterable[Path], key: Callable[[Path], str]) -> dict[str, list[Path]]:
    out: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        out[key(path)].append(path)
    return out


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
