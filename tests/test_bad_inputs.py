"""What people get wrong, through the real entry points: one line that names the file or option, the key and the remedy.

Sources' faults end in the quarantine instead: a line of it names the same. Nothing gives a traceback, nothing is silent.
"""

import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import medpclip
from medpclip.api import Model
from medpclip.cli import main
from medpclip.data.phantom import write_phantoms
from medpclip.data.schema import Region, Sample
from medpclip.data.shards import ShardWriter
from medpclip.errors import MedpclipError

TASK = {"name": "t", "data": "shards", "image": [], "region": {"templates": ["{name}"], "prompts": ["box"]}}
RECIPE = {
    "name": "cells",
    "title": "Cells",
    "modality": "microscopy",
    "licence": "MIT",
    "citation": "nobody",
    "reader": "coco",
    "terms": {"rbc": "red blood cell"},
}


def image_bytes(kind: str = "JPEG", size: tuple[int, int] = (30, 20), seed: int = 0) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


@dataclass(frozen=True)
class Good:
    """What works: shards, a trained micro model and its architecture file."""

    shards: Path
    run: Path
    trunk: Path


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, micro_trunk: Path) -> Good:
    folder = tmp_path_factory.mktemp("good")
    write_phantoms(folder / "shards", images=20, seed=1, workers=1)
    made = Good(folder / "shards", folder / "run", micro_trunk)
    assert main(Bench(folder, made).train(f"out={made.run}")) == 0
    return made


@dataclass(frozen=True)
class Bench:
    """A test's own folder, the good things beside it, and ways to spoil copies of them."""

    folder: Path
    good: Good

    def file(self, name: str, content: Any) -> Path:
        path = self.folder / name
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    def train(self, *options: Any, **keys: Any) -> list[str]:
        """`medpclip train` on a config of two steps with `keys` changed."""
        config = {
            "out": str(self.folder / "out"),
            "data": {"shards": [str(self.good.shards)], "workers": 0},
            "model": {"trunk": str(self.good.trunk), "fusion": {"prompt_dim": 16}},
            "steps": 2,
            "batch_size": 4,
        }
        return ["train", str(self.file("train.yaml", config | keys)), *map(str, options)]

    def train_on(self, shards: Path, workers: int = 0) -> list[str]:
        return self.train(data={"shards": [str(shards)], "workers": workers, "max_unreadable": 0.0})

    def eval(self, model: Any = None, *options: Any, data: Any = None, **keys: Any) -> list[str]:
        task = TASK | {"data": str(data or self.good.shards)} | keys
        out = str(self.folder / "result")
        return [
            "eval",
            str(self.file("task.yaml", task)),
            "--model",
            str(model or self.good.run),
            "--out",
            out,
            *options,
        ]

    def export(self, model: Any = None, out: Any = None) -> list[str]:
        return ["export", "clip-vision", str(model or self.good.run), "--out", str(out or self.folder / "tower")]

    def build(self, recipe: Any = None, *options: Any, source: Any = None) -> list[str]:
        """`medpclip data build` of a recipe: a path, or changes to the good one."""
        path = recipe if isinstance(recipe, Path) else self.file("cells.yaml", RECIPE | (recipe or {}))
        salt = self.folder / "salt"
        salt.write_text("a secret that only tests know")
        salt.chmod(0o600)
        source = source or self.source().finish()
        out = str(self.folder / "out")
        return ["data", "build", str(path), "--source", str(source), "--out", out, "--salt-file", str(salt), *options]

    def source(self) -> "Source":
        return Source(self.folder / "source")

    def shards(self) -> Path:
        return Path(shutil.copytree(self.good.shards, self.folder / "shards"))

    def run(self) -> Path:
        return Path(shutil.copytree(self.good.run, self.folder / "run"))

    def checkpoint(self) -> Path:
        """A copy of the run's checkpoint."""
        return next((self.run() / "checkpoints").iterdir())

    def shards_with(self, member: str, change: Callable[[bytes], bytes]) -> Path:
        """A shard of four samples, of the second of which the "image" or the "json" is changed.

        An image may be bad from the start; JSON is checked by the writer, so its bytes are changed in place.
        """
        with ShardWriter(self.folder / "made") as writer:
            for i in range(4):
                regions = [Region(1, f"cell {i % 2}", bbox=[1, 1, 9, 9], points=[[2, 2]])]
                sample = Sample(f"key{i}", "s", "train", str(i), "microscopy", 30, 20, regions=regions)
                data = image_bytes(seed=i)
                writer.add(sample, change(data) if member == "image" and i == 1 else data, "jpg")
            writer.finish()
        if member == "json":
            tar, index = (self.folder / "made" / f"train-000000.{end}" for end in ("tar", "index.json"))
            offset, size = json.loads(index.read_text())["jsons"][1]
            data = tar.read_bytes()
            changed = change(data[offset : offset + size]).ljust(size)
            assert len(changed) == size
            tar.write_bytes(data[:offset] + changed + data[offset + size :])
        return self.folder / "made"


class Source:
    """A COCO tree of one good image with a good box; tests add what is wrong."""

    def __init__(self, folder: Path) -> None:
        (folder / "images").mkdir(parents=True)
        self.folder = folder
        self.data: dict[str, Any] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 1, "name": "rbc"}, {"id": 2, "name": "platelet"}],
        }
        self.image("good.jpg", image_bytes())
        self.region(bbox=[1, 2, 10, 8])

    def image(self, name: str, data: bytes | None, **stated: Any) -> "Source":
        number = len(self.data["images"])
        if data is not None:
            (self.folder / "images" / name).write_bytes(data)
        self.data["images"].append({"id": number, "file_name": name, "width": 30, "height": 20} | stated)
        return self

    def region(self, category: int = 1, **geometry: Any) -> "Source":
        image = len(self.data["images"]) - 1
        self.data["annotations"].append({"image_id": image, "category_id": category} | geometry)
        return self

    def finish(self) -> Path:
        (self.folder / "annotations.json").write_text(json.dumps(self.data))
        return self.folder


@pytest.fixture
def bench(tmp_path: Path, good: Good) -> Bench:
    return Bench(tmp_path, good)


def torn(jpeg: bytes) -> bytes:
    return jpeg[:-300]


def swap_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    path = folder / "model.safetensors"
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(change(weights), path)
    return folder


def shorten(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path.parent


def manifest_with(bench: Bench, content: Any) -> list[str]:
    shards = bench.shards()
    (shards / "manifest.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return ["data", "stats", str(shards)]


def remove_shard(bench: Bench) -> list[str]:
    shards = bench.shards()
    (shards / "train-000000.tar").unlink()
    return bench.train_on(shards)


def salt_for_all(bench: Bench) -> list[str]:
    argv = bench.build()
    (bench.folder / "salt").chmod(0o644)
    return argv


def missing_weights(bench: Bench) -> list[str]:
    checkpoint = bench.checkpoint()
    (checkpoint / "model.safetensors").unlink()
    return bench.export(checkpoint)


def bad_meta(bench: Bench) -> list[str]:
    checkpoint = bench.checkpoint()
    (checkpoint / "meta.json").write_text('{"config": [1]}')
    return bench.export(checkpoint)


def broken_engine(bench: Bench) -> list[str]:
    shorten(bench.checkpoint() / "engine" / "optimizer.safetensors", 9)
    return bench.train("--resume", out=str(bench.folder / "run"))


def out_in_use(bench: Bench) -> list[str]:
    (bench.folder / "out").mkdir()
    (bench.folder / "out" / "thesis.tex").write_text("years of work")
    return bench.build()


def full_folder(bench: Bench) -> list[str]:
    (bench.folder / "mine").mkdir()
    (bench.folder / "mine" / "thesis.tex").write_text("years of work")
    return bench.export(out=bench.folder / "mine")


def resnet(bench: Bench) -> list[str]:
    vision = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 64, "patch_size": None}
    towers = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": {"width": 16, "heads": 2, "layers": 1}}
    path = bench.folder / "tiny-resnet.json"
    path.write_text(json.dumps(towers))
    return bench.train(model={"trunk": str(path)})


def bad_coco(bench: Bench, **changes: Any) -> list[str]:
    source = bench.source()
    source.data |= changes
    return bench.build(source=source.finish())


# What is wrong -> (the command, made on a bench; the words that its one line must hold: place, key, remedy).
ERRORS: dict[str, tuple[Callable[[Bench], list[str]], list[str]]] = {
    # Configuration
    "no config": (lambda b: ["train", str(b.folder / "none.yaml")], ["none.yaml: no such file", "check the path"]),
    "no task": (
        lambda b: ["eval", "none.yaml", "--model", "x", "--out", str(b.folder / "r")],
        ["none.yaml: no such file", "check the path"],
    ),
    "broken YAML": (
        lambda b: ["train", str(b.file("c.yaml", "out: [runs"))],
        ["c.yaml: line 1", "expected", "correct the YAML"],
    ),
    "empty config": (lambda b: ["train", str(b.file("c.yaml", ""))], ["c.yaml: is empty", "expected a mapping"]),
    "key twice": (
        lambda b: ["train", str(b.file("c.yaml", "steps: 1\nsteps: 2"))],
        ["c.yaml: line 2", "'steps' is stated twice", "keep one"],
    ),
    "unknown key, train": (lambda b: b.train(stepps=3), ["train.yaml", "'stepps'", "did you mean 'steps'?"]),
    "unknown key, nested": (
        lambda b: b.train(optimizer={"learning": 1}),
        ["train.yaml", "'optimizer.learning'", "known here: lr"],
    ),
    "unknown key, task": (lambda b: b.eval(comparator=["crop"]), ["task.yaml", "'comparator'", "mean 'comparators'?"]),
    "unknown key, recipe": (lambda b: b.build({"term": {}}), ["cells.yaml", "'term'", "did you mean 'terms'?"]),
    "unknown reader": (
        lambda b: b.build({"reader": "cocoa"}),
        ["cells.yaml", "'reader' is 'cocoa'", "known: captions"],
    ),
    "wrong type": (lambda b: b.train(steps="many"), ["train.yaml", "'steps' is 'many'", "expected an integer"]),
    "missing key": (lambda b: ["train", str(b.file("c.yaml", "steps: 1"))], ["c.yaml", "is missing; add it"]),
    "override without '='": (lambda b: b.train("steps"), ["override 'steps'", "write it like"]),
    "override of a wrong type": (
        lambda b: b.train("batch_size=big"),
        ["override 'batch_size=big'", "'batch_size' is 'big'", "expected an integer"],
    ),
    "unknown comparator": (
        lambda b: b.eval(comparators=["blur"]),
        ["task.yaml", "'comparators.0' is 'blur'", "expected one of 'prompted'"],
    ),
    "unknown device, train": (lambda b: b.train("device=gpu0"), ["device 'gpu0'", "use auto or cpu"]),
    "unknown device, eval": (lambda b: b.eval(None, "--device", "tpu9"), ["device 'tpu9'", "use auto or cpu"]),
    # Models
    "unknown trunk": (
        lambda b: b.train(model={"trunk": "ViT-B-61"}),
        ["model.trunk 'ViT-B-61' is unknown", "did you mean 'ViT-B-16'?"],
    ),
    "missing trunk file": (lambda b: b.train(model={"trunk": "no/x.json"}), ["'no/x.json'", "give an open_clip name"]),
    "unsupported trunk": (resnet, ["tiny-resnet", "ModifiedResNet", "need a ViT"]),
    "missing pretrained file": (
        lambda b: b.train("model.pretrained=w/none.bin"),
        ["model.pretrained 'w/none.bin': no such file", "give a file or folder of weights"],
    ),
    "no such model": (lambda b: b.export("runs/none"), ["runs/none: no such file or folder", "give a run"]),
    "folder without a checkpoint": (lambda b: b.export(b.folder), ["neither a checkpoint", "train first"]),
    "checkpoint lacks a tensor": (
        lambda b: b.export(swap_weights(b.checkpoint(), lambda w: dict(list(w.items())[1:]))),
        ["model.safetensors", "lacks tensor", "another model"],
    ),
    "checkpoint of another shape": (
        lambda b: b.eval(swap_weights(b.checkpoint(), lambda w: w | {"clip.visual.proj": torch.zeros(2, 3)})),
        ["model.safetensors", "'clip.visual.proj' is (2, 3)", "another model"],
    ),
    "truncated weights": (
        lambda b: b.export(shorten(b.checkpoint() / "model.safetensors", 1000)),
        ["model.safetensors: can't be read", "take another checkpoint"],
    ),
    "missing weights": (missing_weights, ["model.safetensors: can't be read", "take another checkpoint"]),
    "broken meta.json": (
        lambda b: b.export(shorten(b.checkpoint() / "meta.json", 30)),
        ["meta.json: unreadable", "take another checkpoint"],
    ),
    "meta.json of a wrong type": (
        bad_meta,
        ["meta.json: key 'config.model' is missing or no object", "take another checkpoint"],
    ),
    "export over something else": (full_folder, ["mine: exists and holds no export.json", "give another folder"]),
    # Runs
    "run exists": (lambda b: b.train(out=str(b.run())), ["run: holds a run already", "add --resume"]),
    "resume with another config": (
        lambda b: b.train("--resume", out=str(b.run()), seed=5),
        ["meta.json: key 'seed' was 0, is now 5", "resume with the run's own config.yaml"],
    ),
    "batch larger than the data": (lambda b: b.train(batch_size=500), ["'batch_size' is 500", "lower it"]),
    "out is a file": (
        lambda b: b.train(out=str(b.file("taken", "x"))),
        ["taken: can't be written", "choose another 'out'"],
    ),
    "resume from a broken engine": (
        broken_engine,
        ["optimizer.safetensors: unreadable", "resume from another checkpoint"],
    ),
    # Shards
    "no shard folder": (lambda b: b.train_on(Path("none")), ["none: no such folder", "give a folder of shards"]),
    "empty shard folder": (
        lambda b: b.train_on(b.folder),
        ["no manifest.json", "build it again"],
    ),
    "missing split": (
        lambda b: b.train("data.split=val2"),
        ["shards/manifest.json: no split 'val2' (it has: train, val, test)", "name one"],
    ),
    "split not in the shards": (
        lambda b: b.eval(data=b.shards_with("json", lambda d: d)),
        ["made/manifest.json: no split 'test' (it has: train)", "name one of those"],
    ),
    "manifest is no JSON": (lambda b: manifest_with(b, "{"), ["manifest.json: broken JSON", "build the shards again"]),
    "manifest of another schema": (
        lambda b: manifest_with(b, {"schema": 9, "shards": []}),
        ["manifest.json: key 'schema' is 9", "rebuild or update"],
    ),
    "manifest without shards": (
        lambda b: manifest_with(b, {"schema": 1, "splits": {}, "shards": []}),
        ["manifest.json: lists no shard", "look at its quarantine"],
    ),
    "manifest names a path": (
        lambda b: manifest_with(b, {"schema": 1, "splits": {}, "shards": [{"name": "../x.tar"}]}),
        ["manifest.json: key 'shards[0]' is broken", "build the shards again"],
    ),
    "nothing to tell apart": (
        lambda b: b.eval(region={"templates": ["{name}"], "classes": ["liver", "spleen"]}),
        ["task 't': no region to evaluate", "of other classes", "check its keys 'data'"],
    ),
    "shard is truncated": (
        lambda b: b.train_on(shorten(b.shards() / "train-000000.tar", 5000)),
        ["train-000000.tar: 5000 bytes", "copy it again"],
    ),
    "shard is missing": (remove_shard, ["train-000000.tar: listed in manifest.json but missing", "copy it here"]),
    "index is broken": (
        lambda b: b.train_on(shorten(b.shards() / "train-000000.index.json", 50)),
        ["train-000000.index.json: unreadable index", "build the shards again"],
    ),
    "show what is no shards": (
        lambda b: ["data", "show", str(b.folder), "-o", str(b.folder / "s.png")],
        ["neither manifest.json nor folders with one", "give a folder of shards"],
    ),
    "show a torn image": (
        lambda b: ["data", "show", str(b.shards_with("image", torn)), "-o", str(b.folder / "s.png")],
        ["train-000000.tar: key1: unreadable image", "rebuild the shard"],
    ),
    "evaluate a torn image": (
        lambda b: b.eval(data=b.shards_with("image", torn), split="train"),
        ["train-000000.tar: key1: unreadable image", "run 'medpclip data check"],
    ),
    # Sources
    "no recipe": (lambda b: b.build(b.folder / "none.yaml"), ["none.yaml: no such file", "check the path"]),
    "no recipe of that name": (
        lambda b: ["data", "build", "nune", "--source", "x", "--out", str(b.folder / "o")],
        ["recipe 'nune': not found", "give its path, or --recipes DIR"],
    ),
    "no source": (lambda b: b.build(source=b.folder / "none"), ["none: no such folder", "check --source"]),
    "out is in use": (out_in_use, ["out: exists and is not an empty folder", "choose another --out"]),
    "salt that others may read": (salt_for_all, ["salt: others may read the salt (mode 0644)", "chmod 600"]),
    "COCO without images": (
        lambda b: b.build({"options": {"images": "pictures"}}),
        ["pictures: no such folder", "'options.images'"],
    ),
    "COCO of a wrong type": (
        lambda b: bad_coco(b, annotations={"1": []}),
        ["annotations.json: key 'annotations' is dict", "expected a list"],
    ),
    "COCO is no JSON": (
        lambda b: b.build(source=shorten(b.source().finish() / "annotations.json", 40)),
        ["annotations.json: broken JSON", "restore the file"],
    ),
    "nothing usable": (
        lambda b: bad_coco(b, images=[], annotations=[]),
        ["nothing usable", "image without an annotation", "see", "quarantine.jsonl"],
    ),
}


def only_line(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """Run a command that must fail with status 2; its one line on stderr, progress bars aside."""
    capsys.readouterr()
    assert main(argv) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line and not re.search(r"\d%\|", line))
    return line


@pytest.mark.parametrize("wrong", ERRORS)
def test_one_line_names_place_key_and_remedy(wrong: str, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    command, words = ERRORS[wrong]
    line = only_line(capsys, command(bench))
    assert line.startswith("medpclip: error: ")
    for word in words:
        assert word in line


def stating(**changes: Any) -> Callable[[bytes], bytes]:
    """A sample's JSON with other values, without those that are null (which makes room); None removes a key."""

    def change(data: bytes) -> bytes:
        stated = {key: value for key, value in (json.loads(data) | changes).items() if value is not None}
        return json.dumps(stated, separators=(",", ":")).encode()

    return change


# What is wrong inside of a shard -> (member, change of its bytes, words).
SAMPLES: dict[str, tuple[str, Callable[[bytes], bytes], list[str]]] = {
    "truncated JPEG": ("image", torn, ["unreadable image", "truncated", "rebuild the shard"]),
    "no image": ("image", lambda data: b"hello", ["unreadable image (of no known format)", "rebuild the shard"]),
    "image of another size": (
        "image",
        lambda data: image_bytes(size=(8, 8)),
        ["the image is 8x8", "30x20", "rebuild the shard"],
    ),
    "broken JSON": ("json", lambda data: data[:50], ["broken JSON", "rebuild the shard"]),
    "JSON of a wrong type": ("json", lambda data: b"[]", ["the JSON is a list", "rebuild the shard"]),
    "size of a wrong type": ("json", stating(width="3"), ["key 'width' is '3'", "rebuild the shard"]),
    "modality missing": ("json", stating(modality=None), ["key 'modality' is missing", "rebuild the shard"]),
    "anatomy of a wrong type": ("json", stating(anatomy=[1]), ["key 'anatomy' is [1]", "rebuild the shard"]),
    "regions of a wrong type": ("json", stating(regions="many"), ["key 'regions' is a string", "rebuild the shard"]),
    "region id of a wrong type": (
        "json",
        stating(regions=[{"id": [], "category": "c", "points": [[1, 1]]}]),
        ["key 'regions[0].id' is []", "rebuild the shard"],
    ),
    "points of a wrong type": (
        "json",
        stating(regions=[{"id": 1, "category": "c", "points": 5}]),
        ["regions[0]: points are not a list", "rebuild the shard"],
    ),
    "box outside the image": (
        "json",
        stating(regions=[{"id": 1, "category": "c", "bbox": [25, 1, 9, 9]}]),
        ["regions[0]: box reaches outside", "rebuild the shard"],
    ),
}


@pytest.mark.parametrize("wrong", SAMPLES)
def test_training_names_the_first_bad_sample(wrong: str, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    member, change, words = SAMPLES[wrong]
    shards = bench.shards_with(member, change)
    workers = int(wrong in ("truncated JPEG", "points of a wrong type"))  # of both kinds; a process takes its time
    line = only_line(capsys, bench.train_on(shards, workers))
    assert line.startswith(f"medpclip: error: {shards}/train-000000.tar: key1: ")
    for word in words:
        assert word in line


@pytest.mark.parametrize("wrong", SAMPLES)
def test_the_check_names_each_bad_sample(wrong: str, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    member, change, words = SAMPLES[wrong]
    shards = bench.shards_with(member, change)
    capsys.readouterr()
    assert main(["data", "check", str(shards)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert any("its SHA-256 is not the one in manifest.json; copy it again" in line for line in lines) == (
        member == "json"
    )
    (line,) = (line for line in lines if "key1" in line)
    assert line.startswith(f"{shards}/train-000000.tar: key1: ")
    for word in words:
        assert word in line


TORN = torn(image_bytes(seed=1))
# What is wrong with a source -> (change; what its line in the quarantine says: file, key, reason; words of the remedy).
FAULTS: dict[str, tuple[Callable[[Source], Any], tuple[str, str, str], str]] = {
    "truncated JPEG": (lambda s: s.image("b.jpg", TORN), ("images/b.jpg", "", "image is truncated"), "fetch"),
    "not an image": (lambda s: s.image("b.png", b"hello"), ("images/b.png", "", "image can't be decoded"), "fetch"),
    "missing image": (
        lambda s: s.image("b.jpg", None),
        ("annotations.json", "images[1]", "image file is missing"),
        "correct its name",
    ),
    "image without an entry": (
        lambda s: (s.folder / "images" / "b.png").write_bytes(image_bytes("PNG", seed=2)),
        ("images/b.png", "", "image without an annotation"),
        "annotate the image",
    ),
    "image of another size": (
        lambda s: s.image("b.jpg", image_bytes(seed=3), width=60).region(bbox=[1, 1, 5, 5]),
        ("annotations.json", "annotations[1]", "image is of another size than stated"),
        "'options.declared_size'",
    ),
    "mask of another size": (
        lambda s: s.region(segmentation={"size": [5, 5], "counts": [25]}),
        ("annotations.json", "annotations[1]", "mask is of another size than the image"),
        "at the image's size",
    ),
    "broken run lengths": (
        lambda s: s.region(segmentation={"size": [20, 30], "counts": "0~~"}),
        ("annotations.json", "annotations[1]", "run lengths are broken"),
        "export the mask again",
    ),
    "polygon of two points": (
        lambda s: s.region(segmentation=[[1, 1, 5, 5]]),
        ("annotations.json", "annotations[1]", "polygon has fewer than three points"),
        "draw the polygon again",
    ),
    "box outside the image": (
        lambda s: s.region(bbox=[25, 2, 20, 5]),
        ("annotations.json", "annotations[1]", "box reaches outside the image"),
        "clip the box",
    ),
    "degenerate box": (
        lambda s: s.region(bbox=[5, 5, 0, 4]),
        ("annotations.json", "annotations[1]", "box is degenerate"),
        "draw the box again",
    ),
    "box with NaN": (
        lambda s: s.region(bbox=[5, float("nan"), 3, 4]),
        ("annotations.json", "annotations[1]", "box is not four finite numbers"),
        "correct the box",
    ),
    "box of text": (
        lambda s: s.region(bbox=["5", "5", "3", "4"]),
        ("annotations.json", "annotations[1]", "box is not four finite numbers"),
        "correct the box",
    ),
    "annotation of a wrong type": (
        lambda s: s.data["annotations"].append("cell"),
        ("annotations.json", "annotations[1]", "annotation is not an object"),
        "as a JSON object",
    ),
    "annotation of no image": (
        lambda s: s.data["annotations"].append({"image_id": 77, "category_id": 1}),
        ("annotations.json", "annotations[1]", "annotation without an image"),
        "restore the image",
    ),
    "unknown label": (
        lambda s: s.region(2, bbox=[1, 1, 5, 5]),
        ("annotations.json", "annotations[1]", "label is not in the recipe's terms"),
        "recipe's key 'terms'",
    ),
    "undeclared category": (
        lambda s: s.region(9, bbox=[1, 1, 5, 5]),
        ("annotations.json", "annotations[1]", "category is not declared"),
        "'categories'",
    ),
}


@pytest.mark.parametrize("wrong", FAULTS)
def test_the_quarantine_names_file_key_and_remedy(
    wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, place, remedy = FAULTS[wrong]
    bench = Bench(tmp_path, Good(tmp_path, tmp_path, tmp_path))  # a build needs nothing of it
    source = bench.source()
    change(source)
    assert main(bench.build(source=source.finish())) == 0
    out = capsys.readouterr().out
    assert place[2] in out and "quarantine.jsonl (private)" in out
    (line,) = map(json.loads, (tmp_path / "out.private" / "quarantine.jsonl").read_text().splitlines())
    assert (line["file"], line["key"], line["reason"]) == place
    assert remedy in line["remedy"]
    assert main(["data", "check", str(tmp_path / "out")]) == 0


# What is wrong in a notebook -> (the call, words).
CALLS: dict[str, tuple[Callable[[Model, Path], Any], list[str]]] = {
    "missing image": (
        lambda m, f: m.classify(f / "none.png", ["a", "b"]),
        ["none.png: no such image", "check the path"],
    ),
    "truncated image": (lambda m, f: m.classify(f / "torn.jpg", ["a", "b"]), ["torn.jpg: image is truncated", "PIL"]),
    "no labels": (lambda m, f: m.classify(f / "good.jpg", []), ["labels: the list is empty", "give at least one"]),
    "one label": (lambda m, f: m.classify(f / "good.jpg", ["a"]), ["labels: only 'a' is given", "give what else"]),
    "box outside the image": (
        lambda m, f: m.classify(f / "good.jpg", ["a", "b"], boxes=[[0, 0, 5, 5], [20, 5, 90, 9]]),
        ["boxes[1]", "reaches outside the image", "30x20", "clip it"],
    ),
    "no such run": (lambda m, f: medpclip.load(f / "runs" / "none"), ["none: no such file or folder", "give a run"]),
    "no such device": (lambda m, f: medpclip.load(f, device="gpu"), ["device 'gpu'", "use auto or cpu"]),
}


@pytest.fixture(scope="module")
def model(good: Good) -> Model:
    return medpclip.load(good.run)


@pytest.mark.parametrize("wrong", CALLS)
def test_the_python_interface_says_so_too(wrong: str, model: Model, tmp_path: Path) -> None:
    (tmp_path / "good.jpg").write_bytes(image_bytes())
    (tmp_path / "torn.jpg").write_bytes(TORN)
    call, words = CALLS[wrong]
    with pytest.raises(MedpclipError) as caught:
        call(model, tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
