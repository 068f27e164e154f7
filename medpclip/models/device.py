"""Where models run."""

from __future__ import annotations

import torch

from medpclip.errors import MedpclipError


def pick_device(name: str) -> torch.device:
    """The device that `name` means: "auto" takes a GPU where there is one, else it is a torch device's name.

    Raises:
        MedpclipError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise MedpclipError(f"device {name!r} is not to be had ({reason}); use auto or cpu") from None
    return device
