"""Sparse masks: for each image an npz file with a sparse matrix, one row per label (the layout of IMed-361M).

Conventions. A dataset is a folder with a JSON file that has "labels", number -> name, and lists ("training" and its
like) of objects {"image": path, "label": path}, relative to that folder. `datasets` finds these files, one or several.
The npz file is what `scipy.sparse.save_npz` writes of a CSR matrix: "data", "indices", "indptr", "shape", "format".
Row r is the mask of label r + 1, an image of height x width flattened row by row; what isn't 0 is inside. Height and
width stand in the file's name, as "x.(13, 512, 512, 1).npz" for 13 labels; without that they are the image's.

Each row with a pixel is a region, or, with `components`, each of its connected components. `values` replaces the names
of the JSON file. The dataset's "name" and "modality", and the list that an image is in, join the image's metadata as
"dataset.name", "dataset.modality" and "dataset.list".

The matrix is checked here, number by number, because nothing vouches for files from elsewhere.
Source: Cheng et al., Interactive Medical Image Segmentation: A Benchmark Dataset and Baseline, CVPR 2025, and the sample
of BTCV published with it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medpclip.data.pictures import PictureError, read_size
from medpclip.data.readers.arrays import MOST_PIXELS, read_npz
from medpclip.data.readers.base import Entry, Fault, ImageReader, RawSample, UnusableError
from medpclip.data.readers.files import IMAGE_SUFFIXES, list_files, require_inside
from medpclip.data.readers.masks import ComponentOptions, add_mask
from medpclip.errors import MedpclipError

_SHAPE_IN_NAME = re.compile(r"\((\d+), ?(\d+), ?(\d+)(?:, ?1)?\)\.npz$", re.IGNORECASE)
_BROKEN = "sparse matrix is broken"


@dataclass(frozen=True, kw_only=True)
class SparseNpzOptions(ComponentOptions):
    """Options of the reader "sparse_npz".

    Attributes:
        datasets: the JSON file of the dataset, or a pattern for those of several, as "*/dataset.json".
        values: number -> the source's label, instead of the JSON file's.
    """

    datasets: str = "dataset.json"
    values: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for number in self.values:
            if not number.isdecimal():
                raise ValueError(f"'values' has the key '{number}'; expected the labels' numbers")


@dataclass(frozen=True)
class _Masks:
    """An npz file with the names of its rows."""

    path: Path
    labels: dict[int, str]


class SparseNpzReader(ImageReader[SparseNpzOptions]):
    """Regions from sparse matrices; the conventions are in the module's description."""

    name = "sparse_npz"

    def scan(self) -> list[Entry | Fault]:
        where = self.options.datasets
        require_inside(where, "options.datasets")
        path = self.source / where
        paths = [path] if path.is_file() else []
        paths = paths or list_files(self.source, where, "options.datasets", (".json",))
        if not paths:
            raise MedpclipError(f"{path}: holds no JSON file; check --source, or the recipe's key 'options.datasets'")
        out: list[Entry | Fault] = []
        for path in paths:
            out += self._scan_dataset(path)
        return out

    def read(self, entry: Entry) -> RawSample:
        masks: _Masks = entry.annotation
        file = self.relative(masks.path)
        matrix = _Matrix(masks.path, file)
        height, width = self._size(entry, masks.path, file, matrix)
        sample = RawSample(size=(width, height))
        for row in range(matrix.rows):
            cells = matrix.row(row)
            if not cells.size:
                continue
            key = f"row {row}"
            label = masks.labels.get(row + 1)
            if label is None:
                reason, detail = "number in the mask has no label in the recipe", f"label {row + 1}"
                sample.faults.append(Fault(file, key, reason, detail, regions=1))
                continue
            y, x = np.divmod(cells, width)
            top, left = int(y.min()), int(x.min())
            part = np.zeros((int(y.max()) - top + 1, int(x.max()) - left + 1), bool)
            part[y - top, x - left] = True
            add_mask(sample, part, (top, left), (height, width), label, file, key, self.options)
        return sample

    def _scan_dataset(self, path: Path) -> list[Entry | Fault]:
        """The images of one dataset, and faults for files that its lists don't name, or name in vain."""
        file, folder = self.relative(path), path.parent
        data = _read_json(path)
        labels = {int(n): label for n, label in self.options.values.items()} or _labels(data, path)
        out: list[Entry | Fault] = []
        listed: list[tuple[str, str, Path | None, _Masks]] = []
        for name, items in data.items():
            for i, item in enumerate(items if isinstance(items, list) else ()):
                key = f"{name}[{i}]"
                names = [item.get("image"), item.get("label")] if isinstance(item, dict) else [None, None]
                if not all(isinstance(text, str) and text for text in names):
                    out.append(Fault(file, key, "list entry names no image and label", repr(item)[:200], images=1))
                    continue
                matrix = _below(folder, str(names[1]))
                if matrix is None:
                    out.append(Fault(file, key, "annotation file is missing", repr(names[1]), images=1))
                else:
                    listed.append((key, name, _below(folder, str(names[0])), _Masks(matrix, labels)))
        times = Counter(image for _, _, image, _ in listed)
        for key, name, image, masks in listed:
            if image is None:
                out.append(Fault(file, key, "image file is missing", "", images=1, regions=self.count(masks)))
            elif times[image] > 1:
                detail = self.relative(image)
                lost = self.count(masks)
                out.append(Fault(file, key, "image is listed several times", detail, images=1, regions=lost))
            else:
                out.append(Entry(self.relative(image), masks, _facts(data, name)))
        for path in _beside({image for _, _, image, _ in listed if image}, IMAGE_SUFFIXES):
            out.append(Fault(self.relative(path), "", "image without an annotation", f"not in {file}", images=1))
        for path in _beside({masks.path for *_, masks in listed}, (".npz",)):
            lost = self.count(_Masks(path, labels))
            out.append(Fault(self.relative(path), "", "annotation without an image", f"not in {file}", regions=lost))
        return out

    def _size(self, entry: Entry, path: Path, file: str, matrix: _Matrix) -> tuple[int, int]:
        """(height, width) of the masks, from the file's name or else the image's header."""
        stated = _SHAPE_IN_NAME.search(path.name)
        if stated is not None:
            rows, height, width = (int(number) for number in stated.groups())
            if (rows, height * width) != (matrix.rows, matrix.columns):
                detail = f"the matrix is {matrix.rows} x {matrix.columns}"
                reason = "shape in the file's name is not the matrix's"
                raise UnusableError(Fault(file, "", reason, detail, images=1, regions=matrix.filled))
            return height, width
        if not entry.image:  # only counting: any shape will do
            return 1, matrix.columns
        try:
            width, height = read_size(self.source / entry.image)
        except PictureError as error:
            fault = Fault(entry.image, "", error.reason, error.detail, images=1, regions=matrix.filled)
            raise UnusableError(fault) from None
        if width * height != matrix.columns:
            detail = f"{matrix.columns} columns, the image is {width}x{height}"
            reason = "mask is of another size than the image"
            raise UnusableError(Fault(file, "", reason, detail, images=1, regions=matrix.filled))
        return height, width


class _Matrix:
    """A CSR matrix from an npz file, checked.

    Attributes:
        rows, columns: its shape.
        filled: number of rows with a value that isn't 0.

    Raises:
        UnusableError: the file or the matrix is broken, or it is no CSR matrix.
    """

    def __init__(self, path: Path, file: str) -> None:
        arrays = read_npz(path, file, ("data", "indices", "indptr", "shape", "format"))
        kind = arrays["format"].astype(str).reshape(-1)
        if kind.tolist() != ["csr"]:
            raise UnusableError(Fault(file, "format", "sparse matrix is not CSR", str(kind), images=1))
        problem = _problem(arrays)
        if problem:
            raise UnusableError(Fault(file, "", _BROKEN, problem, images=1))
        self.rows, self.columns = (int(number) for number in arrays["shape"])
        self._inside = arrays["data"] != 0
        self._indices, self._starts = arrays["indices"], arrays["indptr"].tolist()
        self.filled = sum(bool(self.row(row).size) for row in range(self.rows))

    def row(self, row: int) -> np.ndarray:
        """The columns of a row with a value that isn't 0."""
        part = slice(self._starts[row], self._starts[row + 1])
        return self._indices[part][self._inside[part]]


def _problem(arrays: dict[str, np.ndarray]) -> str:
    """What is wrong with the arrays of a CSR matrix; empty where nothing is."""
    data, indices, starts, shape = (arrays[name] for name in ("data", "indices", "indptr", "shape"))
    if any(array.dtype.kind not in "iu" for array in (indices, starts, shape)) or data.dtype.kind not in "biuf":
        return "an array isn't of numbers"
    if shape.shape != (2,) or shape.min() < 1:
        return f"shape is {shape.tolist()}"
    rows, columns = (int(number) for number in shape)
    if columns > MOST_PIXELS:
        return f"{columns} columns are more than the pixels of any image"
    if data.ndim != 1 or data.shape != indices.shape:
        return f"data and indices have the shapes {data.shape} and {indices.shape}"
    if starts.shape != (rows + 1,):
        return f"indptr has the shape {starts.shape} for {rows} rows"
    if starts[0] != 0 or starts[-1] != indices.size or (starts[1:] < starts[:-1]).any():
        return f"indptr doesn't rise from 0 to {indices.size}"
    if indices.size and (indices.min() < 0 or indices.max() >= columns):
        return f"a column is outside of 0 to {columns - 1}"
    return ""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise MedpclipError(f"{path}: {error.strerror}; check the recipe's key 'options.datasets'") from None
    except (ValueError, RecursionError) as error:
        raise MedpclipError(f"{path}: broken JSON ({error}); restore the file") from None
    if not isinstance(data, dict) or not any(isinstance(value, list) for value in data.values()):
        raise MedpclipError(f"{path}: expected an object with lists of images; check 'options.datasets'")
    return data


def _labels(data: dict[str, Any], path: Path) -> dict[int, str]:
    """Number -> name, without the background."""
    labels = data.get("labels")
    if not isinstance(labels, dict) or not all(number.isdecimal() for number in labels):
        raise MedpclipError(f"{path}: key 'labels' must map numbers to names; correct it, or give 'options.values'")
    return {int(number): str(label) for number, label in labels.items() if int(number) > 0 and label}


def _facts(data: dict[str, Any], name: str) -> dict[str, Any]:
    """What a dataset says of its images."""
    modality = data.get("modality")
    if isinstance(modality, dict):
        modality = "|".join(str(value) for value in modality.values())
    return {"dataset.name": data.get("name"), "dataset.modality": modality, "dataset.list": name}


def _below(folder: Path, name: str) -> Path | None:
    """A file by its path below a folder; None where there is none, or it leads out."""
    path = Path(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        return None
    return folder / path if (folder / path).is_file() else None


def _beside(listed: set[Path], suffixes: tuple[str, ...]) -> list[Path]:
    """Files with certain endings in the folders of listed files, that aren't listed."""
    there = {path for folder in {path.parent for path in listed} for path in folder.iterdir()}
    shown = (path for path in there - listed if path.suffix.lower() in suffixes and not path.name.startswith("."))
    return sorted(path for path in shown if path.is_file())
