"""Pictures of samples with their regions drawn on, and the contact sheet of a folder of shards.

A sheet can be shared: it shows images, terms and counts, no file names, paths or identifiers.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medpclip.data.schema import Region, Sample
from medpclip.data.shards import MANIFEST, ShardFolder
from medpclip.errors import MedpclipError
from medpclip.files import write_atomically

Colour = tuple[int, int, int]
# Okabe and Ito, "Color Universal Design" (2008): told apart with any colour vision. Their black is left out.
PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
_CELL, _COLUMNS, _GAP, _HEADER, _FOOTER = 340, 6, 10, 40, 40
_FONT_SIZE = 13
_LABELS_PER_CATEGORY = 2
_TINT = 0.22


def write_sheet(folder: Path, out: Path, split: str | None = None, count: int = 24, seed: int = 0) -> Path:
    """Draw a contact sheet: random images of a folder of shards in a grid, with masks, boxes, points and their terms.

    Args:
        folder: a folder of shards, or a folder of such folders, which then share the sheet equally.
        out: the PNG to write.
        split: only that split's images; all of them by default.
        count: how many images at most.
        seed: another seed picks other images.

    Returns:
        `out`.

    Raises:
        MedpclipError: no shards there, no such split, or an `out` that isn't a PNG's name.
    """
    folder, out = Path(folder), Path(out)
    if count < 1:
        raise MedpclipError(f"count is {count}; give a positive number of images")
    if out.suffix.lower() != ".png" or out.is_dir():
        raise MedpclipError(f"{out}: the sheet is a PNG file; give a name that ends in .png")
    sources = _open(folder, split)
    picked = _pick([len(source) for source in sources], count, seed)
    samples = [(sources[s].image(i), sources[s].sample(i)) for s, i in picked]
    colours = category_colours([{region.category for region in sample.regions} for _, sample in samples])
    cells = [_cell(image, sample, colours) for image, sample in samples]
    page = _grid(cells, _title(sources, split, samples))
    stream = io.BytesIO()
    page.save(stream, "PNG")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, stream.getvalue())
    except OSError as error:
        raise MedpclipError(f"{out}: cannot write there ({error.strerror}); choose another place") from None
    return out


def draw_regions(
    image: np.ndarray,
    sample: Sample,
    size: int,
    *,
    regions: Sequence[int] | None = None,
    texts: Mapping[int, str] | None = None,
    colours: Mapping[str, Colour] | None = None,
) -> Image.Image:
    """The image with its regions: mask tint and contour, box, points and text.

    Args:
        image: uint8 (height, width, 3).
        sample: whose regions are drawn; its width and height are the image's.
        size: the longer side of the result in pixels.
        regions: ids of the regions to draw; all by default.
        texts: what to write at a region, by its id; by default the first regions of each category bear its name.
        colours: RGB per category; by default the palette in the order of the categories' names.

    Returns:
        An RGB picture with the image's proportions.
    """
    drawn = [r for r in sample.regions if regions is None or r.id in regions]
    if colours is None:
        colours = category_colours([{r.category for r in drawn}])
    if texts is None:
        texts = _first_of_each(drawn)
    scale = size / max(sample.width, sample.height)
    shape = (max(1, round(sample.width * scale)), max(1, round(sample.height * scale)))
    picture = Image.fromarray(image).resize(shape, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    for region in drawn:
        picture = _draw_mask(picture, region, colours[region.category])
    pen = ImageDraw.Draw(picture)
    for region in drawn:
        _draw_box_and_points(pen, region, colours[region.category], scale)
    taken: list[tuple[float, float, float, float]] = []
    for region in drawn:
        if region.id in texts:
            _draw_text(pen, picture.size, texts[region.id], _box_of(region), colours[region.category], scale, taken)
    return picture


def category_colours(together: Sequence[Set[str]]) -> dict[str, Colour]:
    """A colour for each category, such that those of one picture differ as far as the palette reaches.

    Args:
        together: for each picture, the categories in it.
    """
    chosen: dict[str, int] = {}
    for name in sorted(set().union(*together)):
        beside = Counter(chosen[other] for group in together if name in group for other in group if other in chosen)
        used = Counter(chosen.values())
        chosen[name] = min(range(len(PALETTE)), key=lambda i: (beside[i], used[i]))
    return {name: PALETTE[i] for name, i in chosen.items()}


def _first_of_each(regions: Sequence[Region]) -> dict[int, str]:
    """Names for the first regions of each category, with the count where not all bear it."""
    total, seen = Counter(r.category for r in regions), Counter[str]()
    texts = {}
    for region in regions:
        seen[region.category] += 1
        if seen[region.category] <= _LABELS_PER_CATEGORY:
            rest = total[region.category] > _LABELS_PER_CATEGORY and seen[region.category] == 1
            texts[region.id] = f"{region.category} (1 of {total[region.category]})" if rest else region.category
    return texts


def _draw_mask(picture: Image.Image, region: Region, colour: Colour) -> Image.Image:
    mask = region.mask()
    if mask is None:
        return picture
    soft = Image.fromarray(mask.astype(np.uint8) * 255).resize(picture.size, Image.Resampling.BILINEAR)
    inside = np.asarray(soft) > 127
    core = inside.copy()
    core[1:] &= inside[:-1]
    core[:-1] &= inside[1:]
    core[:, 1:] &= inside[:, :-1]
    core[:, :-1] &= inside[:, 1:]
    weight = np.where(inside & ~core, 1.0, _TINT * inside)[:, :, None]
    mixed = np.asarray(picture) * (1.0 - weight) + np.array(colour) * weight
    return Image.fromarray(mixed.astype(np.uint8))


def _draw_box_and_points(pen: ImageDraw.ImageDraw, region: Region, colour: Colour, scale: float) -> None:
    if region.bbox is not None:
        x, y, w, h = (v * scale for v in region.bbox)
        pen.rectangle((x, y, max(x, x + w - 1), max(y, y + h - 1)), outline=colour)
    for px, py in region.points or []:
        x, y = px * scale, py * scale
        pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour, outline=(0, 0, 0))


def _draw_text(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    text: str,
    box: tuple[float, float, float, float],
    colour: Colour,
    scale: float,
    taken: list[tuple[float, float, float, float]],
) -> None:
    """Write above, below or in the box: the first place where no other text is, else the first."""
    x, y, _, h = (v * scale for v in box)
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font(_FONT_SIZE), stroke_width=2)
    width, height = right - left, bottom - top
    places = []
    for at in (
        y - height - 1,
        y + h + 1,
        y + h / 2 - height / 2,
        y + 1,
        y + h - height,
        y - 2 * height,
        y + h + height,
    ):
        px, py = min(max(0.0, x), max(0.0, size[0] - width)), min(max(0.0, at), max(0.0, size[1] - height))
        places.append((px, py, px + width, py + height))
    free = (p for p in places if not any(_overlap(p, t) for t in taken))
    place = next(free, places[0])
    taken.append(place)
    pale = tuple((value + 2 * 255) // 3 for value in colour)  # readable on its black outline, still of the box's hue
    at_text = (place[0] - left, place[1] - top)
    pen.text(at_text, text, font=font(_FONT_SIZE), fill=pale, stroke_width=2, stroke_fill=(0, 0, 0))


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _box_of(region: Region) -> tuple[float, float, float, float]:
    """The region's box, or the box of its mask or points."""
    if region.bbox is not None:
        return region.bbox[0], region.bbox[1], region.bbox[2], region.bbox[3]
    mask = region.mask()
    xy = np.argwhere(mask)[:, ::-1] if mask is not None and mask.any() else np.array(region.points or [[0.0, 0.0]])
    (x0, y0), (x1, y1) = xy.min(axis=0), xy.max(axis=0)
    return float(x0), float(y0), float(x1 - x0), float(y1 - y0)


@lru_cache(maxsize=4)
def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own font, at a size in pixels."""
    return ImageFont.load_default(size)


def _open(folder: Path, split: str | None) -> list[ShardFolder]:
    """The folder's shards, or those of its sub-folders that have the split."""
    if (folder / MANIFEST).exists() or not folder.is_dir():
        return [ShardFolder(folder, split)]
    inner = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    if not inner:
        raise MedpclipError(
            f"{folder}: neither {MANIFEST} nor folders with one; give a folder of shards, or one of such"
        )
    opened = [ShardFolder(path) for path in inner]
    having = [f.folder for f in opened if split is None or split in f.manifest["splits"]]
    if not having:
        raise MedpclipError(f"{folder}: no folder in it has a split {split!r}; name another split")
    return [ShardFolder(path, split) for path in having]


def _pick(sizes: list[int], count: int, seed: int) -> list[tuple[int, int]]:
    """(source, sample) numbers: a random choice without repetition, the sources taking turns while they last."""
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(size) for size in sizes]
    turns = [(turn, s) for s, order in enumerate(orders) for turn in range(len(order))]
    chosen = sorted(turns)[:count]
    return sorted((s, int(orders[s][turn])) for turn, s in chosen)


def _title(sources: list[ShardFolder], split: str | None, samples: list[tuple[np.ndarray, Sample]]) -> str:
    names = ", ".join(sorted({sample.source for _, sample in samples}))
    images = regions = 0
    for source in sources:
        for name, counts in source.manifest["splits"].items():
            if split in (None, name):
                images, regions = images + counts["samples"], regions + counts["regions"]
    shown = f"{len(samples)} of {images:,} images, {regions:,} regions in all"
    return f"{names}   |   {'all splits' if split is None else 'split ' + split}   |   {shown}"


def _cell(image: np.ndarray, sample: Sample, colours: Mapping[str, Colour]) -> Image.Image:
    cell = Image.new("RGB", (_CELL, _CELL + _FOOTER), (255, 255, 255))
    picture = draw_regions(image, sample, _CELL, colours=colours)
    cell.paste(picture, ((_CELL - picture.width) // 2, (_CELL - picture.height) // 2))
    count = len(sample.regions)
    facts = [f"{sample.modality}, {count} region{'' if count == 1 else 's'}, {sample.split}"]
    facts.append(", ".join(f"{name}: {value}" for name, value in sample.labels.items() if value != sample.modality))
    pen = ImageDraw.Draw(cell)
    for line, text in enumerate(facts):
        pen.text((2, _CELL + 3 + line * 17), _shorten(pen, text), font=font(_FONT_SIZE), fill=(40, 40, 40))
    return cell


def _shorten(pen: ImageDraw.ImageDraw, text: str) -> str:
    if pen.textlength(text, font=font(_FONT_SIZE)) <= _CELL - 4:
        return text
    while text and pen.textlength(text + "...", font=font(_FONT_SIZE)) > _CELL - 4:
        text = text[:-1]
    return text + "..."


def _grid(cells: list[Image.Image], title: str) -> Image.Image:
    columns = min(_COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    width, height = columns * (_CELL + _GAP) + _GAP, _HEADER + rows * (_CELL + _FOOTER + _GAP) + _GAP
    page = Image.new("RGB", (width, height), (255, 255, 255))
    ImageDraw.Draw(page).text((_GAP, 12), title, font=font(16), fill=(0, 0, 0))
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        page.paste(cell, (_GAP + column * (_CELL + _GAP), _HEADER + row * (_CELL + _FOOTER + _GAP)))
    return page
