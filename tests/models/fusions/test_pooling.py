"""Means of patches, against loops."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from medpclip.models import FusionConfig, ModelConfig, Prompts, RegionCLIP
from medpclip.models.fusions.pooling import RoIAlign
from medpclip.models.load import build_model

CELLS = 4  # patches each way
BOX = (0.30, 0.40, 0.86, 0.63)
TINY = (0.30, 0.40, 0.34, 0.43)  # smaller than a patch
CLICK = (0.3, 0.6)


def build(trunk: Path, kind: str) -> RegionCLIP:
    torch.manual_seed(0)
    return build_model(ModelConfig(str(trunk), fusion=FusionConfig(kind))).eval()  # type: ignore[arg-type]


def prompts_of(model: RegionCLIP) -> Prompts:
    """Rows: a box, a tiny one, a click, a mask, an empty mask, nothing."""
    prompts = Prompts.empty(2, 6, 1, model.mask_grid)
    prompts.boxes[:, :2], prompts.box_valid[:, :2] = torch.tensor([BOX, TINY]), True
    prompts.points[:, 2, 0], prompts.point_labels[:, 2, 0] = torch.tensor(CLICK), 1
    prompts.masks[:, 3, 5:12] = torch.rand(7, 16, generator=torch.Generator().manual_seed(0))
    prompts.mask_valid[:, 3:5] = True
    return prompts


def overlap(low: float, high: float, cell: int) -> float:
    return max(0.0, min(high, (cell + 1) / CELLS) - max(low, cell / CELLS))


def mask_weights(prompts: Prompts, row: int, column: int) -> list[float]:
    boxes = [overlap(b[0], b[2], column) * overlap(b[1], b[3], row) for b in (BOX, TINY)]
    middle = (column + 0.5) / CELLS, (row + 0.5) / CELLS
    click = math.exp(-0.5 * (math.dist(CLICK, middle) * CELLS) ** 2)
    mask = float(prompts.masks[0, 3, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].mean())
    return [*boxes, click, mask, 1.0, 1.0]


def bilinear(dense: Tensor, x: float, y: float) -> Tensor:
    """Of (cells, cells, D), whose values stand for the cells' middles; x and y in [0, 1]."""
    out = torch.zeros(dense.shape[-1])
    x, y = (min(max(v * CELLS - 0.5, 0.0), CELLS - 1) for v in (x, y))
    for row in range(CELLS):
        for column in range(CELLS):
            out += max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row)) * dense[row, column]
    return out


@torch.no_grad()
def test_mask_pooling_equals_a_loop(micro_trunk: Path) -> None:
    model, images = build(micro_trunk, "mask_pooling"), torch.randn(2, 3, 64, 64)
    prompts = prompts_of(model)
    found = model.encode_regions(images, prompts)[1]
    patches = model.encode_patches(images, normalize=False)
    sums = torch.zeros(2, 6, patches.shape[-1])
    for n in range(CELLS**2):
        for r, weight in enumerate(mask_weights(prompts, *divmod(n, CELLS))):
            sums[:, r] += weight * patches[:, n]
    assert torch.allclose(found, normalize(sums, dim=-1), atol=1e-5)


@torch.no_grad()
def test_roi_align_equals_a_loop(micro_trunk: Path) -> None:
    model, images = build(micro_trunk, "roi_align"), torch.randn(2, 3, 64, 64)
    prompts = prompts_of(model)
    found = model.encode_regions(images, prompts, normalize=False)[1]
    dense = model.encode_patches(images, normalize=False)[0].unflatten(0, (CELLS, CELLS))
    click = (CLICK[0] - 0.125, CLICK[1] - 0.125, CLICK[0] + 0.125, CLICK[1] + 0.125)
    mask = (0.0, 5 / 16, 1.0, 12 / 16)
    for r, (x1, y1, x2, y2) in enumerate((BOX, TINY, click, mask, (0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0))):
        total = torch.zeros(dense.shape[-1])
        for i in range(14):
            for j in range(14):
                total += bilinear(dense, x1 + (x2 - x1) * (i + 0.5) / 14, y1 + (y2 - y1) * (j + 0.5) / 14)
        assert torch.allclose(found[0, r], total / 14**2, atol=1e-5), r


def test_roi_align_is_torchvisions(micro_trunk: Path) -> None:
    from torchvision.ops import roi_align

    model = build(micro_trunk, "roi_align")
    fusion, dense = model.fusion, torch.randn(1, 8, CELLS, CELLS)
    assert isinstance(fusion, RoIAlign)
    found = fusion.weights(model.grid, prompts_of(model))[0, :2] @ dense[0].flatten(1).T
    rois = torch.tensor([[0.0, *BOX], [0.0, *TINY]])
    with torch.compiler.set_stance("force_eager"):  # where its operator doesn't load, it compiles one of its own
        bins = roi_align(dense, rois, 7, spatial_scale=CELLS, sampling_ratio=2, aligned=True)
    expected = bins.mean((-2, -1))
    assert torch.allclose(found, expected, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mask_pooling", "roi_align"])
def test_dropped_patches_do_not_count(micro_trunk: Path, kind: str) -> None:
    model, images = build(micro_trunk, kind), torch.randn(2, 3, 64, 64)
    prompts = prompts_of(model)
    keep = torch.tensor([[0, 1, 5, 6, 9], [3, 7, 12, 14, 15]])  # of the second image, none of the tiny box
    found = model.encode_regions(images, prompts, normalize=False, keep=keep)[1]
    trunk = model.trunk
    patches = trunk.patches(trunk.run(trunk.embed(images, keep)))
    weights = model.fusion.weights(model.grid, prompts)
    for b in range(2):
        kept = weights[b][:, keep[b]]
        assert (kept[1].sum() == 0) == (b == 1)
        for r in range(6):
            own = kept[r] if kept[r].sum() > 0 else torch.ones(5)
            assert torch.allclose(found[b, r], (own[:, None] * patches[b]).sum(0) / own.sum(), atol=1e-5)
