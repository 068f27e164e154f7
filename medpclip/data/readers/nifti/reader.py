"""NIfTI: image volumes with label volumes or point labels, slice by slice.

Conventions. An image and its label volumes each have an affine of their own; all are brought to one orientation and
shown the way radiologists look at slices (see `volumes`). A label volume must lie on the image's grid; `label_grid` says
what to do where it doesn't. A pixel (0, 0) covers [0, 1) x [0, 1), so a voxel given as a point is at its index + 0.5.

Which files belong together is said by patterns with placeholders (see `file_patterns`). What the images' placeholders
stand for becomes metadata: {case} for groups, {sequence} for the modality. A NIfTI file that fits neither `images` nor
`labels` nor `ignore` is quarantined; one that fits both `images` and `labels` is a label volume.

Values become 8 bits by windows, or by percentiles over the volume (see `intensity`); each picture records which. With
`neighbours` a picture's three channels are three slices.

Counts. Before a volume is read nobody knows how many slices it gives, so one that can't be used counts as one image. It
is also lost as a whole when one of its label files can't be used: else what that one annotates would seem to be absent.
Slices that `slices` and `every` leave out aren't counted at all. Of a header only shape, type, scale, units and affine
are used, never its free text.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from medpclip.data.pictures import encode_picture
from medpclip.data.readers.base import Entry, Fault, RawSample, Reader, UnusableError
from medpclip.data.readers.nifti.file_patterns import FilePattern, find_files, match_all
from medpclip.data.readers.nifti.labels import LabelFiles, LabelSource, RegionRules, part_name, read_labels
from medpclip.data.readers.nifti.pictures import PictureRules, SlicePainter
from medpclip.data.readers.nifti.volumes import (
    PLANES,
    SUFFIXES,
    Volume,
    VolumeError,
    canonical,
    choose_plane,
    load_volume,
    slice_spacing,
)
from medpclip.errors import MedpclipError
from medpclip.files import file_sha256

_TILTED = 1.0  # degrees from which an oblique slice says so


@dataclass(frozen=True, kw_only=True)
class NiftiOptions(PictureRules, RegionRules):
    """Options of the reader "nifti"; the inherited ones say how pictures and regions are made.

    Attributes:
        images: pattern of the image volumes.
        labels: the label volumes that belong to an image, each with the keys of `LabelFiles`; none for images without
            regions.
        ignore: patterns of NIfTI files that are neither.
        slices: "annotated": those in which a label volume has something; "all".
        every: of these, each Nth only, the first one included.
        frames: of volumes with a fourth axis: number of the frame, from 0 -> its name, which becomes the metadata
            "frame"; YAML wants the numbers quoted.
    """

    images: str
    labels: list[LabelFiles] = field(default_factory=list)
    ignore: list[str] = field(default_factory=list)
    slices: Literal["annotated", "all"] = "annotated"
    every: int = 1
    frames: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        PictureRules.__post_init__(self)
        RegionRules.__post_init__(self)
        for name, text in [("images", self.images), *(("ignore", text) for text in self.ignore)]:
            try:
                known = FilePattern(text, SUFFIXES).names
            except ValueError as error:
                raise ValueError(f"'{name}': {error}") from None
            taken = {"label", "volume", "frame"} & set(known)
            if taken and name == "images":
                raise ValueError(f"'images' has the placeholder '{min(taken)}', which has a meaning of its own")
        if not self.labels and self.slices == "annotated":
            raise ValueError("'labels' is empty; name the label volumes, or set 'slices' to all")
        images = set(FilePattern(self.images, SUFFIXES).names)
        for labels in self.labels:
            if strange := set(labels.pattern.names) - images - {"label"}:
                raise ValueError(f"'labels' has the placeholder '{min(strange)}', which 'images' hasn't")
        if self.every < 1:
            raise ValueError(f"'every' is {self.every}; expected 1 or more")
        if not all(number.isdecimal() for number in self.frames):
            raise ValueError("'frames' has a key that is no number; expected frames from 0")


class NiftiReader(Reader[NiftiOptions]):
    """Slices of NIfTI volumes; the conventions are in the module's description."""

    name = "nifti"
    batch = 1

    def scan(self) -> list[Entry | Fault]:
        files = find_files(self.source, SUFFIXES)
        labels = _LabelIndex(self.options, files)
        images = {k: v for k, v in self._match(self.options.images, files).items() if k not in labels.sources}
        if not images:
            raise MedpclipError(
                f"{self.source}: no NIfTI file fits '{self.options.images}'; check --source, or the recipe's key "
                "'options.images'"
            )
        if lacking := labels.lacking():
            raise MedpclipError(
                f"{self.source}: nothing fits '{lacking}'; check --source, or the recipe's key 'options.labels'"
            )
        out: list[Entry | Fault] = [self._entry(image, images, labels) for image in sorted(images)]
        for file, sources in labels.sources.items():
            if file not in labels.used:
                out.append(Fault(file, "", "annotation without an image", regions=self._count(sources)))
        ignored = {file for text in self.options.ignore for file in self._match(text, files)}
        for file in files:
            if file not in images and file not in labels.sources and file not in ignored:
                out.append(Fault(file, "", "file fits none of the recipe's patterns", images=1))
        return out

    def samples(self, entry: Entry) -> Iterator[RawSample]:
        options = self.options
        sources: list[LabelSource] = entry.annotation
        try:
            stored = load_volume(self.source / entry.image, options.assume_axes)
            frames = self._frames(stored)
            image = canonical(stored)
            axis = choose_plane(image, options.plane)
            painters = {name: SlicePainter(image.frame(n), axis, options) for n, name in frames.items()}
        except VolumeError as error:
            lost = self._count(sources)
            fault = Fault(entry.image, "", error.reason, error.detail, images=1, regions=lost)
            raise UnusableError(fault) from None
        labels = read_labels(self.source, sources, options.labels, options, stored)
        if labels.problems:
            first = labels.problems[0]
            detail = "; ".join(f"{fault.file}: {fault.reason} ({fault.detail})" for fault in labels.problems)
            raise UnusableError(Fault(first.file, "", first.reason, detail, images=1, regions=labels.count))
        if not labels.slices and options.slices == "annotated":
            raise UnusableError(Fault(entry.image, "", "label volume is empty", images=1))
        digest = file_sha256(self.source / entry.image)
        count = image.raw.shape[axis]
        chosen = range(count) if options.slices == "all" else sorted(labels.slices)
        for name, painter in painters.items():
            for i in chosen[:: options.every]:
                part = f"frame {name}, {part_name(axis, i)}" if name else part_name(axis, i)
                pixels, intensity = painter.paint(i)
                there = labels.slices.get(i, RawSample())
                yield RawSample(
                    regions=there.regions,
                    faults=there.faults,
                    size=(pixels.shape[1], pixels.shape[0]),
                    part=part,
                    picture=encode_picture(pixels, hashlib.sha256(f"{digest} {part}".encode()).hexdigest(), intensity),
                    spacing=slice_spacing(image, axis),
                    volume=_place(image, axis, i),
                    metadata={"frame": name, "volume": f"{entry.image} frame {name}"} if name else {},
                )

    def _match(self, text: str, files: list[str]) -> dict[str, dict[str, str]]:
        return match_all(FilePattern(text, SUFFIXES), files)

    def _entry(self, image: str, images: dict[str, dict[str, str]], labels: _LabelIndex) -> Entry | Fault:
        """An image with its label files, or why they don't fit together."""
        sources, problem = labels.find(images[image])
        twins = [f"{_stem(image)}{suffix}" for suffix in SUFFIXES]
        if all(twin in images for twin in twins):
            problem = ("several files share one name", ", ".join(twins))
        if problem is None:
            return Entry(image, sources, images[image])
        return Fault(image, "", *problem, images=1, regions=self._count(sources))

    def _frames(self, volume: Volume) -> dict[int, str]:
        """Number -> name of the frames to take; a volume without them has one, of no name."""
        if self.options.frames:
            for number in self.options.frames:
                volume.frame(int(number))
            return {int(number): name for number, name in self.options.frames.items()}
        if volume.raw.ndim > 3:
            raise VolumeError("volume has more than three dimensions", str(volume.raw.shape))
        return {0: ""}

    def _count(self, sources: list[LabelSource]) -> int:
        """How many regions label files hold, that are lost with their image."""
        return read_labels(self.source, sources, self.options.labels, self.options, None).count


class _LabelIndex:
    """Which label files belong to which image.

    Attributes:
        sources: file -> as what it is read; once for each of the recipe's 'labels' that it fits.
        used: the files that belong to an image.
    """

    def __init__(self, options: NiftiOptions, files: list[str]) -> None:
        self.options = options
        self.sources: dict[str, list[LabelSource]] = defaultdict(list)
        self.used: set[str] = set()
        images = FilePattern(options.images, SUFFIXES).names
        self._shared = [[name for name in labels.pattern.names if name in images] for labels in options.labels]
        self._found: list[dict[tuple[str, ...], list[LabelSource]]] = []
        for spec, labels in enumerate(options.labels):
            found = defaultdict(list)
            for file, texts in match_all(labels.pattern, files).items():
                source = LabelSource(spec, file, texts.get("label"))
                found[tuple(texts[name] for name in self._shared[spec])].append(source)
                self.sources[file].append(source)
            self._found.append(found)

    def lacking(self) -> str | None:
        """A pattern of label files that every image needs and no file at all fits."""
        pairs = zip(self.options.labels, self._found, strict=True)
        return next((labels.files for labels, found in pairs if not found and not labels.optional), None)

    def find(self, image: dict[str, str]) -> tuple[list[LabelSource], tuple[str, str] | None]:
        """An image's label files, and what is wrong with them: a reason and a private detail, or None."""
        out: list[LabelSource] = []
        problem: tuple[str, str] | None = None
        for labels, shared, found in zip(self.options.labels, self._shared, self._found, strict=True):
            mine = found.get(tuple(image[name] for name in shared), [])
            names = [source.label for source in mine]
            if len(set(names)) < len(names):
                problem = ("several files share one name", ", ".join(source.file for source in mine))
            if not mine and not labels.optional:
                problem = problem or ("image without an annotation", f"nothing fits {labels.files}")
            out += mine
        self.used.update(source.file for source in out)
        if not out and self.options.slices == "annotated":
            problem = problem or ("image without an annotation", "none of the optional label files is there")
        return out, problem


def _place(image: Volume, axis: int, index: int) -> dict[str, Any]:
    """Where a slice is in its volume, and by how many degrees it is oblique."""
    place = {"index": index, "count": image.raw.shape[axis], "axis": PLANES[axis]}
    tilt = image.tilt(axis)
    return place | {"tilt": round(tilt, 1)} if tilt >= _TILTED else place


def _stem(file: str) -> str:
    return file.removesuffix(".gz").removesuffix(".nii")
