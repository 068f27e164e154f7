"""One phantom: place regions on a background, paint them, degrade the picture, describe it."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from medpclip.data.phantom import shapes, textures
from medpclip.data.phantom.artefacts import ARTEFACTS, draw_artefact
from medpclip.data.phantom.captions import captions
from medpclip.data.phantom.fields import Array, Frame
from medpclip.data.phantom.kinds import LOOKS, Kind, kinds_of
from medpclip.data.phantom.looks import BACKGROUNDS, Box, Scene
from medpclip.data.phantom.ranges import Acquisition, Ranges, draw, draw_acquisition, ranges_of
from medpclip.data.schema import SPLITS, Region, Sample, encode_mask

SOURCE = "phantom"
JPEG_QUALITY = 92
_SIDES, _ASPECTS = (160, 224), (0.8, 1.25)
_GAP = 1.12  # how far apart two regions' ellipses lie, 1 being touching
_TRIES = 20
_ARTEFACT_ODDS = (0.4, 0.2, 0.2, 0.2)
_ROUND = np.stack([np.cos(np.arange(16) * np.pi / 8), np.sin(np.arange(16) * np.pi / 8)], axis=1)


@dataclass(frozen=True)
class Slot:
    """Where a region will lie: centre and size of its box in pixels."""

    kind: Kind
    cx: float
    cy: float
    width: float
    height: float


def draw_sample(seed: int, split: str, index: int, group: int) -> tuple[Sample, bytes]:
    """Draw image `index` of a split, of synthetic patient `group`.

    Patient decides the look and the acquisition, image the rest; each has a random stream of its own, so an image is the same
    whatever else is drawn.

    Returns:
        The sample and its JPEG.
    """
    number = SPLITS.index(split)
    patient = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, number, 0, group])))
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, number, 1, index])))
    ranges = ranges_of(split)
    acquisition = draw_acquisition(patient, ranges)
    look = LOOKS[group % len(LOOKS)]
    frame = _draw_frame(rng)
    scene = BACKGROUNDS[look](rng, frame, acquisition)
    slots = place(rng, frame, scene, look, ranges)
    masks = [paint(rng, frame, scene, slot, acquisition, ranges) for slot in slots]
    wanted = ARTEFACTS[int(rng.choice(len(ARTEFACTS), p=_ARTEFACT_ODDS))]
    canvas, artefact = draw_artefact(rng, frame, wanted, scene.canvas, masks)
    picture = _develop(rng, canvas, scene, acquisition)
    categories = [slot.kind.category for slot in slots]
    sample = Sample(
        key=_digest("image", seed, split, index),
        source=SOURCE,
        split=split,
        group=_digest("group", seed, split, group),
        modality=look,
        width=frame.width,
        height=frame.height,
        anatomy=_ANATOMY[look],
        captions=captions(rng, look, categories, artefact),
        labels={} if artefact == "none" else {"artefact": artefact},
        annotated_terms=[kind.category for kind in kinds_of(look)],
        regions=[_region(rng, i, c, mask) for i, (c, mask) in enumerate(zip(categories, masks, strict=True))],
    )
    return sample, _encode(picture)


_ANATOMY = dict(zip(LOOKS, ("abdomen", "chest", "abdomen", "soft tissue", "colon"), strict=True))


def place(rng: np.random.Generator, frame: Frame, scene: Scene, look: str, ranges: Ranges) -> list[Slot]:
    """Choose kinds and places: at least as many regions as `ranges.count` begins with, apart from one another.

    A place depends on the box's size alone, never on shape or texture, so both kinds of a pair get the same places.
    """
    while True:
        wanted = int(rng.integers(ranges.count[0], ranges.count[1] + 1))
        slots: list[Slot] = []
        candidates = _candidates(rng, look)
        # Of those wanted, the ones with the least room first; the rest of the candidates stand in where one finds no place.
        first = sorted(candidates[:wanted], key=lambda kind: scene.zones[kind.zone][1].sum())
        for kind in first + candidates[wanted:]:
            if len(slots) == wanted:
                break
            slot = _find_room(rng, frame, kind, scene.zones[kind.zone], slots, ranges)
            if slot is not None:
                slots.append(slot)
        if len(slots) >= ranges.count[0]:
            return [slots[i] for i in rng.permutation(len(slots))]


def _candidates(rng: np.random.Generator, look: str) -> list[Kind]:
    """All kinds of a look in random order, then those that may occur twice again; the spine comes first, a body has one."""
    kinds = kinds_of(look)
    first = [kinds[i] for i in rng.permutation(len(kinds))]
    second = [kinds[i] for i in rng.permutation(len(kinds)) if kinds[i].limit > 1]
    return sorted(first, key=lambda kind: kind.zone != "spine") + second


def _find_room(
    rng: np.random.Generator, frame: Frame, kind: Kind, zone: tuple[Box, Array], slots: list[Slot], ranges: Ranges
) -> Slot | None:
    (x0, y0, x1, y1), room = zone
    for _ in range(_TRIES):
        size, aspect = draw(rng, ranges.size) * kind.scale * frame.long, draw(rng, ranges.aspect)
        width, height = (size, size / aspect) if aspect > 1.0 else (size * aspect, size)
        cx, cy = rng.uniform(x0, x1), rng.uniform(y0, y1)
        if not (
            width / 2 + 1 < cx < frame.width - width / 2 - 1 and height / 2 + 1 < cy < frame.height - height / 2 - 1
        ):
            continue
        apart = all(
            ((cx - s.cx) / (width + s.width)) ** 2 + ((cy - s.cy) / (height + s.height)) ** 2 > (_GAP / 2) ** 2
            for s in slots
        )
        rim = (_ROUND * [width / 2, height / 2] + [cx, cy]).astype(int)
        if apart and room[rim[:, 1], rim[:, 0]].all():
            return Slot(kind, cx, cy, width, height)
    return None


def paint(
    rng: np.random.Generator, frame: Frame, scene: Scene, slot: Slot, acquisition: Acquisition, ranges: Ranges
) -> Array:
    """Paint a region onto the scene's canvas, in place; returns its mask, bool (height, width)."""
    kind, unit = slot.kind, frame.unit
    polygon = shapes.outline(rng, kind.shape)
    rows, columns, cover, mask = shapes.rasterise(
        polygon, slot.cx, slot.cy, slot.width, slot.height, acquisition.blur * unit, (frame.height, frame.width)
    )
    period = draw(rng, getattr(ranges, kind.period)) if isinstance(kind.period, str) else kind.period
    pattern = textures.PATTERNS[kind.texture](rng, mask.shape[0], mask.shape[1], period * unit)
    texture = kind.amplitude * textures.equalise(pattern, mask)
    base = np.array(scene.base, dtype=np.float32)
    tone = np.array(kind.tone, dtype=np.float32) + np.float32(rng.uniform(-0.03, 0.03))
    colour = base + acquisition.contrast * (tone - base + texture[:, :, None])
    window = scene.canvas[rows, columns]
    window += cover[:, :, None] * (colour - window)
    whole = np.zeros((frame.height, frame.width), dtype=bool)
    whole[rows, columns] = mask
    return whole


def _develop(rng: np.random.Generator, canvas: Array, scene: Scene, acquisition: Acquisition) -> Array:
    """Shading, noise and tone curve; uint8 (height, width, 1 or 3)."""
    if scene.shading is not None:
        canvas = canvas * scene.shading[:, :, None]
    noise = rng.standard_normal(canvas.shape[:2], dtype=np.float32) * (acquisition.noise * scene.speckle)
    curve = (np.linspace(0.0, 1.0, 1024) ** acquisition.gamma * 255.0 + 0.5).astype(np.uint8)
    return curve[(np.clip(canvas + noise[:, :, None], 0.0, 1.0) * 1023.0).astype(np.int16)]


def _region(rng: np.random.Generator, number: int, category: str, mask: Array) -> Region:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
    pixels = np.flatnonzero(mask)
    y, x = divmod(int(pixels[rng.integers(pixels.size)]), mask.shape[1])
    return Region(
        id=number,
        category=category,
        bbox=[float(v) for v in box],
        segmentation=encode_mask(mask),
        points=[[x + 0.5, y + 0.5]],
        source_format=SOURCE,
    )


def _draw_frame(rng: np.random.Generator) -> Frame:
    long, aspect = int(rng.integers(_SIDES[0], _SIDES[1] + 1)), rng.uniform(*_ASPECTS)
    return Frame(long, round(long / aspect)) if aspect > 1.0 else Frame(round(long * aspect), long)


def _encode(picture: Array) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)
    image.save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return stream.getvalue()


def _digest(*parts: object) -> str:
    return hashlib.sha256("/".join(str(p) for p in (SOURCE, *parts)).encode()).hexdigest()[:20]
