"""What the code is known by: its own hash, since a version stays the same while code is worked on, and the packages' versions."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import metadata
from pathlib import Path

# By which embeddings are made.
EMBEDDING_PACKAGES = ("medpclip", "torch", "open_clip_torch", "timm", "transformers", "numpy", "pillow", "simplejpeg")
_PACKAGE = Path(__file__).resolve().parents[1]


@cache
def code_sha256(*parts: str) -> str:
    """SHA-256 of the package's Python files with their names.

    Args:
        parts: files or folders of the package, as "models"; none for all of it.
    """
    digest = hashlib.sha256()
    places = [_PACKAGE / part for part in parts] or [_PACKAGE]
    files = {path for place in places for path in ([place] if place.is_file() else place.rglob("*.py"))}
    for name, path in sorted((path.relative_to(_PACKAGE).as_posix(), path) for path in files):
        content = path.read_bytes()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


@cache
def installed_version(package: str) -> str | None:
    """A package's version; None where it isn't installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
