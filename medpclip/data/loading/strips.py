"""Masks as vertical strips, straight from their run lengths: areas, coverage and clicks of many masks at once.

COCO's run lengths go down the columns, so a run of ones is one strip of a column, or several where it goes on at the
next column's top. Everything that training asks of a mask is a sum over its strips; the mask is never drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medpclip.data.schema import run_lengths

_CHUNK = 16384  # strips whose coverage is summed at once: what fits the processor's cache


@dataclass
class Strips:
    """Pixels [top, bottom) of column x of mask `owner`; sorted by owner, then x, then top; none overlap, none is empty.

    Attributes:
        owner, x, top, bottom: int32 or int64 (N,).
        count: how many masks there are; one may be without a strip.
    """

    owner: np.ndarray
    x: np.ndarray
    top: np.ndarray
    bottom: np.ndarray
    count: int

    def bounds(self) -> np.ndarray:
        """Where each mask's strips begin, and the last one's end: int64 (count + 1,)."""
        # Of the same type, else the owners would be copied to another one.
        return np.searchsorted(self.owner, np.arange(self.count + 1, dtype=self.owner.dtype))

    def each(self, values: np.ndarray) -> np.ndarray:
        """Each mask's value, for every strip of it: (count,) -> (N,). Several times faster than by index."""
        return np.repeat(values, np.diff(self.bounds()))

    def areas(self) -> np.ndarray:
        """Pixels of each mask, int64 (count,)."""
        sums = np.cumsum(np.append(0, self.bottom - self.top), dtype=np.int64)
        return np.diff(sums[self.bounds()])

    def pixels(self) -> np.ndarray:
        """All pixels of all masks, int64 (sum of areas, 2) xy, by mask and column."""
        lengths = (self.bottom - self.top).astype(np.int64)
        down = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return np.stack([np.repeat(self.x, lengths), np.repeat(self.top, lengths) + down], 1)

    def select(self, masks: np.ndarray) -> Strips:
        """Those of some masks, int64 (M,), increasing; they are numbered anew from 0."""
        number = np.full(self.count, -1)
        number[masks] = np.arange(len(masks))
        owner = self.each(number)
        kept = np.flatnonzero(owner >= 0)
        return Strips(owner[kept], self.x[kept], self.top[kept], self.bottom[kept], len(masks))

    def clip(self, left: np.ndarray, top: np.ndarray, side: np.ndarray) -> Strips:
        """What each mask's window shows of it, in the window's pixels; `left`, `top`, `side` are int64 (count,)."""
        left, top, side = (self.each(part.astype(self.x.dtype)) for part in (left, top, side))
        x = self.x - left
        first = np.maximum(self.top - top, 0)
        last = np.minimum(self.bottom - top, side)
        kept = np.flatnonzero((x >= 0) & (x < side) & (last > first))
        return Strips(self.owner[kept], x[kept], first[kept], last[kept], self.count)

    def coverage(self, side: np.ndarray, grid: int) -> np.ndarray:
        """The share of each cell that each mask covers, float32 (count, grid, grid) in [0, 1]; exact, of any `side`.

        Args:
            side: int64 (count,): of the squares that the strips lie in, in pixels.
            grid: cells per side of each square.
        """
        out = np.zeros((self.count, grid, grid), np.float32)
        self.add_coverage(side, out, np.arange(self.count))
        return out

    def add_coverage(self, side: np.ndarray, out: np.ndarray, places: np.ndarray) -> None:
        """The same, into zeros, contiguous: mask i's into out[places[i]], (grid, grid)."""
        if not len(self.x):
            return
        grid = out.shape[-1]
        if (finer := -(-grid // int(side.min()))) > 1:  # a pixel may then span several cells: cut pixels up
            self._cut_up(finer).add_coverage(side * finer, out, places)
            return
        bounds = self.bounds()
        first = 0
        while first < self.count:
            last = max(first + 1, int(np.searchsorted(bounds, bounds[first] + _CHUNK, "right")) - 1)
            part = slice(bounds[first], bounds[last])
            if bounds[first] < bounds[last]:
                chunk = Strips(self.owner[part] - first, self.x[part], self.top[part], self.bottom[part], last - first)
                chunk._cover(side[first:last], out, places[first:last])
            first = last

    def _cover(self, side: np.ndarray, out: np.ndarray, into: np.ndarray) -> None:
        """Coverage by running sums down the columns of those cells that each mask's extent touches.

        A strip's overlap with the cells of a column of cells is the difference of two ramps, one per end; a ramp's
        differences are a fraction in the cell where it starts, the rest in the next and nothing beyond. Both ramps of a
        strip end at the same height, so the running sum is back at 0 when the next column begins.
        """
        grid = out.shape[-1]
        scale = grid / side
        own = self.each(scale)
        left = self.x * own
        column = left.astype(np.int64)
        beyond = np.maximum(left + own - (column + 1), 0.0)
        low, high = self.top * own, self.bottom * own
        boxes = self.extents()
        column0, row0 = (boxes[:, 0] * scale).astype(np.int64), (boxes[:, 1] * scale).astype(np.int64)
        columns = ((boxes[:, 2] - 1) * scale).astype(np.int64) + 2 - column0
        rows = (boxes[:, 3] * scale).astype(np.int64) + 2 - row0
        cells = rows * columns
        tall = self.each(rows)
        corner = self.each(np.cumsum(cells) - cells - column0 * rows - row0) + column * tall
        places, shares = np.empty((4, len(column)), np.int64), np.empty((4, len(column)))
        for i, (edge, sign) in enumerate(((low, 1.0), (high, -1.0))):
            row = edge.astype(np.int64)
            part = sign * (edge - row)
            places[2 * i] = corner + row
            shares[2 * i], shares[2 * i + 1] = sign - part, part
        places[1::2] = places[0::2] + 1
        both = np.flatnonzero(beyond > 1e-12)  # few pixels are shared by two columns of cells
        next_places, next_shares = places[:, both] + tall[both], shares[:, both] * beyond[both]
        shares *= own - beyond
        covered = np.bincount(places.ravel(), shares.ravel(), int(cells.sum()))
        covered += np.bincount(next_places.ravel(), next_shares.ravel(), len(covered))
        covered = covered.cumsum()
        # Where the cells go in `out`, column of cells by column; those beyond the grid are empty.
        nth = np.arange(columns.sum()) - np.repeat(np.cumsum(columns) - columns, columns)
        top = np.repeat((into * grid + row0) * grid + column0, columns) + nth
        rows = np.repeat(rows, columns)
        down = np.arange(len(covered)) - np.repeat(np.cumsum(rows) - rows, rows)
        kept = np.flatnonzero(covered > 1e-9)
        out.reshape(-1)[(np.repeat(top, rows) + down * grid)[kept]] = np.minimum(covered[kept], 1.0)

    def _cut_up(self, times: int) -> Strips:
        """The same shapes on pixels of a `times`-th of the size."""
        runs = np.flatnonzero(np.diff(self.owner * (int(self.x.max()) + 1) + self.x, prepend=-1))
        lengths = np.diff(np.append(runs, len(self.x)))
        # Each column of strips, `times` times over, to keep them sorted.
        index = np.concatenate([np.tile(np.arange(a, a + n), times) for a, n in zip(runs, lengths, strict=True)])
        nth = np.concatenate([np.repeat(np.arange(times), n) for n in lengths])
        return Strips(self.owner[index], self.x[index] * times + nth, self.top[index] * times,
                      self.bottom[index] * times, self.count)  # fmt: skip

    def pick(self, masks: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Pixels of masks, each as likely as any other: (M,) mask numbers and (M,) draws in [0, 1) -> (M, 2) int64 xy.

        Every mask that is asked for has a pixel.
        """
        ends = np.cumsum(self.bottom - self.top, dtype=np.int64)
        areas = self.areas()
        before = np.cumsum(areas) - areas
        pixel = before[masks] + np.minimum((uniform * areas[masks]).astype(np.int64), areas[masks] - 1)
        strip = np.searchsorted(ends, pixel, "right")
        return np.stack([self.x[strip], self.bottom[strip] - (ends[strip] - pixel)], 1)

    def contains(self, masks: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Whether pixels (x, y) >= 0 lie on masks: bool, of the shape of `x`; `masks` broadcasts to it."""
        if not len(self.x):
            return np.zeros(np.broadcast(masks, x).shape, bool)
        rows = int(max(self.bottom.max(), y.max(initial=0) + 1))
        columns = int(max(self.x.max(), x.max(initial=0))) + 1
        starts = (self.owner.astype(np.int64) * columns + self.x) * rows + self.top
        place = (masks * columns + x) * rows + y
        strip = np.maximum(np.searchsorted(starts, place, "right") - 1, 0)
        return (place >= starts[strip]) & (place < starts[strip] + (self.bottom - self.top)[strip])

    def extents(self) -> np.ndarray:
        """x1 y1 x2 y2 of each mask in pixels, int64 (count, 4), around its outermost pixels; zeros where it has none."""
        out = np.zeros((self.count, 4), np.int64)
        bounds = self.bounds()
        there = np.flatnonzero(np.diff(bounds))
        if len(there):
            first = bounds[there]
            out[there] = np.stack([np.minimum.reduceat(self.x, first), np.minimum.reduceat(self.top, first),
                                   np.maximum.reduceat(self.x, first) + 1,
                                   np.maximum.reduceat(self.bottom, first)], 1)  # fmt: skip
        return out


def strips_of_runs(counts: Sequence[str], heights: np.ndarray, widths: np.ndarray) -> Strips:
    """Decode compressed COCO strings, as `schema.run_lengths` does, all at once.

    Args:
        counts: M strings.
        heights, widths: int64 (M,): of the masks, in pixels.

    Raises:
        ValueError: as `run_lengths`, for the first string that is broken.
    """
    pixels = heights * widths
    try:
        if pixels.max(initial=0) >= 2**30:
            raise _BrokenError
        starts, lengths, owner = _ones(counts, pixels)
    except _BrokenError:
        starts, lengths, owner = _ones_slowly(counts, pixels)
    strips = Strips(owner, starts, starts, starts + lengths, len(counts))
    tall = strips.each(heights.astype(starts.dtype))
    x = (starts / tall).astype(starts.dtype)  # exact below 2 ** 53, and faster than the division of whole numbers
    top = starts - x * tall
    bottom = top + lengths
    if (bottom <= tall).all():
        return Strips(owner, x, top, bottom, len(counts))
    # A run that goes on at the top of further columns: a strip in each.
    pieces = -(-bottom // tall)
    run = np.repeat(np.arange(len(x)), pieces)
    nth = (np.arange(len(run)) - np.repeat(np.cumsum(pieces) - pieces, pieces)).astype(x.dtype)
    tall = tall[run]
    return Strips(owner[run], x[run] + nth, np.where(nth == 0, top[run], 0),
                  np.minimum(bottom[run] - nth * tall, tall), len(counts))  # fmt: skip


def strips_of_masks(masks: Sequence[np.ndarray]) -> Strips:
    """The same of drawn masks, bool (height, width) each."""
    parts: list[tuple[np.ndarray, ...]] = []
    for number, mask in enumerate(masks):
        edges = np.diff(np.pad(mask.T.astype(np.int8), ((0, 0), (1, 1))), axis=1)
        (x, top), bottom = np.nonzero(edges == 1), np.nonzero(edges == -1)[1]
        parts.append((np.full(len(x), number), x, top, bottom))
    owner, x, top, bottom = (np.concatenate([part[i] for part in parts] or [np.zeros(0, int)]) for i in range(4))
    return Strips(owner, x, top, bottom, len(masks))


class _BrokenError(ValueError):
    """A string among many is broken."""


def _ones(counts: Sequence[str], pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Starts and lengths of the non-empty runs of ones, and whose they are. The format is told at `run_lengths`.

    In 32 bits; sums over all strings may run over, but differences of them don't.
    """
    if not len(counts):
        return (np.zeros(0, np.int64),) * 3
    try:
        characters = np.frombuffer("".join(counts).encode("ascii"), np.uint8) - np.uint8(48)
        ends = np.cumsum([len(text) for text in counts], dtype=np.int32)
    except (TypeError, UnicodeEncodeError):
        raise _BrokenError from None
    if ends[-1] == 0 or characters.max() > 63 or characters[ends - 1].max() >= 32:
        raise _BrokenError
    last = np.flatnonzero(characters < 32).astype(np.int32)
    of_string = np.diff(np.searchsorted(last, ends), prepend=0)  # numbers in each string
    if of_string.min() < 1:
        raise _BrokenError
    values = _numbers(characters, last)
    # A zero is added where a string has an odd count of numbers, so that runs of zeros and of ones alternate throughout.
    odd = of_string % 2
    pairs = (of_string + odd) // 2
    first = np.cumsum(pairs) - pairs
    values = np.insert(values, np.cumsum(of_string)[odd == 1], 0)
    zeros, ones = values[0::2].copy(), values[1::2].copy()
    leading = zeros[first]  # the first number is itself; later ones are differences to the last but one
    zeros[first] = 0
    zeros, ones = _sums_within(zeros, first, pairs), _sums_within(ones, first, pairs)
    zeros[first] = leading
    ones[(first + pairs - 1)[odd == 1]] = 0
    if zeros.min() < 0 or ones.min() < 0:
        raise _BrokenError
    both = zeros + ones
    total = np.add.reduceat(both, first, dtype=np.int64)
    if (total != pixels).any() or not np.logical_or.reduceat(ones > 0, first).all():
        raise _BrokenError
    starts = _sums_within(both, first, pairs) - ones
    owner = np.repeat(np.arange(len(counts), dtype=np.int32), pairs)
    kept = np.flatnonzero(ones)
    return starts[kept], ones[kept], owner[kept]


def _numbers(characters: np.ndarray, last: np.ndarray) -> np.ndarray:
    """The numbers whose last characters stand at `last`, int32: five bits per character, lowest first."""
    digits = np.diff(last, prepend=-1)
    if digits.max() > 6:
        raise _BrokenError  # of more than 30 bits
    values = (characters[last].astype(np.int32) ^ 16) - 16  # the fifth bit is the sign
    longer = np.flatnonzero(digits > 1)
    back = 1
    while len(longer):
        values[longer] = (values[longer] << 5) | (characters[last[longer] - back] & 31)
        back += 1
        longer = longer[digits[longer] > back]
    return values


def _sums_within(values: np.ndarray, first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Running sums that begin anew at each place of `first`, int32."""
    sums = np.cumsum(values, dtype=np.int32)
    return sums - np.repeat(sums[first] - values[first], counts)


def _ones_slowly(counts: Sequence[str], pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same, string by string, with `run_lengths`' errors and its larger numbers."""
    parts = []
    for number, (text, size) in enumerate(zip(counts, pixels.tolist(), strict=True)):
        runs = run_lengths(text, size)
        ends = runs.cumsum()[1::2]
        ones = np.flatnonzero(runs[1::2])
        parts.append((ends[ones] - runs[1::2][ones], runs[1::2][ones], np.full(len(ones), number)))
    starts, lengths, owner = (np.concatenate([part[i] for part in parts]) for i in range(3))
    return starts, lengths, owner
