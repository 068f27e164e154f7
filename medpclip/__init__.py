"""Region-aware medical CLIP: a CLIP that answers for the whole image and for a region that someone points at.

    model = medpclip.load("runs/quickstart/train")

Importing this package imports no torch; `load` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medpclip import _torchvision_hook

if TYPE_CHECKING:
    from medpclip.api import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

_torchvision_hook.install()


def __getattr__(name: str) -> Any:
    if name == "load":
        from medpclip.api import load

        return load
    raise AttributeError(f"module 'medpclip' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
