"""What R prompts cost: one prompted pass against the plain pass, and regions per second against crops.

    python benchmarks/one_pass.py --trunk ViT-B-16 --regions 16 --batch 8
    python benchmarks/one_pass.py --glimpse 4

Ratios of medians over rounds in which the ways take turns, so that a slow moment of the machine hits all of them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch

import medpclip  # noqa: F401 (mends CPU builds of torchvision)
from medpclip.models import FusionConfig, ModelConfig, Prompts
from medpclip.models.fusions import FUSION_KINDS
from medpclip.models.load import build_model
from medpclip.models.prompts import Windows


def random_prompts(batch: int, regions: int, grid: int) -> Prompts:
    """Boxes, clicks and masks for every region: the dearest case."""
    prompts = Prompts.empty(batch, regions, 4, grid)
    prompts.points, prompts.point_labels = torch.rand(batch, regions, 4, 2), torch.ones(batch, regions, 4).long()
    corner = torch.rand(batch, regions, 2) * 0.6
    prompts.boxes, prompts.box_valid = torch.cat([corner, corner + 0.3], -1), torch.ones(batch, regions).bool()
    prompts.masks = (torch.rand(batch, regions, grid, grid) > 0.7).float()
    prompts.mask_valid[:] = True
    return prompts


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trunk", default="ViT-B-16")
    parser.add_argument("--fusion", default="region_tokens", choices=FUSION_KINDS)
    parser.add_argument("--glimpse", type=int, default=0, help="patches each way, of region_tokens")
    parser.add_argument("--regions", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = build_model(ModelConfig(trunk=args.trunk, fusion=FusionConfig(args.fusion, glimpse=args.glimpse)))
    model.eval().to(args.device)
    size = model.preprocess.image_size
    images = torch.randn(args.batch, 3, size, size, device=args.device)
    prompts = random_prompts(args.batch, args.regions, model.mask_grid).to(args.device)
    windows = None
    if model.fusion.window is not None:
        side = model.fusion.window.size
        rects = prompts.boxes + torch.tensor([-0.1, -0.1, 0.1, 0.1], device=args.device)
        windows = Windows(torch.randn(args.batch, args.regions, 3, side, side, device=args.device), rects)

    def crops() -> None:
        for _ in range(args.regions):
            model.encode_image(images)

    ways: dict[str, Callable[[], object]] = {
        "plain": lambda: model.encode_image(images),
        "prompted": lambda: model.encode_regions(images, prompts, windows=windows),
        "crops": crops,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        for warm in (True, *[False] * args.rounds):
            for name, way in ways.items():
                if warm and name == "crops":
                    continue
                began = time.perf_counter()
                way()
                if args.device != "cpu":
                    torch.cuda.synchronize()
                if not warm:
                    seconds[name].append(time.perf_counter() - began)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    count = args.batch * args.regions
    print(
        json.dumps(
            {
                "trunk": args.trunk,
                "fusion": args.fusion,
                "glimpse": args.glimpse,
                "regions": args.regions,
                "batch": args.batch,
                "prompted / plain": round(median["prompted"] / median["plain"], 3),
                "regions per second": round(count / median["prompted"], 1),
                "regions per second by crops": round(count / median["crops"], 1),
                "device": args.device,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "machine": platform.processor() or platform.machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
