"""Image files without what they carry besides the picture: the compressed data stay to the bit."""

from __future__ import annotations

import zlib

from medpclip.data.pictures.picture import PictureError

_EOI, _SOS, _DQT, _DNL, _DRI = 0xD9, 0xDA, 0xDB, 0xDC, 0xDD
_APP0, _APP14 = 0xE0, 0xEE


def strip_jpeg(data: bytes) -> bytes:
    """A JPEG without metadata segments and without anything behind its end; the compressed data stay to the bit.

    Only what decoding needs is kept of the APPn segments: JFIF (without its thumbnail) and Adobe (the colour
    transform). Markers are those of ITU-T T.81, annex B.

    Raises:
        PictureError: the segments are broken, or the end is missing (a truncated file).
    """
    if data[:2] != b"\xff\xd8":
        raise PictureError("image can't be decoded", "no JPEG start marker")
    out = [data[:2]]
    at = 2
    while True:
        start = at
        if data[at : at + 1] != b"\xff":
            raise PictureError("image can't be decoded", f"no JPEG marker at byte {at}")
        while data[at : at + 1] == b"\xff":  # any number of fill bytes
            at += 1
        marker = data[at] if at < len(data) else -1
        at += 1
        if marker == _EOI:
            out.append(b"\xff\xd9")
            return b"".join(out)
        length = int.from_bytes(data[at : at + 2], "big")
        if marker < 0 or length < 2 or at + length > len(data):
            raise PictureError("image is truncated", f"JPEG segment at byte {start} is cut off")
        body = data[at + 2 : at + length]
        at += length
        if _is_needed(marker) and (marker != _DNL or len(body) == 2):
            out.append(b"\xff" + bytes([marker]) + data[at - length : at])
        elif kept := _needed_part(marker, body):
            out.append(b"\xff" + bytes([marker]) + (len(kept) + 2).to_bytes(2, "big") + kept)
        if marker == _SOS:
            end = _scan_end(data, at)
            out.append(data[at:end])
            at = end


def _is_needed(marker: int) -> bool:
    """Whether decoding needs a segment as it stands: frames, tables and scans (table B.1)."""
    return 0xC0 <= marker <= 0xCF or marker in (_SOS, _DQT, _DNL, _DRI)


def _needed_part(marker: int, body: bytes) -> bytes:
    if marker == _APP0 and body.startswith(b"JFIF\0") and len(body) >= 14:
        return body[:12] + b"\0\0"  # width and height of the thumbnail: none
    if marker == _APP14 and body.startswith(b"Adobe") and len(body) >= 12:
        return body[:12]
    return b""


def _scan_end(data: bytes, at: int) -> int:
    """Where the entropy-coded data that begin at `at` end: the first marker that is neither stuffing nor a restart."""
    while (at := data.find(b"\xff", at)) >= 0 and at + 1 < len(data):
        following = data[at + 1]
        if following == 0xFF:  # a fill byte
            at += 1
        elif following == 0 or 0xD0 <= following <= 0xD7:
            at += 2
        else:
            return at
    raise PictureError("image is truncated", "the JPEG end marker is missing")


_PNG = b"\x89PNG\r\n\x1a\n"


def strip_png(data: bytes) -> bytes | None:
    """A PNG of 8-bit grey or RGB with nothing but its header and its picture; None for any other, or a damaged one.

    Chunks are those of the PNG specification (third edition, section 5): the ones kept are IHDR, IDAT and IEND.
    """
    out = [_PNG]
    at = len(_PNG)
    while data.startswith(_PNG) and at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        kind, end = data[at + 4 : at + 8], at + 12 + length
        if end > len(data) or zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return None
        body = data[at + 8 : end - 4]
        if kind == b"IHDR" and (body[8:10] not in (b"\x08\x00", b"\x08\x02") or body[12:13] != b"\x00"):
            return None  # not 8 bits deep, neither grey nor RGB, or interlaced
        if kind in (b"IHDR", b"IDAT", b"IEND"):
            out.append(data[at:end])
        if kind == b"IEND":
            return b"".join(out)
        at = end
    return None
