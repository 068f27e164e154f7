"""Lets `import torchvision` work where its compiled operators don't load.

torchvision's wheels are built for CUDA; beside a CPU build of torch their C++ library doesn't load. torchvision itself allows
for that, but its `_meta_registrations` module describes two of the missing operators, `nms` and `qnms`, which raises
"operator torchvision::nms does not exist". open_clip, timm and transformers import torchvision, so none of them would import.

`install` watches for that one module, imported in the course of `import torchvision`, and declares the two operators just
before it runs, if the library didn't load. Nothing is done on a sound installation, and nothing imported until torchvision is.
The operators stay without a body: calling them is refused by torchvision with its own message.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_declared: list[Any] = []  # a torch.library.Library takes its declarations back when it is collected


class _DeclareMissingOperators:
    """Finds nothing; acts when it is asked for the module that needs the operators."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname == "torchvision._meta_registrations" and not _declared:
            extension = sys.modules.get("torchvision.extension")
            if extension is not None and not extension._has_ops():
                _declare_operators()


def _declare_operators() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)


def install() -> None:
    """Watch for torchvision's import; a second call changes nothing."""
    if not any(isinstance(finder, _DeclareMissingOperators) for finder in sys.meta_path):
        sys.meta_path.insert(0, _DeclareMissingOperators())
