"""Annotation formats. A new one is a class with `Reader`'s two methods, listed here."""

from __future__ import annotations

from typing import Any

from medpclip.data.readers.base import Entry, Fault, RawRegion, RawSample, Reader, UnusableError
from medpclip.data.readers.coco import CocoOptions, CocoReader
from medpclip.data.readers.instance_mask import InstanceMaskOptions, InstanceMaskReader
from medpclip.data.readers.label_mask import LabelMaskOptions, LabelMaskReader
from medpclip.data.readers.voc import VocOptions, VocReader

READERS: dict[str, tuple[type[Reader[Any]], type]] = {
    "coco": (CocoReader, CocoOptions),
    "instance_mask": (InstanceMaskReader, InstanceMaskOptions),
    "label_mask": (LabelMaskReader, LabelMaskOptions),
    "voc": (VocReader, VocOptions),
}

__all__ = ["READERS", "Entry", "Fault", "RawRegion", "RawSample", "Reader", "UnusableError"]
