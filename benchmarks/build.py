"""How fast sources become shards, against a bare loop that only reads, re-encodes and writes the same images.

    python benchmarks/build.py --source DIR --rounds 3

DIR has one folder per source, named as its recipe. Both ways run in this one process and take turns; the ratio is of
medians. The bare loop decodes each image file that Pillow opens, encodes it again (JPEG at quality 95, else PNG) and
writes it into a tar; it looks at no annotation, so a ratio of 1 means that regions, checks, hashes and the index are
free. The last lines extrapolate to the corpus of MedP-CLIP by a least-squares fit of seconds to images and regions.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import shutil
import statistics
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from medpclip.data.building.build import build
from medpclip.data.building.privacy import Salt
from medpclip.data.building.recipe import Recipe, list_recipes
from medpclip.data.readers import Entry

IMAGES, REGIONS = 6.4e6, 97.3e6  # MedP-CLIP, abstract


def bare_loop(recipe: Recipe, source: Path, out: Path) -> int:
    """Read, re-encode and write the images that the recipe finds; how many there were."""
    entries = [item for item in recipe.make_reader(source).scan() if isinstance(item, Entry)]
    done = 0
    with tarfile.open(out, "w", format=tarfile.USTAR_FORMAT) as tar:
        for entry in entries:
            try:
                with Image.open(io.BytesIO((source / entry.image).read_bytes())) as image:
                    stream = io.BytesIO()
                    kind = "JPEG" if image.format == "JPEG" else "PNG"
                    picture = image.convert("L" if image.mode in ("1", "L") else "RGB")
                    picture.save(stream, kind, **({"quality": 95} if kind == "JPEG" else {}))
            except UnidentifiedImageError:  # a volume or DICOM: no image file that a bare loop could read
                continue
            info = tarfile.TarInfo(str(done))
            info.size = stream.tell()
            stream.seek(0)
            tar.addfile(info, stream)
            done += 1
    return done


def measure(recipe: Recipe, source: Path, rounds: int) -> dict[str, Any]:
    """Median seconds of both ways, and what was written."""
    salt = Salt(b"a salt for measuring alone", "benchmark")
    ours: list[float] = []
    bare: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            start = time.perf_counter()
            plain = bare_loop(recipe, source, Path(folder) / "bare.tar")
            bare.append(time.perf_counter() - start)
            start = time.perf_counter()
            manifest = build(recipe, source, Path(folder) / "out", salt)
            ours.append(time.perf_counter() - start)
            shutil.rmtree(Path(folder) / "out")
    return {
        "source": recipe.name,
        "images": manifest["images"]["found"],
        "regions": manifest["regions"]["found"],
        "bytes": sum(shard["bytes"] for shard in manifest["shards"]),
        "seconds": statistics.median(ours),
        "bare_images": plain,
        "bare_seconds": statistics.median(bare),
    }


def extrapolate(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Core-hours and shard bytes of 6.4 million images with 97.3 million regions."""
    from scipy.optimize import nnls

    sizes = np.array([[row["images"], row["regions"]] for row in rows], float)
    per_image, per_region = nnls(sizes, np.array([row["seconds"] for row in rows]))[0]
    bytes_image, bytes_region = nnls(sizes, np.array([row["bytes"] for row in rows], float))[0]
    return {
        "seconds_per_image": per_image,
        "seconds_per_region": per_region,
        "core_hours": (IMAGES * per_image + REGIONS * per_region) / 3600,
        "bytes_per_image": bytes_image,
        "bytes_per_region": bytes_region,
        "shard_terabytes": (IMAGES * bytes_image + REGIONS * bytes_region) / 1e12,
    }


def main() -> None:
    """Print a table and the extrapolation; write both as JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, metavar="DIR")
    parser.add_argument("--recipes", type=Path, default=Path("data_recipes"), metavar="DIR")
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, metavar="JSON")
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # per core: one core
    rows = []
    for name, path in list_recipes([args.recipes]).items():
        if (args.source / name).is_dir() and (not args.only or name in args.only):
            rows.append(measure(Recipe.load(path), args.source / name, args.rounds))
            row = rows[-1]
            ratio = f"{row['bare_seconds'] / row['seconds']:.2f}" if row["bare_images"] else "no bare loop"
            print(
                f"{name:22} {row['images']:6} images {row['regions']:6} regions {row['bytes'] / 1e6:8.1f} MB  "
                f"{row['images'] / row['seconds']:7.1f} images/s  bare {row['bare_images'] / row['bare_seconds']:7.1f}  "
                f"ratio {ratio}",
                flush=True,
            )
    plain = [row for row in rows if row["bare_images"] == row["images"]]
    total = sum(row["bare_seconds"] for row in plain) / sum(row["seconds"] for row in plain)
    guess = extrapolate(rows)
    print(f"all {len(plain)} sources of plain images: ratio {total:.2f}")
    print(
        f"6.4 million images with 97.3 million regions: {guess['core_hours']:.0f} core-hours, "
        f"{guess['shard_terabytes']:.2f} TB of shards "
        f"({1e3 * guess['seconds_per_image']:.2f} ms per image, {1e6 * guess['seconds_per_region']:.0f} us per region)"
    )
    if args.out is not None:
        machine = {"python": platform.python_version(), "processor": platform.processor(), "rounds": args.rounds}
        args.out.write_text(
            json.dumps({"machine": machine, "rows": rows, "ratio": total, "extrapolated": guess}, indent=1)
        )


if __name__ == "__main__":
    main()
