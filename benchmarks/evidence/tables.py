"""The tables of docs/results.md, as Markdown between markers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from costs import Cost
from figures import BySeed, Figure, best, change, figure, named, over_sources, recall_of
from plan import COMPARATORS, MIXED, PROMPTS, REGION_SOURCES, Table, way_of

from medpclip.errors import MedpclipError
from medpclip.evaluation.results.answers import Asked

ACCURACY = named("balanced_accuracy")
NONE = "–"


@dataclass(frozen=True)
class Trained:
    """What is known of one run with all its seeds.

    Attributes:
        steps: of each seed's training.
        cost: parameters and FLOPs.
        seconds_per_step: median over the seeds.
        hashes: seed -> SHA-256 of its weights.
        val, test: its answers.
    """

    steps: int
    cost: Cost
    seconds_per_step: float
    hashes: Mapping[int, str]
    val: BySeed
    test: BySeed


@dataclass(frozen=True)
class Provenance:
    """What a table is made of besides its runs.

    Attributes:
        command: that makes it again.
        seeds: of split and training.
        manifests: seed -> one SHA-256 over those of its shards' manifests.
    """

    command: str
    seeds: Sequence[int]
    manifests: Mapping[int, str]


def render(table: Table, runs: Mapping[str, Trained], provenance: Provenance) -> str:
    """A table's Markdown: caption, figures, each seed's own, hashes."""
    layouts: dict[str, Callable[[Table, Mapping[str, Trained]], list[str]]] = {
        "regions": _regions,
        "images": _images,
        "sources": _sources,
        "terms": _terms,
        "robustness": _robustness,
    }
    parts = [
        f"### {table.title}",
        f"`{provenance.command}`",
        *layouts[table.layout](table, runs),
        _hashes(runs, provenance),
    ]
    return "\n\n".join(parts)


def write_between_markers(page: Path, name: str, text: str) -> None:
    """Put a table into the page, between its markers.

    Raises:
        MedpclipError: the page or the markers are missing.
    """
    begin, end = f"<!-- table: {name} -->", f"<!-- end: {name} -->"
    old = page.read_text(encoding="utf-8") if page.is_file() else ""
    if old.count(begin) != 1 or old.count(end) != 1 or old.index(begin) > old.index(end):
        raise MedpclipError(f"{page}: lacks the line '{begin}' with '{end}' below it; add both where the table belongs")
    before, after = old[: old.index(begin) + len(begin)], old[old.index(end) :]
    page.write_text(f"{before}\n{text}\n{after}", encoding="utf-8")


def _regions(table: Table, runs: Mapping[str, Trained]) -> list[str]:
    """Balanced accuracy by prompt kind, costs, and differences to what the table compares with."""
    others = {prompt: _against(table, runs, prompt) for prompt in PROMPTS}
    scores = {(n, p): over_sources(run.test, MIXED, p, ACCURACY) for n, run in runs.items() for p in PROMPTS}
    head = ["way", *PROMPTS, "steps", "GFLOP a step", "s a step", "million parameters", "without word table"]
    rows = [
        [
            name,
            *(_percent(scores[name, prompt]) for prompt in PROMPTS),
            f"{run.steps}",
            f"{run.cost.flops / 1e9:.0f}",
            f"{run.seconds_per_step:.2f}",
            f"{run.cost.parameters / 1e6:.2f}",
            f"{run.cost.without_words / 1e6:.2f}",
        ]
        for name, run in runs.items()
    ]
    some = next(iter(runs.values())).test
    shapes = {p: over_sources(some, MIXED, p, ACCURACY, comparator="box_geometry") for p in ("box", "mask")}
    rows.append(["box_geometry", _percent(shapes["box"]), NONE, _percent(shapes["mask"]), *[NONE] * (len(head) - 4)])
    out = [
        "Balanced accuracy in percent, mean over the sources where several classes occur in an image, and over seeds; "
        f"95 % intervals over groups. Chance is {_chance(runs)}. box_geometry sees sizes and places of boxes, and no pixels; "
        "of clicks it would know more than a model is told.",
        markdown(head, rows),
    ]
    if any(others.values()):
        chosen = ", ".join(f"{prompt}: {other}" for prompt, other in others.items() if other)
        why = ", chosen on validation" if table.against == "best comparator" else ""
        differences = [
            [
                name,
                *(
                    NONE if name == others[p] else _points(_minus(scores[name, p], scores.get((others[p] or "", p))))
                    for p in PROMPTS
                ),
            ]
            for name in runs
            if set(others.values()) != {name}
        ]
        out += [
            f"Difference in points, paired, to the {table.against} ({chosen}{why}):",
            markdown(["way", *PROMPTS], differences),
        ]
    out += ["By source (box, point, mask):", _by_source(runs), "Each seed's mean over sources:", _by_seed(scores, runs)]
    return out


def _images(table: Table, runs: Mapping[str, Trained]) -> list[str]:
    """The image embedding against the twin's, and images answered by the region embedding against the image's own."""
    asked = sorted({a for run in runs.values() for seed in run.test.values() for a in seed if a.section == "image"})
    own = [a for a in asked if a.comparator == "unprompted"]  # one for each label
    score = {(n, a): figure(run.test, a, ACCURACY) for n, run in runs.items() for a in asked}
    rows = []
    for name in runs:
        row = [name]
        for a in own:
            apart = NONE if name == table.against else _points(_minus(score[name, a], score.get((table.against, a))))
            row += [_percent(score[name, a]), apart]
        rows.append(row)
    out = [
        "Balanced accuracy of image-level questions in percent, by the image embedding, and its difference in points, "
        f"paired, to {table.against}; 95 % intervals over groups.",
        markdown(["way", *(text for a in own for text in (a.name, "difference"))], rows),
    ]
    rows = []
    for name in runs:
        for a in own:
            others = [b for b in asked if b.name == a.name and b.comparator == "prompted"]
            rows += [[name, a.name, b.prompt, _points(_minus(score[name, b], score[name, a]))] for b in others]
    if rows:
        caption = "The same questions answered by the region embedding of a box, minus the image embedding, in points:"
        out += [caption, markdown(["way", "label", "box", "difference"], rows)]
    regions = [[n, *(_percent(over_sources(run.test, MIXED, p, ACCURACY)) for p in PROMPTS)] for n, run in runs.items()]
    return [*out, "The region question, in percent:", markdown(["way", *PROMPTS], regions)]


def _sources(table: Table, runs: Mapping[str, Trained]) -> list[str]:
    """Each source that some run was trained without: with it in training, and without."""
    rows = []
    for run in table.runs:
        whole = way_of(run)
        for source in run.without:
            for prompt in PROMPTS:
                asked = Asked("region", source, prompt, "prompted")
                seen, unseen = (figure(runs[name].test, asked, ACCURACY) for name in (whole, run.name))
                if seen is not None and unseen is not None:
                    alone = ", ".join(name for name in run.without if name != source) or NONE
                    rows.append(
                        [source, alone, prompt, whole, _percent(unseen), _percent(seen), _points(unseen - seen)]
                    )
    rows.sort(key=lambda row: (row[0], row[1], PROMPTS.index(row[2])))
    head = ["source", "also left out", "prompt", "way", "unseen", "seen", "difference"]
    return [
        "Balanced accuracy in percent on the test split of a source that training saw nothing of, and of the same way "
        "trained with the source's own train split; the candidates are the source's own classes, of which training may have "
        "seen others elsewhere.",
        markdown(head, rows),
    ]


def _terms(table: Table, runs: Mapping[str, Trained]) -> list[str]:
    """Recall of the terms left out of training, and of all others."""
    recalled = recall_of(table.terms)
    rows = []
    for name, run in runs.items():
        rows.append(
            [
                name,
                *(_percent(over_sources(run.test, REGION_SOURCES, prompt, recalled)) for prompt in PROMPTS),
                *(
                    _percent(over_sources(run.test, REGION_SOURCES, prompt, _all_but(table.terms)))
                    for prompt in PROMPTS
                ),
            ]
        )
    head = ["way", *(f"left-out terms, {p}" for p in PROMPTS), *(f"other terms, {p}" for p in PROMPTS)]
    return [
        f"Mean recall in percent of {', '.join(table.terms)}, which training saw no region of, among all classes of their "
        "source, and that of the other classes; the first row was trained with all.",
        markdown(head, rows),
    ]


def _robustness(table: Table, runs: Mapping[str, Trained]) -> list[str]:
    """The region question with worse prompts and images, minus the question as it is."""
    changes = dict.fromkeys(
        a.prompt for run in runs.values() for seed in run.test.values() for a in seed if a.section == "robustness"
    )
    tiny = [name for name in changes if name.endswith("of tiny regions")]
    plain = [[p, *(_percent(over_sources(run.test, MIXED, p, ACCURACY)) for run in runs.values())] for p in PROMPTS]
    plain += [
        [name, *(_percent(over_sources(run.test, MIXED, name, ACCURACY, "robustness")) for run in runs.values())]
        for name in tiny
    ]
    rows = [
        [name, *(_points(change(run.test, MIXED, name, name.split()[0], ACCURACY)) for run in runs.values())]
        for name in changes
        if name not in tiny
    ]
    return [
        "Balanced accuracy in percent as it is, and of tiny regions alone; then what is gained or lost, in points, paired, by "
        "the regions that could be asked both ways; 95 % intervals over groups.",
        markdown(["prompt", *runs], plain),
        markdown(["change", *runs], rows),
    ]


def _against(table: Table, runs: Mapping[str, Trained], prompt: str) -> str | None:
    """The run that a table compares with by this prompt kind."""
    if table.against == "best comparator":
        names = [run.name for run in COMPARATORS if run.name in runs]
        return best({name: run.val for name, run in runs.items()}, names, MIXED, prompt)
    return table.against if table.against in runs else None


def _all_but(terms: Iterable[str]) -> Callable:
    left_out = set(terms)

    def metric(answers):  # type: ignore[no-untyped-def]
        return recall_of(set(answers.classes) - left_out)(answers)

    return metric


def _by_source(runs: Mapping[str, Trained]) -> str:
    rows = []
    for name, run in runs.items():
        row = [name]
        for source in REGION_SOURCES:
            cells = [figure(run.test, Asked("region", source, prompt, "prompted"), ACCURACY) for prompt in PROMPTS]
            row.append(", ".join(NONE if cell is None else f"{100 * cell.value:.1f}" for cell in cells))
        rows.append(row)
    boxes = ["box_geometry"]
    some = next(iter(runs.values())).test
    for source in REGION_SOURCES:
        cells = [figure(some, Asked("region", source, prompt, "box_geometry"), ACCURACY) for prompt in PROMPTS]
        boxes.append(", ".join(NONE if cell is None else f"{100 * cell.value:.1f}" for cell in cells))
    return markdown(["way", *REGION_SOURCES], [*rows, boxes])


def _by_seed(scores: Mapping[tuple[str, str], Figure | None], runs: Mapping[str, Trained]) -> str:
    seeds = sorted({seed for scored in scores.values() if scored for seed in scored.by_seed})
    rows = []
    for name in runs:
        row = [name]
        for seed in seeds:
            cells = [scored.by_seed.get(seed) if (scored := scores[name, prompt]) else None for prompt in PROMPTS]
            row.append(", ".join(NONE if cell is None else f"{100 * cell:.1f}" for cell in cells))
        rows.append(row)
    return markdown(["way", *(f"seed {seed}" for seed in seeds)], rows)


def _chance(runs: Mapping[str, Trained]) -> str:
    """1 / classes, mean over the sources, by prompt kind."""
    some = next(iter(runs.values())).test
    out = []
    for prompt in PROMPTS:
        shares = []
        for source in MIXED:
            sizes = [
                len(a.classes)  # type: ignore[attr-defined]
                for answers in some.values()
                if (a := answers.get(Asked("region", source, prompt, "prompted"))) is not None and len(a)
            ]
            if sizes:
                shares.append(len(sizes) / sum(sizes))
        if shares:
            out.append(f"{100 * sum(shares) / len(shares):.1f} by {prompt}")
    return ", ".join(out)


def _hashes(runs: Mapping[str, Trained], provenance: Provenance) -> str:
    rows = [[name, *(run.hashes[seed][:12] for seed in provenance.seeds)] for name, run in runs.items()]
    rows.append(["shards' manifests", *(provenance.manifests[seed][:12] for seed in provenance.seeds)])
    head = ["SHA-256 of", *(f"seed {seed}" for seed in provenance.seeds)]
    return f"<details><summary>Hashes</summary>\n\n{markdown(head, rows)}\n\n</details>"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    lines = [list(head), ["---", *["---:"] * (len(head) - 1)], *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _percent(scored: Figure | None) -> str:
    return NONE if scored is None else f"{100 * scored.value:.1f}{_range(scored)}"


def _points(apart: Figure | None) -> str:
    return NONE if apart is None else f"{100 * apart.value:+.1f}{_range(apart, '+')}"


def _range(scored: Figure, sign: str = "") -> str:
    interval = scored.interval
    return "" if interval is None else f" [{100 * interval[0]:{sign}.1f}, {100 * interval[1]:{sign}.1f}]"


def _minus(one: Figure | None, other: Figure | None) -> Figure | None:
    return None if one is None or other is None else one - other
