"""Annotation formats. A new one is a class with `Reader`'s two methods, listed here."""

from __future__ import annotations

from typing import Any

from medpclip.data.readers.base import Entry, Fault, ImageReader, RawRegion, RawSample, Reader, UnusableError
from medpclip.data.readers.captions import CaptionsOptions, CaptionsReader
from medpclip.data.readers.classification import ClassificationOptions, ClassificationReader
from medpclip.data.readers.coco import CocoOptions, CocoReader
from medpclip.data.readers.csv_boxes import CsvBoxesOptions, CsvBoxesReader
from medpclip.data.readers.csv_rle import CsvRleOptions, CsvRleReader
from medpclip.data.readers.dense_npz import DenseNpzOptions, DenseNpzReader
from medpclip.data.readers.dicom.reader import DicomOptions, DicomReader
from medpclip.data.readers.instance_mask import InstanceMaskOptions, InstanceMaskReader
from medpclip.data.readers.label_mask import LabelMaskOptions, LabelMaskReader
from medpclip.data.readers.nifti.reader import NiftiOptions, NiftiReader
from medpclip.data.readers.placed_mask import PlacedMaskOptions, PlacedMaskReader
from medpclip.data.readers.points import PointsOptions, PointsReader
from medpclip.data.readers.sparse_npz import SparseNpzOptions, SparseNpzReader
from medpclip.data.readers.voc import VocOptions, VocReader
from medpclip.data.readers.yolo import YoloOptions, YoloReader

READERS: dict[str, tuple[type[Reader[Any]], type]] = {
    "captions": (CaptionsReader, CaptionsOptions),
    "classification": (ClassificationReader, ClassificationOptions),
    "coco": (CocoReader, CocoOptions),
    "csv_boxes": (CsvBoxesReader, CsvBoxesOptions),
    "csv_rle": (CsvRleReader, CsvRleOptions),
    "dense_npz": (DenseNpzReader, DenseNpzOptions),
    "dicom": (DicomReader, DicomOptions),
    "instance_mask": (InstanceMaskReader, InstanceMaskOptions),
    "label_mask": (LabelMaskReader, LabelMaskOptions),
    "nifti": (NiftiReader, NiftiOptions),
    "placed_mask": (PlacedMaskReader, PlacedMaskOptions),
    "points": (PointsReader, PointsOptions),
    "sparse_npz": (SparseNpzReader, SparseNpzOptions),
    "voc": (VocReader, VocOptions),
    "yolo": (YoloReader, YoloOptions),
}

__all__ = ["READERS", "Entry", "Fault", "ImageReader", "RawRegion", "RawSample", "Reader", "UnusableError"]
