"""Images with image-level labels alone: a folder of images and, where there is one, a table with a row per image.

Conventions. The row is the image's metadata; the recipe's `labels` says what its columns mean. Without a table, each
image stands for itself, and what its path says (a folder per class) is read by the recipe's `path_pattern`. An image
without a row is quarantined, and so is one with several rows that differ: nobody knows which of them is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medpclip.data.readers.base import Entry, Fault, ImageReader, RawSample
from medpclip.data.readers.files import list_images
from medpclip.data.readers.matching import match_rows
from medpclip.data.readers.tables import Row, TableOptions, read_tables


@dataclass(frozen=True, kw_only=True)
class ClassificationOptions(TableOptions):
    """Options of the reader "classification": those of all tables; without `table`, `images` alone counts."""


class ClassificationReader(ImageReader[ClassificationOptions]):
    """Images with the rows of a table; the conventions are in the module's description."""

    name = "classification"

    def scan(self) -> list[Entry | Fault]:
        options = self.options
        if not options.table:
            images, faults = list_images(self.source, options.images, "options.images")
            return [*faults, *(Entry(self.relative(image)) for image in images)]
        rows = read_tables(self.source, options, {"options.image_column": options.image_column})
        matched = match_rows(self.source, options, rows, regions=0)
        out: list[Entry | Fault] = [*matched.faults, *matched.loose]
        out += [group.fault(regions=0) for group in matched.unmatched]
        out += [self._entry(image, mine) for image, mine in matched.rows.items()]
        return out

    def read(self, entry: Entry) -> RawSample:
        return RawSample()

    def _entry(self, image: Path, rows: list[Row]) -> Entry | Fault:
        file = self.relative(image)
        if not rows:
            return Fault(file, "", "image without an annotation", images=1)
        for row in rows:
            if row.problem:
                return Fault(row.file, row.key, row.problem, f"{row.detail}; its image is {file}", images=1)
        if any(row.cells != rows[0].cells for row in rows):
            detail = ", ".join(row.key for row in rows)
            return Fault(file, "", "image is listed several times", detail, images=1)
        return Entry(file, None, rows[0].cells)
