"""Pictures of a source -> the bytes that go into a shard: 8-bit, upright, without metadata."""

from medpclip.data.pictures.files import DEEP_MODES, ORIENTATION_TAG, read_picture_bytes, reduce_depth
from medpclip.data.pictures.picture import DECODING_ERRORS, Picture, PictureError, encode_picture
from medpclip.data.pictures.read import read_picture, read_size

__all__ = [
    "DECODING_ERRORS",
    "DEEP_MODES",
    "ORIENTATION_TAG",
    "Picture",
    "PictureError",
    "encode_picture",
    "read_picture",
    "read_picture_bytes",
    "read_size",
    "reduce_depth",
]
