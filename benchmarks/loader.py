"""What the loader costs: against the decoder alone, and against the image-text pipeline as open_clip builds it.

    taskset -c 0 python benchmarks/loader.py speed
    taskset -c 0 python benchmarks/loader.py speed --sizes 256 512 1024 --formats jpg png --out loader.json
    taskset -c 0 python benchmarks/loader.py speed --data SHARDS
    python benchmarks/loader.py order
    python benchmarks/loader.py memory --samples 50000

`speed`: images per second of processor time on one core, all in one process, pages cached, each way in turn and the
median taken, so that a slow moment of the machine hits all of them. The image-text pipeline has neither regions nor a
tokenizer; ours has 16 regions an image. "decode" decodes and resizes whole pictures that are in memory already; "same
windows" those windows of them that our augmentation takes: a window below twice the target's side can't be decoded at
half size. "windows" are regions' squares at the picture's own resolution, which a model may ask for: another decoding,
at full size, and a resize for each. `order`: how well batches are mixed, and how long the first one takes. `memory`: of
all processes.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import medpclip
from medpclip.data.loading import batch as batch_module
from medpclip.data.loading.config import Augmentation, DataConfig
from medpclip.data.loading.decode import decode, reduction, render
from medpclip.data.loading.geometry import Window
from medpclip.data.loading.loader import RegionDataset, make_loader, open_dataset
from medpclip.data.loading.order import EpochPlan
from medpclip.data.loading.windows import WindowSpec
from medpclip.data.schema import Region, Sample, encode_mask
from medpclip.data.shards import MANIFEST, ShardWriter, read_manifest

_WARM_UP = 5000  # samples until all buffers are in use
SIDE, GRID, FILL = 224, 56, (122, 116, 104)  # ViT-B/16's image, its grid for mask prompts, CLIP's mean colour


def generated(size: int, seed: int, grey: bool) -> tuple[np.ndarray, list[Region]]:
    """A smooth, slightly noisy picture with 20 ellipses, and their boxes and masks."""
    rng = np.random.default_rng(seed)
    coarse = (rng.random((size // 16, size // 16, 1 if grey else 3)) * 160 + 40).astype(np.uint8)
    smooth = Image.fromarray(coarse[:, :, 0] if grey else coarse).resize((size, size), Image.Resampling.BICUBIC)
    picture = np.asarray(smooth).astype(np.float32) + rng.normal(0, 4, (size, size) if grey else (size, size, 1))
    rows, columns = np.mgrid[:size, :size] + 0.5
    regions = []
    for number in range(20):
        x, y = rng.uniform(0.15, 0.85, 2) * size
        a, b = rng.uniform(0.03, 0.14, 2) * size
        mask = ((columns - x) / a) ** 2 + ((rows - y) / b) ** 2 < 1
        picture[mask] += 40
        down, across = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = [float(across[0]), float(down[0]), float(np.ptp(across) + 1), float(np.ptp(down) + 1)]
        regions.append(Region(number, f"kind {number % 5}", bbox=box, segmentation=encode_mask(mask)))
    return picture.clip(0, 255).astype(np.uint8), regions


def make_shards(folder: Path, size: int, extension: str, images: int, per_shard: int = 100, grey: bool = False) -> None:
    """Shards of generated pictures; JPEG quality 90."""
    with ShardWriter(folder, per_shard) as writer:
        for number in range(images):
            picture, regions = generated(size, number, grey)
            stream = io.BytesIO()
            Image.fromarray(picture).save(stream, {"jpg": "JPEG", "png": "PNG"}[extension], quality=90)
            sample = Sample(f"{number:08x}", "bench", "train", f"g{number}", "microscopy", size, size, regions=regions)
            sample.captions = ["a generated picture"]
            writer.add(sample, stream.getvalue(), extension)
        writer.finish(recipe={"name": "bench"})


def open_clip_pipeline(folder: Path, batch: int) -> Iterator[Any]:
    """Shards -> batches as open_clip_train.data builds its webdataset pipeline, without workers and tokenizer."""
    import open_clip
    import webdataset as wds

    transform = open_clip.image_transform(SIDE, is_train=True)
    shards = [str(folder / shard["name"]) for shard in read_manifest(folder)["shards"] if shard["split"] == "train"]
    pipeline = wds.DataPipeline(
        wds.SimpleShardList(shards * 1000),
        wds.tarfile_to_samples(),
        wds.shuffle(256, initial=64),
        wds.decode("pilrgb"),
        wds.rename(image="jpg;png;jpeg;webp", text="json"),
        wds.map_dict(image=transform, text=lambda facts: (facts["captions"] or [""])[0]),
        wds.to_tuple("image", "text"),
        wds.batched(batch, partial=False),
    )
    return iter(pipeline)


def ours(
    folder: Path, batch: int, regions: int, augmentation: Augmentation, window: WindowSpec | None = None
) -> Iterator[Any]:
    """The indexed reader in this process."""
    config = DataConfig([folder], workers=0, regions_per_image=regions, augmentation=augmentation)
    return make_loader(RegionDataset(config, SIDE, GRID, FILL, seed=0, window=window), batch)


def decoder_alone(folder: Path, batch: int, augmentation: Augmentation | None) -> Iterator[None]:
    """Decoding and resizing of what is in memory already: whole pictures, or the windows that training takes."""
    dataset = RegionDataset(DataConfig([folder], workers=0), SIDE, GRID, FILL, seed=0)
    records = []
    for index in range(min(len(dataset), 512)):
        row, image, facts = dataset.folders[0].read(index)
        stated = json.loads(facts)
        records.append((image, row.extension, stated["width"], stated["height"]))
    rng = np.random.default_rng(0)
    while True:
        for index in rng.integers(len(records), size=batch):
            image, extension, width, height = records[index]
            window = Window.whole(width, height)
            if augmentation:
                draws = rng.random(batch_module.DRAWS).tolist()
                window = batch_module.draw_window(width, height, False, augmentation, SIDE, draws)
            pixels, factor = decode(image, extension, width, height, reduction(window, SIDE))
            render(pixels, factor, window, SIDE, FILL)
        yield


def compare(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Median images per second of each way."""
    still = Augmentation(zoom=(1.0, 1.0), shift=0.0, brightness=0.0, contrast=0.0)
    ways: dict[str, Iterator[Any]] = {
        "open_clip": open_clip_pipeline(folder, args.batch),
        "decode": decoder_alone(folder, args.batch, None),
        "decode, same windows": decoder_alone(folder, args.batch, Augmentation()),
        "ours": ours(folder, args.batch, args.regions, Augmentation()),
        "ours, not augmented": ours(folder, args.batch, args.regions, still),
    }
    for size in args.windows:
        name = f"ours, with windows of {size} px"
        ways[name] = ours(folder, args.batch, args.regions, Augmentation(), WindowSpec(size, 2.0))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(args.rounds + 1):
        for name, way in ways.items():
            began = time.process_time()
            for _ in range(args.batches):
                next(way)
            if round_number:
                seconds[name].append((time.process_time() - began) / (args.batches * args.batch))
    return {name: 1 / statistics.median(values) for name, values in seconds.items()}


def stages(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Microseconds per image of the parts of our way, by a clock around each; clocks cost a little, too."""
    parts = [
        "decode",
        "render",
        "_looks_sound",
        "look",
        "image_facts",
        "region_facts",
        "sample_prompts",
    ]
    spent = dict.fromkeys([*parts, "read", "visible", "draw", "strips", "all"], 0.0)

    def clocked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any, **named: Any) -> Any:
            began = time.process_time()
            try:
                return function(*given, **named)
            finally:
                spent[name] += time.process_time() - began

        return timed

    table, reader = batch_module.RegionTable, RegionDataset
    before = {name: getattr(batch_module, name) for name in parts}
    methods = [
        (table, "visible", "visible"),
        (table, "draw", "draw"),
        (table, "strips", "strips"),
        (reader, "record", "read"),
    ]
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in methods]
    try:
        for name in parts:
            setattr(batch_module, name, clocked(name, before[name]))
        for owner, name, label in methods:
            setattr(owner, name, clocked(label, getattr(owner, name)))
        batches = ours(folder, args.batch, args.regions, Augmentation())
        next(batches)
        spent = dict.fromkeys(spent, 0.0)
        began = time.process_time()
        for _ in range(args.batches):
            next(batches)
        spent["all"] = time.process_time() - began
    finally:
        for name, function in before.items():
            setattr(batch_module, name, function)
        for owner, name, function in kept:
            setattr(owner, name, function)
    return {name.strip("_"): 1e6 * value / (args.batches * args.batch) for name, value in spent.items()}


def speed(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per kind of shards."""
    kinds = [(size, extension) for extension in args.formats for size in args.sizes]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for size, extension in kinds if args.data is None else [(0, "")]:
            folder = args.data or Path(scratch) / f"{extension}{size}"
            if args.data is None:
                make_shards(folder, size, extension, args.images, grey=args.grey)
            medians = compare(folder, args)
            row: dict[str, Any] = {"images": f"{extension} {size}" if args.data is None else folder.name}
            row |= {f"{name}/s": round(value, 1) for name, value in medians.items()}
            row["ours / open_clip"] = round(medians["ours"] / medians["open_clip"], 2)
            row["ours / decode"] = round(medians["ours"] / medians["decode"], 2)
            row["ours / decode, same windows"] = round(medians["ours"] / medians["decode, same windows"], 2)
            row["ours, not augmented / decode"] = round(medians["ours, not augmented"] / medians["decode"], 2)
            row["stages (us)"] = {name: round(value, 1) for name, value in stages(folder, args).items()}
            rows.append(row)
            for name, value in row.items():
                print(f"{name:>32}: {value}", flush=True)
    return rows


def order(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Distinct shards per batch of 256, and the time until the first batch, of both readers."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "small"
        make_shards(folder, 32, "jpg", 6400, per_shard=100)
        shard_of = {}
        for shard in read_manifest(folder)["shards"]:
            index = json.loads((folder / shard["name"]).with_suffix(".index.json").read_bytes())
            shard_of |= dict.fromkeys(index["keys"], shard["name"])
        plan = EpochPlan((6400,), (1.0,), 0)
        whole = [len(set((plan.draws(0)[0][i : i + 256] // 100).tolist())) for i in range(0, 6400 - 255, 256)]
        rows.append({"reader": "a full permutation, by numbers", "shards per batch": round(statistics.mean(whole), 1)})
        for reader, buffer in (("indexed", 1000), ("streaming", 1000), ("streaming", 3000)):
            config = DataConfig([folder], workers=args.workers, reader=reader, shuffle_buffer=buffer)
            began = time.perf_counter()
            batches = make_loader(open_dataset(config, SIDE, GRID, FILL, 0), 256)
            first = next(batches)
            waited = time.perf_counter() - began
            seen = [len({shard_of[key] for key in b.keys}) for b in [first, *(next(batches) for _ in range(24))]]
            row = {"reader": reader, "buffer": buffer if reader == "streaming" else None}
            rows.append(
                row | {"shards per batch": round(statistics.mean(seen), 1), "first batch (s)": round(waited, 2)}
            )
            del batches
        for row in rows:
            print(row, flush=True)
    return rows


def memory(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Proportional memory of this process and its workers, over many samples."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.data or Path(scratch) / "shards"
        if args.data is None:
            make_shards(folder, 256, "jpg", 2000)
        config = DataConfig([folder], workers=args.workers, reader=args.reader, regions_per_image=args.regions)
        batches = make_loader(open_dataset(config, SIDE, GRID, FILL, 0), args.batch)
        seen, marks = 0, []
        for part in range(11):
            most = 0
            while seen < args.samples * part / 10 + _WARM_UP:
                seen += len(next(batches).keys)
                if seen // args.batch % 8 == 0:  # the most of many moments: what waits in the queue comes and goes
                    most = max(most, _memory())
            marks.append(most)
            print(f"{seen:>8} samples: {marks[-1] / 2**20:8.1f} MiB", flush=True)
        growth = marks[-1] / marks[0] - 1
        print(f"growth: {growth:.1%}")
        return [{"samples": seen, "MiB": [round(mark / 2**20, 1) for mark in marks], "growth": round(growth, 4)}]


def _memory() -> int:
    """Proportional set size, in bytes, of this process and its children; Linux only."""
    total = 0
    own = Path("/proc/self/task")
    children = [pid for task in own.iterdir() for pid in (task / "children").read_text().split()]
    for pid in ["self", *children]:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="speed", choices=["speed", "order", "memory"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[512], help="sides of generated pictures")
    parser.add_argument("--formats", nargs="+", default=["jpg"], choices=["jpg", "png"])
    parser.add_argument("--grey", action="store_true", help="generate grey pictures")
    parser.add_argument("--images", type=int, default=300, help="generated pictures per kind")
    parser.add_argument("--data", type=Path, help="a folder of shards of your own")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=4, help="per round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--regions", type=int, default=16)
    parser.add_argument("--windows", type=int, nargs="*", default=[64], help="sides of regions' windows, to compare")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--reader", default="indexed", choices=["indexed", "streaming"])
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--out", type=Path, help="write a JSON file, too")
    args = parser.parse_args()
    if args.data is not None and not (args.data / MANIFEST).is_file():
        parser.error(f"{args.data}: no {MANIFEST}")
    torch.set_num_threads(1)
    versions = {name: __import__(name).__version__ for name in ("numpy", "PIL", "torch", "open_clip", "webdataset")}
    versions |= {"medpclip": medpclip.__version__, "python": platform.python_version(), "machine": platform.machine()}
    # As the loader's workers do. After all imports: the collector would go through their objects once, and so copy the
    # pages that this process shares with its workers.
    gc.freeze()
    print(versions)
    rows = {"speed": speed, "order": order, "memory": memory}[args.what](args)
    if args.out:
        args.out.write_text(json.dumps({"what": args.what, "versions": versions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
