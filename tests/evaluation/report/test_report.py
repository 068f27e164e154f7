"""The page: whole, self-contained, the same bytes for the same input."""

import io
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from medpclip.data.schema import Region, Sample, encode_mask
from medpclip.evaluation.corpus import Corpus
from medpclip.evaluation.report.figures import confusion_picture, prompted_picture
from medpclip.evaluation.report.plots import curves_picture, jitter_of, loss_curves, reliability_curves
from medpclip.evaluation.report.report import render_report, run_log
from medpclip.evaluation.results.result import ModelFacts, build_result
from medpclip.evaluation.scores import Case, Evaluation, MultiLabelScores, Ranking, Scores
from medpclip.evaluation.task import Bootstrap, ImageTask, Published, RegionTask, Task

CLASSES = ["<b>lesion</b>", "organ $x$ and $y", "vessel"]


def picture(grey: int) -> np.ndarray:
    image = np.full((60, 90, 3), grey, np.uint8)
    image[10:30, 20:50] = 255 - grey
    return image


def cases(n: int, regions: bool) -> list[Case]:
    mask = np.zeros((60, 90), bool)
    out = []
    for i in range(n):
        side = 4 + 9 * (i % 5)
        mask = np.zeros((60, 90), bool)
        mask[5 : 5 + side, 5 : 5 + side] = True
        region = Region(0, CLASSES[i % 3], [5.0, 5.0, float(side), float(side)], encode_mask(mask))
        sample = Sample(f"k{i}", "s", "test", f"g{i // 3}", ("CT", "MRI")[i % 2], 90, 60, regions=[region])
        item = SimpleNamespace(sample=sample, index=i, folder=None, image=lambda i=i: picture(7 * i % 200))
        out.append(Case(item, i % 3, region if regions else None))
    return out


def answers(n: int, seed: int) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=(n, 3)) + 1.5 * np.eye(3)[np.arange(n) % 3]
    return (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)


@pytest.fixture(scope="module")
def measured():
    n = 30
    region = Scores("region", "s", CLASSES, cases(n, True), mixed=True, pairs={"place": [(CLASSES[0], CLASSES[2])]})
    for k, comparator in enumerate(("prompted", "unprompted", "crop")):
        for prompt in ("box", "point", "mask"):
            region.values[prompt, comparator] = answers(n, k)
    robust = Scores("robustness", "s", CLASSES, region.cases)
    for k, prompt in enumerate(("box jittered 5%", "box jittered 10%", "box missing")):
        robust.values[prompt, "prompted"] = answers(n, 9 + k)
    image = Scores("image", "modality", CLASSES, cases(n, False), {("image", "unprompted"): answers(n, 4)}, positive=1)
    image.values["full_box", "prompted"] = answers(n, 5)
    probe = Scores("probe", "modality", CLASSES, image.cases, {("image", "knn"): answers(n, 6)})
    truth = np.random.default_rng(0).integers(-1, 2, (n, 3)).astype(np.int8)
    labels = MultiLabelScores("labels.finding", CLASSES, image.cases, truth, {("image", "unprompted"): answers(n, 7)})
    rank = np.arange(n) % 10
    ranking = Ranking("image to text: s", image.cases, 10, {("image", "unprompted"): rank})
    ranking.found["image", "unprompted"] = {k: (rank < k).astype(np.float32) for k in (1, 5)}
    evaluation = Evaluation([image, region, probe, robust], [labels], [ranking], ["three of something"])
    published = [Published("theirs", "accuracy", 71.2, "their table", "other split")]
    questions = [ImageTask("modality", ["{name}"]), ImageTask("labels.finding", ["{name}"], kind="multi_label")]
    task = Task(
        "small", "x", image=questions, region=RegionTask(["{name}"]), bootstrap=Bootstrap(20), published=published
    )
    corpus = Corpus([], {}, [("shards", "a" * 64)])
    return task, build_result(task, ModelFacts("m", "0" * 64, 3), corpus, evaluation), evaluation


@pytest.fixture(scope="module")
def html(measured) -> str:
    task, result, evaluation = measured
    return render_report(result, evaluation, task, [{"step": i, "loss": 1 / i} for i in range(1, 9)])


class Page(HTMLParser):
    """Collects what the checks need: images, anchors, and tags left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "img":
            self.images.append(given)
        if "id" in given:
            self.ids.append(given["id"])
        if tag == "a":
            self.links.append(given["href"].removeprefix("#"))
        if tag not in ("img", "meta", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else(html):
    page = Page(html)
    assert page.open == [] and len(set(page.ids)) == len(page.ids) and set(page.links) <= set(page.ids)
    assert all(i["alt"] and str(i["src"]).startswith("data:image/") for i in page.images)
    assert "<script" not in html and not re.search(r"(src|href)=\"(?!data:|#)", html)
    assert "<b>lesion</b>" not in html and "&lt;b&gt;lesion&lt;/b&gt;" in html
    assert len(html) < 5e6


def test_every_section_has_its_heading_and_figures(html):
    anchors = ["published", "regions", "images", "labels", "retrieval", "probes", "robustness", "subgroups"]
    anchors += ["calibration", "confusions", "metrics", "training", "gallery", "left-out", "method"]
    assert [i for i in Page(html).ids if i in anchors] == anchors
    for words in (
        "✓ right", "✗ wrong", "jitter of the box prompt", "over the regions&#39; size, s by box", "Reliability: the share",
        "71.2", "this: m", "label: vessel", "modality: CT", "Images asked with a prompt", "three of something", "recall@5",
        "up to step 8",
    ):  # fmt: skip
        assert words in html, words


def test_the_same_input_gives_the_same_page(measured, html):
    task, result, evaluation = measured
    log = [{"step": i, "loss": 1 / i} for i in range(1, 9)]
    assert render_report(result, evaluation, task, log) == html
    assert render_report(json.loads(json.dumps(result)), evaluation, task, log) == html


def test_a_task_with_one_question_has_only_its_sections(measured):
    task, _, evaluation = measured
    alone = Evaluation(evaluation.of("image"))
    result = build_result(task, ModelFacts("m", "0" * 64, None), Corpus([], {}, []), alone)
    page = Page(render_report(result, alone, task, []))
    assert "images" in page.ids and not {"regions", "robustness", "training", "left-out"} & set(page.ids)


@pytest.mark.parametrize("kind", ["box", "point", "mask", "scribble"])
def test_the_prompt_is_drawn_where_it_is(kind):
    case = cases(3, True)[2]
    plain, drawn = (
        np.asarray(Image.open(io.BytesIO(prompted_picture(c, kind, 0, size=90)))).astype(int)
        for c in (Case(case.item, 0), case)
    )
    changed = np.argwhere(np.abs(plain - drawn).max(-1) > 40)
    low, high = changed.min(0), changed.max(0)
    assert plain.shape == (60, 90, 3) and len(changed)
    reach = 12 if kind == "point" else 4
    assert (low >= 5 - reach).all() and (high <= 27 + reach).all()


def test_figures_are_grey_and_readable():
    counts = [[3, 1], [0, 2]]
    bins = [{"low": 0.0, "high": 0.5, "cases": 2, "confidence": 0.4, "accuracy": 0.5},
            {"low": 0.5, "high": 1.0, "cases": 0, "confidence": None, "accuracy": None}]  # fmt: skip
    rows = [{"at": 0, "value": 0.5, "interval": [0.4, 0.6]}, {"at": 1, "value": None, "interval": None}]
    for png in (
        confusion_picture(counts, ["$a", "b$"]),
        reliability_curves([{"title": "q", "bins": bins}] * 5),
        curves_picture({"one": rows, "other": rows[:1]}, ["a", "b"], "x"),
    ):
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
        assert pixels.shape[1] > 200 and np.ptp(pixels, axis=2).max() <= 2  # no colour carries meaning


def test_jitter_is_read_from_the_prompt_name():
    assert jitter_of("box jittered 12.5%") == ("box", 12.5)
    assert jitter_of("box missing") is jitter_of("box") is None


def test_the_log_of_a_run_becomes_curves(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints" / "step-9").mkdir(parents=True)
    rows = ['{"step": 1, "loss": 3.0, "loss_region": 2.0, "kind": "train"}', '{"step": 2, "kind": "val", "loss": 9}',
            '{"step": 3, "loss": 1.0}', '{"step": 4, "lo']  # fmt: skip
    (run / "log.jsonl").write_text("\n".join(rows))
    checkpoint = run / "checkpoints" / "step-9"
    assert [row["step"] for row in run_log(checkpoint, None)] == [1, 3]
    assert [row["step"] for row in run_log(checkpoint, 2)] == [1]
    assert run_log(tmp_path / "elsewhere" / "checkpoints" / "step-9", 9) == []
    png = loss_curves(run_log(checkpoint, 9))
    assert png is not None and Image.open(io.BytesIO(png)).width > 400
    assert loss_curves([{"step": 1}, {"loss": 2.0}]) is None
    assert loss_curves([{"step": i, "loss": float(i % 7)} for i in range(1000)]) is not None


def test_a_log_that_lies_near_by_chance_is_not_taken(tmp_path, monkeypatch):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 3.0}')
    monkeypatch.chdir(tmp_path)
    copied = tmp_path / "copies" / "step-00000001"
    copied.mkdir(parents=True)
    assert run_log(None, None) == run_log(copied, 1) == []
