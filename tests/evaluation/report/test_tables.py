import pytest

from medpclip.evaluation.report.tables import (
    calibration_table,
    differences_table,
    figure,
    images_table,
    labels_table,
    metrics_table,
    pairs_table,
    prompted_images_table,
    published_table,
    regions_table,
    retrieval_table,
    robustness_table,
    subgroups_tables,
    tables,
)


def row(name, prompt, comparator, value, **more):
    return {
        "section": "region", "name": name, "part": None, "prompt": prompt, "comparator": comparator, "minus_prompt": None,
        "minus": None, "metric": "balanced_accuracy", "value": value, "interval": [0.5, 0.75], "exposure": "seen source",
        "sources": [name], "cases": 12, "groups": 5, "candidates": 2, "classes": ["a", "b"],
    } | more  # fmt: skip


def result(**parts):
    empty = {key: [] for key in ("headline", "rows", "pairs", "differences", "subgroups", "published")}
    return {"task": {"bootstrap": {"level": 0.95}}, "model": {"name": "mine"}} | empty | parts


def test_columns_stand_in_a_fixed_order_and_the_best_is_known():
    rows = [
        row("a_b", "box", name, v)
        for name, v in [("zebra", 0.1), ("crop", 0.9), ("prompted", 0.9), ("unprompted", 0.2)]
    ]
    rows.append(row("a_b", "point", "crop", None, interval=None))
    rows.append(row("a_b", "box", "crop", 0.3, metric="accuracy"))
    table = regions_table(result(rows=rows))
    assert table.headings == ["source", "exposure", "prompt", "n/groups", "prompted", "unprompted", "crop", "zebra"]
    figures = ["90.0 [50.0, 75.0]", "20.0 [50.0, 75.0]", "90.0 [50.0, 75.0]", "10.0 [50.0, 75.0]"]
    assert table.rows[0] == ["a_b", "seen source", "box", "12/5", *figures]
    assert table.best == [{4, 6}, set()]
    assert table.rows[1][4:] == ["-", "-", "-", "-"]


def test_text_is_aligned():
    rows = [row("a long source", "box", "crop", 0.5), row("b", "mask", "crop", 1.0)]
    lines = regions_table(result(rows=rows)).text().splitlines()
    assert lines[1].startswith("source         exposure     prompt") and len({len(line) for line in lines[1:-1]}) == 1


def test_the_note_names_the_comparators_that_were_not_trained_as_such():
    names = ["prompted", "mask_pooling", "crop", "prompted_crop"]
    table = regions_table(result(rows=[row("s", "box", name, 0.5) for name in names]))
    assert table.text().splitlines()[-1].startswith("not trained as such: crop, mask pooling ask the same weights")
    assert regions_table(result(rows=[row("s", "box", "prompted_crop", 0.5)])).note == ""


def test_a_mean_needs_several_sources():
    one = row("MEAN", "box", "crop", 0.5, sources=["s"])
    rows = [row("s", "box", "crop", 0.5)]
    assert [r[0] for r in regions_table(result(headline=[one], rows=rows)).rows] == ["s"]
    both = one | {"sources": ["s", "t"]}
    assert [r[0] for r in regions_table(result(headline=[both], rows=rows)).rows] == ["MEAN of 2", "s"]


def test_pairs_and_differences():
    pairs = [row("s", "box", "crop", 0.5, part="place: a / b")]
    assert pairs_table(result(pairs=pairs)).rows == [["place", "a / b", "box", "50.0 [50.0, 75.0]"]]
    several = [*pairs, row("t", "box", "crop", 0.5, part="place: a / b")]
    assert [r[2] for r in pairs_table(result(pairs=several)).rows] == ["s", "t"]
    minus = [row("s", "box", "prompted", -0.1, minus_prompt="box", minus="crop", interval=[-0.2, 0.0])]
    assert differences_table(result(differences=minus)).rows == [["s", "box", "-10.0 [-20.0, +0.0]"]]
    assert tables(result()) == []


def test_images_have_a_row_for_each_way_to_ask():
    rows = [
        row("modality", "image", "unprompted", 0.5, section="image"),
        row("modality", "image", "unprompted", 0.6, section="image", metric="auroc"),
        row("modality", "image", "unprompted", 0.1, section="image", metric="ece"),
        row("modality", "full_box", "prompted", 0.4, section="image"),
    ]
    table = images_table(result(rows=rows))
    assert table.headings == ["label", "exposure", "asked by", "classes", "n/groups", "balanced accuracy", "AUROC"]
    assert table.rows[0][:5] == ["modality", "seen source", "image embedding", "2", "12/5"]
    assert table.rows[1][2] == "full box" and table.rows[1][-1] == "-"
    assert labels_table(result(rows=[rows[0] | {"section": "multi_label"}])).headings[3] == "labels"
    assert metrics_table(result(rows=[row("s", "box", "crop", 0.5, metric="macro_f1")])).headings[-1] == "macro F1"
    cost = [row("modality", "full_box", "prompted", -0.1, section="image", minus="unprompted", minus_prompt="image")]
    assert prompted_images_table(result(differences=cost)).rows[0][2] == "-10.0 [+50.0, +75.0]"


def test_other_sections():
    rank = [
        row("image to text: s", "image", "unprompted", 0.5, section="retrieval", metric=f"recall@{k}")
        for k in (1, 10, 5)
    ]
    table = retrieval_table(result(rows=rank))
    assert table.headings[-3:] == ["recall@1", "recall@10", "recall@5"] and "recall@k is" in table.note
    disturbed = row("s", "box jittered 10%", "prompted", 0.5, section="robustness")
    cost = disturbed | {"value": -0.1, "minus_prompt": "box", "minus": "prompted"}
    table = robustness_table(result(rows=[disturbed], differences=[cost]))
    assert table.headings[-2:] == ["prompted", "prompted: cost"] and table.rows[0][-1].startswith("-10.0")
    calibration = [row("s", "box", "prompted", v, metric=m) for m, v in (("ece", 0.123), ("brier", 1.5))]
    table = calibration_table(result(rows=calibration))
    assert table.headings[-2:] == ["ECE", "Brier score"] and table.rows[0][-2].startswith("0.123")
    parts = [row("s", "box", c, 0.5, part="size: below 2 %") for c in ("prompted", "crop")]
    [table] = subgroups_tables(result(subgroups=parts))
    assert table.headings[-2:] == ["prompted", "crop"] and table.rows[0][:3] == ["s", "size: below 2 %", "box"]


@pytest.mark.parametrize(("metric", "count"), [("Accuracy", 2), ("AUC", 1)])
def test_published_figures_stand_over_ours_of_the_same_metric(metric, count):
    published = [{"model": "theirs", "metric": metric, "value": 71.25, "source": "table 2", "note": ""}]
    rows = [
        row("modality", "image", "unprompted", 0.5, section="image", metric="accuracy"),
        row("s", "box", "prompted", 0.5, metric="accuracy"),
    ]
    table = published_table(result(published=published, rows=rows))
    assert table.rows[0] == ["theirs", metric, "table 2", "-", "71.2"] and len(table.rows) == count
    assert published_table(result(rows=rows)).rows == []


def test_figure_without_a_value_or_an_interval():
    assert figure({"value": None, "interval": None}) == "-"
    assert figure({"value": 0.5, "interval": None}) == "50.0"
