"""What evaluating costs: regions per second by prompts against crops, images per second against an open_clip loop.

    python benchmarks/evaluate.py SHARDS --trunk ViT-B-32 --images 64

Everything runs in one process, by turns, on the same pictures; ratios are of medians over rounds, so that a slow moment of
the machine hits all of them. The loop is the plain zero-shot one: open the file, open_clip's own transform, encode_image,
and the product with the classes' embeddings, with as many threads for the pictures as the evaluation has.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image

import medpclip  # noqa: F401 (mends CPU builds of torchvision)
from medpclip.data.loading.prompting import available_kinds
from medpclip.evaluation.corpus import Corpus, Item, read_corpus
from medpclip.evaluation.embedding.features import Features, Request
from medpclip.evaluation.embedding.texts import TextClassifier
from medpclip.evaluation.results.result import ModelFacts
from medpclip.evaluation.scores import Case
from medpclip.evaluation.sections.cases import region_prompt
from medpclip.evaluation.subject import Subject
from medpclip.evaluation.task import ImageTask, Task
from medpclip.models import ModelConfig
from medpclip.models.load import build_model
from medpclip.models.region_clip import RegionCLIP

CLASSES, TEMPLATES = ["CT", "MRI", "radiograph", "microscopy"], ["a {name} image"]


def open_clip_loop(
    model: RegionCLIP, items: Sequence[Item], batch: int, workers: int, device: str
) -> Callable[[], object]:
    """Zero-shot classification as one writes it with open_clip alone, all pictures resized and cut at their middle."""
    from open_clip.transform import image_transform

    preprocess = model.preprocess
    transform = image_transform(preprocess.image_size, False, mean=preprocess.mean, std=preprocess.std)
    with torch.no_grad():
        words = model.tokenizer([f"a {name} image" for name in CLASSES]).to(device)
        classes = model.clip.encode_text(words, normalize=True)

    def picture(item: Item) -> torch.Tensor:
        return transform(Image.open(io.BytesIO(item.folder.image_bytes(item.index))))

    def run() -> object:
        answers = []
        with torch.no_grad(), ThreadPoolExecutor(max(1, workers)) as pool:
            pictures = pool.map(picture, items) if workers else map(picture, items)
            rows: list[torch.Tensor] = []
            for number, row in enumerate(pictures, 1):
                rows.append(row)
                if len(rows) == batch or number == len(items):
                    pixels = torch.stack(rows).to(device)
                    embedding = model.clip.encode_image(pixels, normalize=True)
                    answers.append((model.clip.logit_scale.exp() * embedding @ classes.T).softmax(-1).cpu())
                    rows = []
        return torch.cat(answers)

    return run


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="+", help="folders of shards with regions")
    parser.add_argument("--split", default="test")
    parser.add_argument("--trunk", default="ViT-B-32")
    parser.add_argument("--images", type=int, default=64, help="of the split, spread over it")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = build_model(ModelConfig(trunk=args.trunk)).eval().to(args.device)
    subject = Subject.of_model(model, ModelFacts(args.trunk, "0" * 64, None), prompted=True)
    corpus: Corpus = read_corpus(Task("speed", args.shards, args.split, image=[ImageTask("modality", ["{name}"])]))
    items = corpus.items[:: max(1, len(corpus.items) // args.images)][: args.images]
    cases = [Case(item, -1, r) for item in items for r in item.sample.regions if "box" in available_kinds(r)]
    prompts = [region_prompt(case, "box", model.mask_grid, 0) for case in cases]

    def features() -> Features:
        return Features(subject, workers=args.workers, batch_size=args.batch, shown=False)

    def regions(comparator: str) -> Callable[[], object]:
        asked = [Request(case.item, prompt, comparator) for case, prompt in zip(cases, prompts, strict=True)]
        return lambda: features().embed(asked)

    texts = TextClassifier(features().texts, CLASSES, TEMPLATES)  # words are encoded once, as the loop's are

    def images() -> object:
        asking = features()
        embeddings = asking.embed([Request(item, None) for item in items])
        return texts.scores(embeddings, [item.sample.modality for item in items], asking.image_scale)

    ways: dict[str, Callable[[], object]] = {
        "prompted": regions("prompted"),
        "crop": regions("crop"),
        "images": images,
        "open_clip": open_clip_loop(model, items, args.batch, args.workers, args.device),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for warm in (True, *[False] * args.rounds):
        for name, way in ways.items():
            if warm and name == "crop":
                continue
            began = time.perf_counter()
            way()
            if not warm:
                seconds[name].append(time.perf_counter() - began)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    print(
        json.dumps(
            {
                "trunk": args.trunk,
                "folders": [Path(folder).name for folder in args.shards],
                "images": len(items),
                "regions": len(cases),
                "batch": args.batch,
                "workers": args.workers,
                "rounds": args.rounds,
                "regions_per_second": round(len(cases) / median["prompted"], 1),
                "regions_per_second_by_crops": round(len(cases) / median["crop"], 1),
                "prompted_over_crops": round(median["crop"] / median["prompted"], 2),
                "images_per_second": round(len(items) / median["images"], 1),
                "images_per_second_of_open_clip_loop": round(len(items) / median["open_clip"], 1),
                "images_over_open_clip_loop": round(median["open_clip"] / median["images"], 2),
                "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu",
                "cpu": platform.processor() or platform.machine(),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
