"""Any picture of a source: image files by Pillow and libjpeg-turbo, DICOM by pydicom."""

from __future__ import annotations

from pathlib import Path

from medpclip.data.pictures.dicom_headers import DICOM_SUFFIXES, is_dicom
from medpclip.data.pictures.files import image_file_size, read_image_file
from medpclip.data.pictures.picture import Picture


def read_picture(path: Path) -> Picture:
    """Read, decode fully and clean an image file; DICOM is known by its mark, or by its name.

    Raises:
        PictureError: unreadable, truncated, several frames, or an EXIF orientation.
        MedpclipError: the whole source can't be read any more; to lose its images one by one would be wrong.
    """
    if _is_dicom(path):
        from medpclip.data.pictures.dicom import read_dicom_picture  # pydicom takes its time

        return read_dicom_picture(path)
    return read_image_file(path)


def read_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image file as its header states it; the pixels stay unread.

    Raises:
        PictureError: the header can't be read.
    """
    if _is_dicom(path):
        from medpclip.data.pictures.dicom import read_dicom_size

        return read_dicom_size(path)
    return image_file_size(path)


def _is_dicom(path: Path) -> bool:
    return path.suffix.lower() in DICOM_SUFFIXES or is_dicom(path)
