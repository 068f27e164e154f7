"""The tables of docs/results.md, as Markdown between markers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from figures import ACCURACY, Figure, figure, mean_figure, minus, over_sources, paired, recall_of, region
from notation import NONE, markdown, percent, points
from plan import ELSEWHERE, MIXED, PROMPTS, REGION_SOURCES, Table, way_of
from region_tables import regions, validation
from trained import Trained

from medpclip.errors import MedpclipError
from medpclip.evaluation.results.answers import Asked
from medpclip.files import write_atomically


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
        "regions": regions,
        "validation": validation,
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
    write_atomically(page, f"{before}\n{text}\n{after}".encode())


def _images(table: Table, runs: Mapping[str, Trained]) -> list[str]:
    """The image embedding against the twin's, and images answered by the region embedding against the image's own."""
    asked = sorted({a for run in runs.values() for seed in run.test.values() for a in seed if a.section == "image"})
    own = [a for a in asked if a.comparator == "unprompted"]  # one for each label
    score: dict[tuple[str, Asked | None], Figure | None] = {}
    for name, run in runs.items():
        score |= {(name, a): figure(run.test, a, ACCURACY) for a in own}
        score[name, None] = mean_figure([found for a in own if (found := score[name, a])])
    rows = []
    for name in runs:
        row = [name]
        for a in (*own, None):
            apart = NONE if name == table.against else points(minus(score[name, a], score.get((table.against, a))))
            row += [percent(score[name, a]), apart]
        rows.append(row)
    out = [
        "Balanced accuracy of image-level questions in percent, by the image embedding, and its difference in points, "
        f"paired, to {table.against}; 95 % intervals over groups.",
        markdown(["way", *(text for name in (*(a.name for a in own), "mean") for text in (name, "difference"))], rows),
    ]
    rows = []
    for name, box in itertools.product(runs, sorted({a.prompt for a in asked if a.comparator == "prompted"})):
        pairs = [(a._replace(prompt=box, comparator="prompted"), a) for a in own]
        told = [points(paired(runs[name].test, some, ACCURACY)) for some in (*([pair] for pair in pairs), pairs)]
        rows.append([name, box, *told])
    if rows:
        caption = "The same questions answered by the region embedding of a box, minus the image embedding, in points:"
        out += [caption, markdown(["way", "box", *(a.name for a in own), "mean"], rows)]
    asked_regions = [
        [n, *(percent(over_sources(run.test, MIXED, p, ACCURACY)) for p in PROMPTS)] for n, run in runs.items()
    ]
    return [*out, "The region question, in percent:", markdown(["way", *PROMPTS], asked_regions)]


def _sources(table: Table, runs: Mapping[str, Trained]) -> list[str]:
    """Each source that some run was trained without: with it in training, and without."""
    metrics = {"all": ACCURACY, ", ".join(ELSEWHERE): recall_of(ELSEWHERE)}
    rows = []
    for run in table.runs:
        whole = way_of(run)
        for source, prompt, classes in itertools.product(run.without, PROMPTS, metrics):
            asked = region(source, prompt)
            seen, unseen = (figure(runs[name].test, asked, metrics[classes]) for name in (whole, run.name))
            if seen is not None and unseen is not None:
                rows.append([source, classes, prompt, whole, percent(unseen), percent(seen), points(unseen - seen)])
    rows.sort(key=lambda row: (row[0], list(metrics).index(row[1]), PROMPTS.index(row[2])))
    left_out = "; ".join(dict.fromkeys(" and ".join(run.without) for run in table.runs if run.without))
    head = ["source", "classes", "prompt", "way", "unseen", "seen", "difference"]
    return [
        f"Mean recall in percent on the test split of a source that training saw nothing of ({left_out} were left out "
        "together), and of the same way trained with the source's own train split. Candidates are the source's own classes. "
        "*all* are its classes, of which training may have seen some in other sources, or none; the others are those that it "
        "did, red blood cells by the names of their kinds. With one of the lung sources left out, the other one, of the same "
        "collection, stays in training.",
        markdown(head, rows),
    ]


def _terms(table: Table, runs: Mapping[str, Trained]) -> list[str]:
    """Recall of the terms left out of training, and of all others."""
    first = next(iter(runs))
    asked = {"left-out terms": recall_of(table.terms), "other terms": _all_but(table.terms)}
    columns = [(what, prompt) for what in asked for prompt in PROMPTS]
    score = {
        name: [over_sources(run.test, REGION_SOURCES, prompt, asked[what]) for what, prompt in columns]
        for name, run in runs.items()
    }
    rows = [[name, *map(percent, scored)] for name, scored in score.items()]
    apart = [
        [name, *(points(minus(one, other)) for one, other in zip(scored, score[first], strict=True))]
        for name, scored in score.items()
        if name != first
    ]
    head = ["way", *(f"{what}, {prompt}" for what, prompt in columns)]
    return [
        f"Mean recall in percent of {', '.join(table.terms)}, which training saw no region of, among all classes of their "
        "source, and that of the other classes; the first row was trained with all.",
        markdown(head, rows),
        f"Difference in points, paired, to {first}:",
        markdown(head, apart),
    ]


def _robustness(table: Table, runs: Mapping[str, Trained]) -> list[str]:
    """The region question with worse prompts and images, minus the question as it is."""
    changes = dict.fromkeys(
        a.prompt for run in runs.values() for seed in run.test.values() for a in seed if a.section == "robustness"
    )
    tiny = [name for name in changes if name.endswith("of tiny regions")]
    plain = [[p, *(percent(over_sources(run.test, MIXED, p, ACCURACY)) for run in runs.values())] for p in PROMPTS]
    plain += [
        [name, *(percent(over_sources(run.test, MIXED, name, ACCURACY, "robustness")) for run in runs.values())]
        for name in tiny
    ]
    rows = [
        [name, *(points(paired(run.test, _worse(name), ACCURACY)) for run in runs.values())]
        for name in changes
        if name not in tiny
    ]
    return [
        "Balanced accuracy in percent as it is, and of tiny regions alone; then what is gained or lost, in points, paired, by "
        "the regions that could be asked both ways; 95 % intervals over groups.",
        markdown(["prompt", *runs], plain),
        markdown(["change", *runs], rows),
    ]


def _worse(name: str) -> list[tuple[Asked, Asked]]:
    """Each source's question with a worse prompt, and as it is."""
    return [(Asked("robustness", source, name, "prompted"), region(source, name.split()[0])) for source in MIXED]


def _all_but(terms: Iterable[str]) -> Callable:
    left_out = set(terms)

    def metric(answers):  # type: ignore[no-untyped-def]
        return recall_of(set(answers.classes) - left_out)(answers)

    return metric


def _hashes(runs: Mapping[str, Trained], provenance: Provenance) -> str:
    rows = [[name, *(run.hashes[seed][:12] for seed in provenance.seeds)] for name, run in runs.items()]
    rows.append(["shards' manifests", *(provenance.manifests[seed][:12] for seed in provenance.seeds)])
    for what, codes in (("code", _trained_by), ("measured by code", _measured_by)):
        for code in sorted({one for run in runs.values() for seed in provenance.seeds for one in codes(run, seed)}):
            by = [{name for name, run in runs.items() if code in codes(run, seed)} for seed in provenance.seeds]
            told = ["all" if len(names) == len(runs) else ", ".join(sorted(names)) or NONE for names in by]
            rows.append([f"{what} {code[:12]}", *told])
    head = ["SHA-256 of", *(f"seed {seed}" for seed in provenance.seeds)]
    return f"<details><summary>Hashes</summary>\n\n{markdown(head, rows)}\n\n</details>"


def _trained_by(run: Trained, seed: int) -> frozenset[str]:
    return frozenset({run.code[seed]})


def _measured_by(run: Trained, seed: int) -> frozenset[str]:
    return run.measured_by[seed]
