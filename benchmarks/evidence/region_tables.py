"""The tables that compare ways to point by the region question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from figures import ACCURACY, BySeed, Figure, best, figure, minus, named, over_sources, paired, region
from notation import NONE, markdown, percent, points, points_by_seed
from plan import BEST, MIXED, PROMPTS, REGION_SOURCES, Table, is_comparator, is_ours
from trained import Trained

Scores = Mapping[tuple[str, str], Figure | None]
"""(run, prompt) -> its headline."""


def regions(table: Table, runs: Mapping[str, Trained]) -> list[str]:
    """Balanced accuracy by prompt kind, costs, differences to what the table compares with, clicks, retrieval, details."""
    scores = {(n, p): over_sources(run.test, MIXED, p, ACCURACY) for n, run in runs.items() for p in PROMPTS}
    out = [
        "Balanced accuracy in percent, mean over the sources where several classes occur in an image, and over seeds; "
        f"95 % intervals over groups. {_sources(runs)} Chance is {_chance(runs)}. Classes of which the train split has no "
        "region are candidates, but not asked for. box_geometry sees sizes and places of boxes, and no pixels; "
        "of clicks it would know more than a model is told.",
        _headline(scores, runs),
        *_differences(table, scores, runs),
        "By one click, minus by the whole mask or the box, in points, paired, on the regions that can be asked both ways:",
        _clicks(runs),
        "What it takes:",
        _costs(runs),
    ]
    details = {
        "Each source (box, point, mask)": _by_source(runs),
        "Each source, difference": _differences_by_source(table, runs),
        "Each seed's mean over sources (box, point, mask)": _by_seed(scores, runs),
    }
    sections = {asked.section for run in runs.values() for given in run.test.values() for asked in given}
    if "retrieval" in sections:
        details["Retrieval"] = _retrieval(runs)
    if "image" in sections:
        details["Whole images, by the image embedding"] = _images(runs)
    if any(run.val for run in runs.values()):
        details["On validation (box, point, mask)"] = _validation(runs)
    return [*out, *(f"<details><summary>{name}</summary>\n\n{text}\n\n</details>" for name, text in details.items())]


def validation(table: Table, runs: Mapping[str, Trained]) -> list[str]:
    """The headline on the validation split, by which something is chosen."""
    return ["Balanced accuracy in percent by box, point and mask, on the validation split:", _validation(runs)]


def _validation(runs: Mapping[str, Trained]) -> str:
    scores = {(n, p): over_sources(run.val, MIXED, p, ACCURACY) for n, run in runs.items() for p in PROMPTS}
    return _by_seed(scores, runs, mean=True)


def _headline(scores: Scores, runs: Mapping[str, Trained]) -> str:
    rows = [[name, *(percent(scores[name, prompt]) for prompt in PROMPTS)] for name in runs]
    some = next(iter(runs.values())).test
    shapes = (over_sources(some, MIXED, p, ACCURACY, comparator="box_geometry") for p in PROMPTS)
    told = [NONE if prompt == "point" else percent(shape) for prompt, shape in zip(PROMPTS, shapes, strict=True)]
    return markdown(["way", *PROMPTS], [*rows, ["box_geometry", *told]])


def _differences(table: Table, scores: Scores, runs: Mapping[str, Trained]) -> list[str]:
    against = {prompt: _against(table, runs, prompt) for prompt in PROMPTS}
    if not any(against.values()):
        return []
    told = ", ".join(f"{prompt}: {name}" for prompt, name in against.items() if name)
    rows = [
        [
            name,
            *(
                NONE if name == a else points_by_seed(minus(scores[name, p], scores.get((a or "", p))))
                for p, a in against.items()
            ),
        ]
        for name in runs
        if set(against.values()) != {name}
    ]
    text = f"Difference in points, paired, with the lowest and the highest of the seeds, to {table.against} ({told}):"
    if table.against == BEST:
        text = (
            f"Difference in points, paired, with the lowest and the highest of the seeds, to the {table.against}, chosen on "
            f"validation ({told})."
        )
        ours = {p: _best(runs, filter(is_ours, runs), p) for p in PROMPTS}
        if any(ours.values()):
            text += f" Of ours, validation chooses {', '.join(f'{p}: {name}' for p, name in ours.items() if name)}."
    return [text, markdown(["way", *PROMPTS], rows)]


def _differences_by_source(table: Table, runs: Mapping[str, Trained]) -> str:
    """Of a table that looks for a best comparator, ours alone."""
    shown = list(filter(is_ours, runs)) if table.against == BEST else list(runs)
    rows = []
    for prompt in PROMPTS:
        other = _against(table, runs, prompt)
        for name in shown:
            if other is None or name == other or name not in runs:
                continue
            row = [f"{name}, {prompt}"]
            for source in MIXED:
                one, two = (figure(runs[n].test, region(source, prompt), ACCURACY) for n in (name, other))
                row.append(points(minus(one, two)))
            rows.append(row)
    return markdown(["way", *MIXED], rows)


def _sources(runs: Mapping[str, Trained]) -> str:
    """Which sources each prompt kind is asked in."""
    asked = {a for given in next(iter(runs.values())).test.values() for a, cases in given.items() if len(cases)}
    parts = [
        f"{prompt}: {', '.join(source for source in MIXED if region(source, prompt) in asked)}" for prompt in PROMPTS
    ]
    return f"Sources by {'; by '.join(parts)}."


def _against(table: Table, runs: Mapping[str, Trained], prompt: str) -> str | None:
    """The run that a table compares with by this prompt kind."""
    if table.against == BEST:
        return _best(runs, filter(is_comparator, runs), prompt)
    return table.against if table.against in runs else None


def _best(runs: Mapping[str, Trained], names: Iterable[str], prompt: str) -> str | None:
    return best({name: run.val for name, run in runs.items()}, [n for n in names if n in runs], MIXED, prompt)


def _clicks(runs: Mapping[str, Trained]) -> str:
    rows = []
    for name, run in runs.items():
        pairs = {o: [(region(source, "point"), region(source, o)) for source in MIXED] for o in ("mask", "box")}
        rows.append([name, *(points(paired(run.test, pair, ACCURACY)) for pair in pairs.values())])
    return markdown(["way", "minus mask", "minus box"], rows)


def _costs(runs: Mapping[str, Trained]) -> str:
    head = [
        "way",
        "steps",
        "GFLOP a step",
        "MFLOP an image",
        "MFLOP a region",
        "M parameters",
        "less words",
    ]
    rows = [
        [
            name,
            f"{run.steps}",
            f"{run.cost.flops / 1e9:.0f}",
            f"{run.cost.image / 1e6:.0f}",
            f"{run.cost.region / 1e6:.1f}",
            f"{run.cost.parameters / 1e6:.2f}",
            f"{run.cost.without_words / 1e6:.2f}",
        ]
        for name, run in runs.items()
    ]
    return markdown(head, rows)


def _by_source(runs: Mapping[str, Trained]) -> str:
    some = next(iter(runs.values())).test
    rows = [[name, *_cells(run.test, "prompted")] for name, run in runs.items()]
    groups = ["groups, of all seeds", *(f"{_groups(some, source)}" for source in REGION_SOURCES)]
    return markdown(["way", *REGION_SOURCES], [*rows, ["box_geometry", *_cells(some, "box_geometry")], groups])


def _cells(answers: BySeed, comparator: str) -> list[str]:
    return [
        ", ".join(_short(figure(answers, region(source, prompt, comparator), ACCURACY)) for prompt in PROMPTS)
        for source in REGION_SOURCES
    ]


def _groups(answers: BySeed, source: str) -> int:
    asked = [region(source, prompt) for prompt in PROMPTS]
    return len({group for given in answers.values() for a in asked if a in given for group in given[a].groups})


def _short(scored: Figure | None) -> str:
    return NONE if scored is None else f"{100 * scored.value:.1f}"


def _by_seed(scores: Scores, runs: Mapping[str, Trained], mean: bool = False) -> str:
    seeds = sorted({seed for scored in scores.values() if scored for seed in scored.by_seed})
    rows = []
    for name in runs:
        row = [name]
        for seed in seeds:
            cells = [scored.by_seed.get(seed) if (scored := scores[name, prompt]) else None for prompt in PROMPTS]
            row.append(", ".join(NONE if cell is None else f"{100 * cell:.1f}" for cell in cells))
        if mean:
            row.append(", ".join(_short(scores[name, prompt]) for prompt in PROMPTS))
        rows.append(row)
    return markdown(["way", *(f"seed {seed}" for seed in seeds), *(["mean"] if mean else [])], rows)


def _retrieval(runs: Mapping[str, Trained]) -> str:
    questions = {"region to text": "recall@1", "text to region": "found@5"}
    rows = []
    for name, run in runs.items():
        row = [name]
        for question, metric in questions.items():
            sources = [f"{question}: {source}" for source in MIXED]
            row += [percent(over_sources(run.test, sources, p, named(metric), section="retrieval")) for p in PROMPTS]
        rows.append(row)
    rows = [row for row in rows if set(row[1:]) != {NONE}]  # others were asked about regions alone
    head = ["way", *(f"{question}, {metric}, {p}" for question, metric in questions.items() for p in PROMPTS)]
    return (
        "Among the texts, or regions, of one source, in percent. recall@1: a right one comes first. found@5: the share of "
        f"the right ones among the first five.\n\n{markdown(head, rows)}"
    )


def _images(runs: Mapping[str, Trained]) -> str:
    found = (a for run in runs.values() for given in run.test.values() for a in given)
    asked = sorted({a for a in found if (a.section, a.comparator) == ("image", "unprompted")})
    rows = [[name, *(percent(figure(run.test, a, ACCURACY)) for a in asked)] for name, run in runs.items()]
    rows = [row for row in rows if set(row[1:]) != {NONE}]
    return f"Balanced accuracy in percent.\n\n{markdown(['way', *(a.name for a in asked)], rows)}"


def _chance(runs: Mapping[str, Trained]) -> str:
    """1 / classes, mean over the sources, by prompt kind."""
    some = next(iter(runs.values())).test
    out = []
    for prompt in PROMPTS:
        shares = []
        for source in MIXED:
            sizes = _class_counts(some, source, prompt)
            if sizes:
                shares.append(len(sizes) / sum(sizes))
        if shares:
            out.append(f"{100 * sum(shares) / len(shares):.1f} by {prompt}")
    return ", ".join(out)


def _class_counts(answers: BySeed, source: str, prompt: str) -> Sequence[int]:
    found = (given.get(region(source, prompt)) for given in answers.values())
    return [len(a.classes) for a in found if a is not None and len(a)]  # type: ignore[attr-defined]
