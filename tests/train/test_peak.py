"""What a device can do: as configured, else as printed, else as measured."""

import pytest
import torch

from medpclip.train.peak import from_data_sheet, peak_flops

CPU = torch.device("cpu")


def test_what_is_configured_counts_first() -> None:
    peak = peak_flops(CPU, "bf16", 123.5)
    assert (peak.flops, peak.source) == (123.5e12, "configured")


def test_a_product_is_measured_in_no_time_and_without_random_numbers() -> None:
    state = torch.random.get_rng_state()
    peak = peak_flops(CPU, "fp32")
    assert peak.source == "measured" and 1e8 < peak.flops < 1e14
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "precision", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756.5),
        ("NVIDIA H100 NVL", "fp16", 835.5),
        ("NVIDIA H200", "pure_bf16", 989.4),
        ("NVIDIA GH200 480GB", "bf16", 989.4),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312.0),
        ("NVIDIA A100 80GB PCIe", "fp32", 19.5),
        ("NVIDIA A10", "bf16", 125.0),
        ("NVIDIA L40S", "bf16", 362.0),
        ("NVIDIA L40", "bf16", 181.0),
        ("NVIDIA L4", "fp32", 30.3),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("Tesla V100-SXM2-32GB", "fp16", 125.0),
        ("Tesla T4", "fp16", 65.0),
        ("Tesla V100-SXM2-32GB", "bf16", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", None),
        ("NVIDIA GeForce GTX 1080", "fp32", None),
        ("NVIDIA A1000", "bf16", None),
    ],
)
def test_boards_are_told_apart(name: str, precision: str, teraflops: float | None) -> None:
    assert from_data_sheet(name, precision) == teraflops


def test_float32_products_may_be_rounded() -> None:
    assert from_data_sheet("NVIDIA H100 80GB HBM3", "fp32") == 67.0
    assert from_data_sheet("NVIDIA H100 80GB HBM3", "fp32", tf32=True) == 494.7
    assert from_data_sheet("Tesla V100-SXM2-32GB", "fp32", tf32=True) == 15.7
