"""What a picture is recognised by: two perceptual hashes to find candidates, and a thumbnail to tell them apart.

The hashes are imagehash's: pHash (the lowest 8 x 8 frequencies of the picture's cosine transform against their median)
and dHash (the sign of the difference between neighbours). Medical pictures of one kind share what these see, so near
hashes prove nothing; the thumbnail comparison (our design) looks at the fine structure that two patients don't share.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

THUMBNAIL = 96  # pixels
_DECODE = 256  # the size that decoding aims at
_SCALES = (1.0, 0.96, 0.98, 1.02, 1.04)
_LOW, _HIGH = 2.0, 0.7  # pixels: the band of the thumbnail that is compared lies between these two blurs


def open_grey(data: bytes) -> Image.Image:
    """A picture in shades of grey, decoded at a reduced scale where its format can.

    Raises:
        OSError, ValueError: it can't be decoded.
    """
    with Image.open(io.BytesIO(data)) as picture:
        picture.draft("L", (_DECODE, _DECODE))
        return picture.convert("L")


def coarse_hash(picture: Image.Image) -> np.ndarray:
    """uint64 (1,): bits that change little when a picture is encoded, scaled or lit anew, or cropped a little."""
    import imagehash

    return np.packbits(imagehash.phash(picture).hash).view(np.uint64)


def fine_hash(picture: Image.Image) -> np.ndarray:
    """uint64 (4,): on which side of each point of a 16 x 16 grid the picture is lighter (imagehash's dHash)."""
    import imagehash

    return np.packbits(imagehash.dhash(picture, 16).hash).view(np.uint64)


def thumbnail(picture: Image.Image) -> np.ndarray:
    """float32 (96, 96), for `similarity`."""
    return np.asarray(picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), np.float32)


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """How alike two thumbnails are in their fine structure, -1..1: the largest normalised correlation of their
    band-passed values over small shifts (by Fourier transform) and changes of scale (a crop by a few per cent)."""
    reference = np.fft.rfft2(_structure(a))
    best = -1.0
    for scale in _SCALES:
        other = np.fft.rfft2(_structure(_zoom(b, scale)))
        field = np.fft.irfft2(reference * other.conj(), s=a.shape)
        best = max(
            best,
            float(np.concatenate([field[:5, :5], field[:5, -4:], field[-4:, :5], field[-4:, -4:]], axis=None).max()),
        )
    return best


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Hamming distances between hashes, uint64 (..., words) that broadcast to each other -> int (...)."""
    different = a ^ b
    if hasattr(np, "bitwise_count"):
        return np.bitwise_count(different).sum(axis=-1, dtype=np.uint16)
    return _BITS[different.view(np.uint16)].sum(axis=-1, dtype=np.uint16)


_BITS = np.array([bin(i).count("1") for i in range(1 << 16)], np.uint8)


def _zoom(values: np.ndarray, scale: float) -> np.ndarray:
    if scale == 1:
        return values
    size = values.shape[0]
    margin = size * (1 - scale) / 2  # of the part that is seen; below 0 it reaches over the edge
    picture = Image.fromarray(np.pad(values, 4, mode="edge"))
    box = (4 + margin, 4 + margin, 4 + size - margin, 4 + size - margin)
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box=box))


def _structure(values: np.ndarray) -> np.ndarray:
    """The band between two blurs, with mean 0 and norm 1."""
    from scipy.ndimage import gaussian_filter

    band = gaussian_filter(values, _HIGH) - gaussian_filter(values, _LOW)
    band -= band.mean()
    return band / max(float(np.linalg.norm(band)), 1e-6)
