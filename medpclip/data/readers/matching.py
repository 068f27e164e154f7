"""Which image does a row mean? Names in tables, brought together with the files that are there.

Conventions. `match` says what a table holds of an image: "path" its path below the folder of images or below the
source, "name" its file's name, "stem" that without extension; folders before a name or stem are passed over, as
somebody's "C:\\scans\\1.png". "auto" tries path, path without extension, the ends of paths that both have (the longest
first, with the folder at least), name, stem, in this order, and a later one only for images that no earlier one has
found. So "CheXpert/train/p1/view1.jpg" finds "train/p1/view1.jpg". A name is taken only where it is one image's and one
stated name's: with "train/1.png" and "test/1.png" in the table and only one of them there, nobody gets the other's row.

Where a table names images in another way, `image_key` says how, in place of `match`: a regular expression over the
image's path below the source, whose groups, with "_" between them, are what the column holds. "([^/]+)/([^/]+)$" finds
"Images/000001_01_01/109.png" for "000001_01_01_109.png".
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from medpclip.data.readers.base import Fault
from medpclip.data.readers.files import IMAGE_SUFFIXES, is_pattern, list_images
from medpclip.data.readers.tables import Row, TableOptions, text_of, value_at

MISSING, AMBIGUOUS = "image file is missing", "several files share one name"
# What may stand behind a stem in a table; anything else after a dot belongs to the name, as in "1.2.840.10008".
_SUFFIXES = (*IMAGE_SUFFIXES, ".nii", ".svs")


@dataclass
class Unmatched:
    """Rows that name no one image: each stated name once."""

    stated: str
    reason: str
    rows: list[Row]

    def fault(self, regions: int) -> Fault:
        """The fault of all its rows together. A missing image is lost here; ambiguous ones have faults of their own."""
        first = self.rows[0]
        detail = f"{self.stated!r} in {len(self.rows)} rows"
        return Fault(first.file, first.key, self.reason, detail, int(self.reason == MISSING), regions)


@dataclass
class Matched:
    """What the rows of the tables say of the images.

    Attributes:
        rows: every image -> its rows, in their order; none for an image that isn't listed.
        faults: files that are no images, and images whose rows might be another's.
        unmatched: rows that name an image that isn't there, or several.
        loose: rows that name no image at all, or are broken and can't be brought together with one.
    """

    rows: dict[Path, list[Row]]
    faults: list[Fault]
    unmatched: list[Unmatched] = field(default_factory=list)
    loose: list[Fault] = field(default_factory=list)


def match_rows(source: Path, options: TableOptions, rows: Iterable[Row], regions: int) -> Matched:
    """Bring the rows of tables and the images of a source together.

    Args:
        source: the source's folder.
        options: say where the images are and which column names them.
        rows: of all tables.
        regions: how many regions a row is lost with that can't be brought together with any image.

    Raises:
        MedpclipError: there is no folder of images.
    """
    images, faults = list_images(source, options.images, "options.images")
    out = Matched({image: [] for image in images}, faults)
    stated: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        name = text_of(value_at(row.cells, options.image_column))
        if name:
            stated[name].append(row)
        else:
            reason = row.problem or "row names no image"
            out.loose.append(Fault(row.file, row.key, reason, row.detail, regions=regions))
    found, doubtful = match_names(source, options.images, images, stated, options.match, options.image_key)
    for image in sorted(doubtful):
        out.faults.append(Fault(image.relative_to(source).as_posix(), "", AMBIGUOUS, images=1))
        del out.rows[image]
    for name, group in stated.items():
        meant = found[name]
        if isinstance(meant, Path):
            out.rows[meant] += group
            continue
        whole = [row for row in group if not row.problem]
        broken = [row for row in group if row.problem]
        out.loose += [Fault(row.file, row.key, row.problem, row.detail, regions=regions) for row in broken]
        if whole:
            out.unmatched.append(Unmatched(name, meant, whole))
    return out


def match_names(
    source: Path,
    where: str,
    images: Iterable[Path],
    stated: Iterable[str],
    how: str = "auto",
    image_key: str | None = None,
) -> tuple[dict[str, Path | str], set[Path]]:
    """The image that each stated name means, or why there is none: `MISSING` or `AMBIGUOUS`; and the ambiguous images.

    Args:
        source: the source's folder.
        where: the option that found the images, a folder or a pattern.
        images: the files that are there.
        stated: different names, as a table has them.
        how: "auto", "path", "name" or "stem", see the module.
        image_key: a regular expression in place of it, see the module.
    """
    images = list(images)
    folders = [source] if is_pattern(source, where) else [source / where, source]
    out: dict[str, Path | str] = {name: MISSING for name in stated}
    taken: set[Path] = set()
    doubtful: set[Path] = set()
    steps = _steps(source, folders, images, how) if image_key is None else [_joined(source, image_key)]
    for keys_of, key_of in steps:
        wanted: dict[str, list[str]] = defaultdict(list)
        for name, result in out.items():
            if result == MISSING:
                wanted[key_of(_normal(name))].append(name)
        if not wanted:
            break
        there: dict[str, set[Path]] = defaultdict(set)
        for image in images:
            for key in keys_of(image):
                there[key].add(image)
        for key, names in wanted.items():
            found = there.get(key, set()) - taken
            if len(found) == 1 and len({_normal(name) for name in names}) == 1:
                taken |= found
                out.update(dict.fromkeys(names, next(iter(found))))
            elif found:
                doubtful |= found
                out.update(dict.fromkeys(names, AMBIGUOUS))
    return out, doubtful - taken


_Step = tuple[Callable[[Path], Iterable[str]], Callable[[PurePosixPath], str]]


def _steps(source: Path, folders: list[Path], images: list[Path], how: str) -> list[_Step]:
    def paths(image: Path) -> list[str]:
        return [image.relative_to(folder).as_posix() for folder in folders if image.is_relative_to(folder)]

    def path_stems(image: Path) -> list[str]:
        return [str(PurePosixPath(path).with_suffix("")) for path in paths(image)]

    steps: dict[str, _Step] = {
        "path": (paths, str),
        "path stem": (path_stems, _path_stem),
        "name": (lambda image: [image.name], lambda stated: stated.name),
        "stem": (lambda image: [image.stem], _stem),
    }
    if how != "auto":
        return [steps[how]]
    deepest = max((len(image.relative_to(source).parts) for image in images), default=0)
    ends = [step for parts in range(deepest, 1, -1) for step in _ends(source, parts)]
    return [steps["path"], steps["path stem"], *ends, steps["name"], steps["stem"]]


def _ends(source: Path, parts: int) -> list[_Step]:
    """Paths that are alike in their last `parts` parts, with extension and without."""

    def end(path: PurePosixPath) -> str:
        return "/".join(path.parts[-parts:]) if len(path.parts) >= parts else ""

    def keys(image: Path, strip: bool) -> list[str]:
        below = PurePosixPath(image.relative_to(source).as_posix())
        found = end(below.with_suffix("") if strip else below)
        return [found] if found else []

    return [
        (lambda image: keys(image, strip=False), end),
        (lambda image: keys(image, strip=True), lambda stated: end(PurePosixPath(_path_stem(stated)))),
    ]


def _joined(source: Path, image_key: str) -> _Step:
    """What the groups of a regular expression find in the image's path, with "_" between."""
    regex = re.compile(image_key)

    def keys(image: Path) -> list[str]:
        found = regex.search(image.relative_to(source).as_posix())
        return ["_".join(group or "" for group in found.groups())] if found else []

    return keys, str


def _path_stem(stated: PurePosixPath) -> str:
    return str(stated.parent / _stem(stated))


def _normal(stated: str) -> PurePosixPath:
    """A stated name as a path with forward slashes, without "./" at its start."""
    return PurePosixPath(stated.replace("\\", "/"))


def _stem(stated: PurePosixPath) -> str:
    return stated.stem if stated.suffix.lower() in _SUFFIXES else stated.name
