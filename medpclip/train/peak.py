"""What a device can compute at most: the other half of MFU."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import torch

# Dense teraFLOP/s with float32 accumulation, of the boards at full clock: (name of the device, fp16 and bf16 on tensor
# cores, tf32, fp32 without tensor cores); None where the board has no such unit. From NVIDIA's data sheets of A10, A30,
# A40, A100, B200 (HGX), H100, H200, L4, L40, L40S, RTX A6000, RTX 6000 Ada, T4 and V100, halved where they state
# sparsity, and from its white papers on the architectures of GA102 (appendix A) and Ada (appendix A).
_BOARDS: tuple[tuple[str, float | None, float | None, float], ...] = (
    (r"B200\b", 2250.0, 1125.0, 75.0),
    (r"(H100|H200) NVL", 835.5, 417.5, 60.0),
    (r"H100 PCIe", 756.5, 378.0, 51.0),
    (r"(GH200|H200|H100)\b", 989.4, 494.7, 67.0),
    (r"A100\b", 312.0, 156.0, 19.5),
    (r"A40\b", 149.7, 74.8, 37.4),
    (r"A30\b", 165.0, 82.0, 10.3),
    (r"A10\b", 125.0, 62.5, 31.2),
    (r"RTX A6000\b", 154.8, 77.4, 38.7),
    (r"RTX 6000 Ada\b", 364.2, 182.1, 91.1),
    (r"L40S\b", 362.0, 183.0, 91.6),
    (r"L40\b", 181.0, 90.5, 90.5),
    (r"L4\b", 121.0, 60.0, 30.3),
    (r"RTX 4090$", 165.2, 82.6, 82.6),
    (r"RTX 3090$", 71.0, 35.6, 35.6),
    (r"V100-SXM", 125.0, None, 15.7),
    (r"V100-PCIE", 112.0, None, 14.0),
    (r"\bT4\b", 65.0, None, 8.1),
)
_NO_BF16 = r"V100|\bT4\b"
_SECONDS = 0.2  # of measuring; the first product, which isn't timed, comes on top


@dataclass(frozen=True)
class Peak:
    """Attributes:
    flops: FLOP/s of one device.
    source: where that is from: "configured", "data sheet", "measured".
    """

    flops: float
    source: str


def peak_flops(device: torch.device, precision: str, configured: float | None = None) -> Peak:
    """What one device can do at most at a precision.

    Args:
        device: on which the model runs.
        precision: "fp32", "bf16", "pure_bf16" or "fp16".
        configured: teraFLOP/s, which count before anything else; None to look the device up, else to measure it.
    """
    if configured is not None:
        return Peak(configured * 1e12, "configured")
    if device.type == "cuda":
        tf32 = torch.get_float32_matmul_precision() != "highest"
        known = from_data_sheet(torch.cuda.get_device_name(device), precision, tf32)
        if known is not None:
            return Peak(known * 1e12, "data sheet")
    return Peak(_measured(device, precision), "measured")


def from_data_sheet(name: str, precision: str, tf32: bool = False) -> float | None:
    """TeraFLOP/s of a GPU by the name that its driver gives; None for a part of one (MIG), a laptop's, or an unknown one.

    Args:
        name: as `torch.cuda.get_device_name` says it.
        precision: of the run.
        tf32: whether torch rounds the factors of float32 products to TF32.
    """
    if "MIG" in name or "Laptop" in name or "Max-Q" in name:
        return None
    for pattern, half, rounded, full in _BOARDS:
        if re.search(pattern, name):
            if precision == "fp32":
                return rounded if tf32 and rounded is not None else full
            return None if "bf16" in precision and re.search(_NO_BF16, name) else half
    return None


def _measured(device: torch.device, precision: str) -> float:
    """The fastest of a few square products, in a fifth of a second (a product that takes longer is the only one)."""
    kinds = {"fp32": torch.float32, "fp16": torch.float16}
    size = 4096 if device.type == "cuda" else 512
    # No randn: it would move the run's random state.
    factor = torch.full((size, size), 0.01, device=device, dtype=kinds.get(precision, torch.bfloat16))
    _wait(factor @ factor)
    best, begin = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - begin < _SECONDS:
        started = time.perf_counter()
        _wait(factor @ factor)
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best


def _wait(result: torch.Tensor) -> None:
    if result.device.type == "cuda":
        torch.cuda.synchronize(result.device)
