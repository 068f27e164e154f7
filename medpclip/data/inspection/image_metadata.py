"""What an encoded image carries beside its pixels: nothing, in a shard.

Segments of JPEG are those of ITU-T T.81, annex B; chunks of PNG those of its specification (third edition, clause 11);
chunks of WebP those of RFC 9649.
"""

from __future__ import annotations

from collections.abc import Iterator

# What decoding needs. All else of PNG is text, time, EXIF, colour profiles, or unknown.
_PNG = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"pHYs"})
_WEBP = frozenset({b"VP8 ", b"VP8L", b"VP8X", b"ALPH"})
_SOI, _EOI, _SOS, _COM, _APP0, _APP14, _APP15 = 0xD8, 0xD9, 0xDA, 0xFE, 0xE0, 0xEE, 0xEF


def image_metadata(data: bytes) -> list[str]:
    """Names of the parts that don't belong into a shard; contents are not quoted. Empty for unknown formats."""
    if data[:2] == b"\xff\xd8":
        return sorted(set(_jpeg(data)))
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return sorted(set(_png(data)))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return sorted(set(_webp(data)))
    return []


def _jpeg(data: bytes) -> Iterator[str]:
    at = 2
    while at + 2 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == _EOI:
            if data[at + 2 :]:
                yield "bytes behind the JPEG's end"
            return
        body = data[at + 4 : at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")]
        jfif = marker == _APP0 and body.startswith(b"JFIF\0") and len(body) == 14
        adobe = marker == _APP14 and body.startswith(b"Adobe") and len(body) == 12
        if marker == _COM:
            yield "a JPEG comment"
        elif _APP0 <= marker <= _APP15 and not (jfif or adobe):
            yield f"JPEG segment APP{marker - _APP0}"
        at += 4 + len(body)
        if marker == _SOS:
            at = _end_of_scan(data, at)


def _end_of_scan(data: bytes, at: int) -> int:
    """The next marker that is neither a stuffed byte nor a restart."""
    while (at := data.find(b"\xff", at)) >= 0 and at + 1 < len(data):
        if data[at + 1] != 0 and not 0xD0 <= data[at + 1] <= 0xD7 and data[at + 1] != 0xFF:
            return at
        at += 1 if data[at + 1] == 0xFF else 2
    return len(data)


def _png(data: bytes) -> Iterator[str]:
    at, kind = 8, b""
    while at + 8 <= len(data) and kind != b"IEND":
        kind = data[at + 4 : at + 8]
        if kind not in _PNG:
            yield f"PNG chunk {kind.decode('ascii', 'replace')}"
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    if kind == b"IEND" and at < len(data):
        yield "bytes behind the PNG's end"


def _webp(data: bytes) -> Iterator[str]:
    at = 12
    while at + 8 <= len(data):
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if kind not in _WEBP:
            yield f"WebP chunk {kind.decode('ascii', 'replace').strip()}"
        at += 8 + size + size % 2
