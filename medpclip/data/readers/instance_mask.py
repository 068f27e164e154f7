"""Instance masks: one mask file for each object, or for each class, of an image.

Conventions. `masks` is the folder of an image's masks relative to the image's own folder, as "../masks". In it {stem}
stands for the image's name without extension, {folder} for the name of the image's folder: "../masks/{stem}",
"../{folder}_mask". `belongs` says which files of that folder are an image's:

- "folder": all of them; each image has a folder of its own.
- "stem": those whose name is the image's stem, or begins with it and goes on with a character that is neither letter
  nor digit; in sub-folders too. Where the stems of several images fit, as "12" and "12_3" fit "12_3_liver", the longest
  wins. Images and masks may lie in one folder: those files are masks in whose name `label_pattern` finds a label.

The label of an object is `label`, or what the regular expression `label_pattern` finds in the mask's path below the
folder: its group named "label", or else its only group. The extension is left off where `belongs` is "stem". Other
named groups become metadata of the region. `blank` stands for a blank in labels, as "+" in "left+kidney". `label_names`
is a JSON file of the source for labels that are numbers, see `LabelNames`.

In a mask the pixels of brightness >= `threshold` are the object; objects may overlap and may have several parts, which
are regions of their own with `components`.

Layouts that this reads: "<id>/images/<id>.png" with "<id>/masks/*.png" (2018 Data Science Bowl); "images/X.png" with
"masks/X--0001_000.png" (SA-Med2D-20M); "train/X.png" with "train_mask/X_left+kidney.png" (BiomedParseData);
"images/X.jpg" with "masks/X_segmentation.png" or "masks/X_attribute_globules.png" (ISIC 2018); a folder for each kind of
lesion with "MA/X.tif" or "X_MA.tif" (DDR, IDRiD).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medpclip.data.readers.base import Entry, Fault, ImageReader, RawSample, UnusableError
from medpclip.data.readers.files import list_images, sort_out
from medpclip.data.readers.masks import ComponentOptions, add_mask, read_grey
from medpclip.errors import MedpclipError

AMBIGUOUS = "several files share one name"


@dataclass(frozen=True, kw_only=True)
class InstanceMaskOptions(ComponentOptions):
    """Options of the reader "instance_mask".

    Attributes:
        images: folder or pattern of the images, as "train/*/images/*".
        masks: folder of an image's masks, see the module.
        belongs: "folder" or "stem", see the module.
        image_suffix: what an image's name has at its end (before the extension) and its masks' haven't, for "stem".
        label: the source's label of all objects; or
        label_pattern: a regular expression that finds the label in a mask's name, see the module.
        label_names: JSON file with the names of labels that are numbers.
        blank: characters that stand for a blank in labels.
        threshold: brightness from which a pixel belongs to the object.
        empty: what a mask without a pixel is: "fault", or "absent", where each class has a file whether it is there or
            not.
        without_masks: what an image without mask files is, for "stem": "fault", or "empty", an image without regions.
    """

    images: str
    masks: str = "../masks"
    belongs: Literal["folder", "stem"] = "folder"
    image_suffix: str = ""
    label: str | None = None
    label_pattern: str | None = None
    label_names: str | None = None
    blank: str = ""
    threshold: int = 1
    empty: Literal["fault", "absent"] = "fault"
    without_masks: Literal["fault", "empty"] = "fault"

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.label is None) == (self.label_pattern is None):
            raise ValueError("give one of 'label' and 'label_pattern'")
        if self.label_names is not None and self.label_pattern is None:
            raise ValueError("'label_names' needs 'label_pattern'")
        if self.label_pattern is not None:
            try:
                pattern = re.compile(self.label_pattern)
            except re.error as error:
                raise ValueError(f"'label_pattern' is no regular expression ({error})") from None
            if pattern.groups != 1 and "label" not in pattern.groupindex:
                raise ValueError(
                    f"'label_pattern' has {pattern.groups} groups; expected one around the label, or (?P<label>...)"
                )


class InstanceMaskReader(ImageReader[InstanceMaskOptions]):
    """Regions from one mask file each; the conventions are in the module's description."""

    name = "instance_mask"

    def __init__(self, source: Path, options: InstanceMaskOptions) -> None:
        super().__init__(source, options)
        self._pattern = re.compile(options.label_pattern) if options.label_pattern is not None else None
        self._names = LabelNames(source, options.label_names) if options.label_names is not None else None

    def scan(self) -> list[Entry | Fault]:
        images, faults = list_images(self.source, self.options.images, "options.images")
        folders: dict[Path, list[Path]] = {}
        for image in images:
            folders.setdefault(self._folder(image), []).append(image)
        out: list[Entry | Fault] = [*faults]
        for folder, mine in folders.items():
            out += self._by_folder(folder, mine) if self.options.belongs == "folder" else self._by_stem(folder, mine)
        return [*out, *self._orphans(set(folders))]

    def read(self, entry: Entry) -> RawSample:
        folder, paths = entry.annotation
        sample = RawSample()
        masks, sample.faults = sort_out(self.source, paths)
        for path in masks:
            file = self.relative(path)
            label, metadata = self._label(path, folder)
            if label is None:
                sample.faults.append(Fault(file, "", "region without a label", regions=1))
                continue
            try:
                mask = read_grey(path, file) >= self.options.threshold
            except UnusableError as unusable:  # one object of many: the image is still good
                fault = unusable.fault
                sample.faults.append(Fault(file, "", fault.reason, fault.detail, regions=1))
                continue
            if self.options.empty == "absent" and not mask.any():
                continue
            before = len(sample.regions)
            add_mask(sample, mask, (0, 0), mask.shape, label, file, "", self.options)
            for region in sample.regions[before:]:
                region.metadata = metadata
        return sample

    def _by_folder(self, folder: Path, images: list[Path]) -> list[Entry | Fault]:
        """Images whose masks are all files of a folder: there should be one such image."""
        annotation = (folder, _files(folder))
        if len(images) > 1:
            detail = f"{len(images)} images would share one folder of masks"
            out: list[Entry | Fault] = [
                Fault(self.relative(image), "", AMBIGUOUS, detail, images=1) for image in images
            ]
            if folder.is_dir():
                out.append(Fault(self.relative(folder), "", AMBIGUOUS, detail, regions=self.count(annotation)))
            return out
        if not folder.is_dir():
            return [Fault(self.relative(images[0]), "", "image without an annotation", images=1)]
        return [Entry(self.relative(images[0]), annotation)]

    def _by_stem(self, folder: Path, images: list[Path]) -> list[Entry | Fault]:
        """Images whose masks are those files of a folder, and of its sub-folders, that begin with their stem."""
        paths = _files(folder, below=True)
        listed = set(images)
        masks, strange = sort_out(self.source, (path for path in paths if path not in listed))
        masks += [path for path in paths if path in listed and self._pattern and self._label(path, folder)[0]]
        images = sorted(listed - set(masks))
        owners: dict[str, list[Path]] = {}
        for image in images:
            owners.setdefault(image.stem.removesuffix(self.options.image_suffix), []).append(image)
        mine: dict[str, list[Path]] = {stem: [] for stem in owners}
        out: list[Entry | Fault] = [*strange]
        for path in sorted(masks):
            owner = next((stem for stem in _beginnings(path.stem) if stem in owners), None)
            if owner is not None:
                mine[owner].append(path)
            else:
                lost = self.count((folder, [path]))
                out.append(Fault(self.relative(path), "", "annotation without an image", regions=lost))
        for stem, same in owners.items():
            if len(same) > 1:
                out += [Fault(self.relative(image), "", AMBIGUOUS, images=1) for image in same]
                for path in mine[stem]:
                    out.append(Fault(self.relative(path), "", AMBIGUOUS, regions=self.count((folder, [path]))))
            elif mine[stem] or self.options.without_masks == "empty":
                out.append(Entry(self.relative(same[0]), (folder, mine[stem])))
            else:
                out.append(Fault(self.relative(same[0]), "", "image without an annotation", images=1))
        return out

    def _folder(self, image: Path) -> Path:
        where = self.options.masks.replace("{stem}", image.stem).replace("{folder}", image.parent.name)
        folder = Path(os.path.normpath(image.parent / where))
        if not folder.is_relative_to(self.source):
            raise MedpclipError(
                f"key 'options.masks' is '{self.options.masks}', which leads out of the source; give a folder inside"
            )
        return folder

    def _orphans(self, owned: set[Path]) -> list[Fault]:
        """Folders of masks beside those that have an image, as "x/masks" where "x/images" is empty."""
        if self.options.belongs == "stem" or not owned:
            return []
        shape = {(folder.parent.parent, folder.name) for folder in owned}
        beside = {path for top, name in shape for path in top.glob(f"*/{name}") if path.is_dir()}
        if "{stem}" in self.options.masks:
            beside = {path for folder in owned if folder.parent.is_dir() for path in folder.parent.iterdir()}
            beside = {path for path in beside if path.is_dir()}
        out = []
        for folder in sorted(beside - owned):
            lost = self.count((folder, _files(folder)))
            out.append(Fault(self.relative(folder), "", "annotation without an image", regions=lost))
        return out

    def _label(self, path: Path, folder: Path) -> tuple[str | None, dict[str, Any]]:
        """The label of a mask, None where its name holds none, and what else its name says."""
        if self._pattern is None:
            return self.options.label, {}
        below = path.relative_to(folder)
        found = self._pattern.search((below.with_suffix("") if self.options.belongs == "stem" else below).as_posix())
        if found is None:
            return None, {}
        groups = {name: text for name, text in found.groupdict().items() if text is not None}
        label = groups.pop("label", None) if "label" in self._pattern.groupindex else found.group(1)
        if label and self._names is not None:
            label = self._names.find(label, groups)
        if label and self.options.blank:
            label = label.replace(self.options.blank, " ")
        return label or None, groups


class LabelNames:
    """The names of labels that are numbers, from a JSON file of the source.

    The file is {"name": number, ...} or {"number": name, ...}; or, where datasets count for themselves, an object of
    such objects {"dataset": {...}, ...}: then the label pattern's group "dataset" says which.

    Raises:
        MedpclipError: the file is missing or broken.
    """

    def __init__(self, source: Path, name: str) -> None:
        path = source / name
        remedy = "check the recipe's key 'options.label_names'"
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise MedpclipError(f"key 'options.label_names' is '{name}', which leads out of the source")
        try:
            data = json.loads(path.read_bytes())
        except OSError as error:
            raise MedpclipError(f"{path}: {error.strerror}; {remedy}") from None
        except (ValueError, RecursionError) as error:
            raise MedpclipError(f"{path}: broken JSON ({error}); restore the file") from None
        if not isinstance(data, dict) or not data:
            raise MedpclipError(f"{path}: expected an object with names and numbers; {remedy}")
        nested = {dataset: inner for dataset, inner in data.items() if isinstance(inner, dict)}
        self._names = {dataset: _numbered(inner) for dataset, inner in nested.items()}
        self._common = _numbered({key: value for key, value in data.items() if key not in nested})

    def find(self, number: str, groups: Mapping[str, str]) -> str | None:
        """The name of a number as a mask's file name has it, leading zeros or not; None where there is none."""
        return self._names.get(groups.get("dataset", ""), self._common).get(_plain(number))


def _numbered(names: Mapping[str, Any]) -> dict[str, str]:
    """Number -> name, of an object that has one as keys and the other as values."""
    if all(_plain(key).isdecimal() for key in names):
        return {_plain(key): str(value) for key, value in names.items()}
    return {_plain(value): key for key, value in names.items()}


def _plain(number: Any) -> str:
    """A number without leading zeros."""
    return str(number).strip().lstrip("0") or "0"


def _files(folder: Path, below: bool = False) -> list[Path]:
    """The files of a folder, and with `below` of its sub-folders, sorted; hidden ones are left out."""
    if not folder.is_dir():
        return []
    found = folder.rglob("*") if below else folder.iterdir()
    shown = (path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    return sorted(path for path in shown if path.is_file())


def _beginnings(stem: str) -> list[str]:
    """A mask's stem, and its beginnings up to each character that is neither letter nor digit; the longest first."""
    ends = [i for i in range(len(stem) - 1, 0, -1) if not stem[i].isalnum()]
    return [stem, *(stem[:i] for i in ends)]
