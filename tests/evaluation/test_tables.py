from medpclip.evaluation.tables import differences_table, figure, images_table, pairs_table, regions_table, tables


def row(source, prompt, comparator, value, **more):
    return {
        "source": source, "prompt": prompt, "comparator": comparator, "value": value, "interval": [0.5, 0.75],
        "exposure": "seen source",
        "cases": 12, "groups": 5, "classes": ["a", "b"], "kind": "place", "minus": comparator, "label": "modality",
    } | more  # fmt: skip


def result(**parts):
    empty = {"headline": [], "region": [], "pairs": [], "image": [], "differences": []}
    return {"task": {"bootstrap": {"level": 0.95}}} | empty | parts


def test_columns_stand_in_a_fixed_order_and_the_best_is_known():
    rows = [
        row("s", "box", name, v) for name, v in [("zebra", 0.1), ("crop", 0.9), ("prompted", 0.9), ("unprompted", 0.2)]
    ]
    rows.append(row("s", "point", "crop", None, interval=None))
    table = regions_table(result(region=rows))
    assert table.headings == ["source", "exposure", "prompt", "n/groups", "prompted", "unprompted", "crop", "zebra"]
    assert table.rows[0] == [
        "s",
        "seen source",
        "box",
        "12/5",
        "90.0 [50.0, 75.0]",
        "20.0 [50.0, 75.0]",
        "90.0 [50.0, 75.0]",
        "10.0 [50.0, 75.0]",
    ]
    assert table.best == [{4, 6}, set()]
    assert table.rows[1][4:] == ["-", "-", "-", "-"]


def test_text_is_aligned():
    lines = (
        regions_table(result(region=[row("a long source", "box", "crop", 0.5), row("b", "mask", "crop", 1.0)]))
        .text()
        .splitlines()
    )
    assert lines[1].startswith("source         exposure     prompt") and len({len(line) for line in lines[1:-1]}) == 1


def test_the_note_names_the_comparators_that_were_not_trained_as_such():
    names = ["prompted", "mask_pooling", "crop", "prompted_crop"]
    table = regions_table(result(region=[row("s", "box", name, 0.5) for name in names]))
    assert table.text().splitlines()[-1].startswith("not trained as such: crop, mask pooling use the same weights")
    assert regions_table(result(region=[row("s", "box", "prompted_crop", 0.5)])).note == ""


def test_a_mean_needs_several_sources():
    one = {
        "sources": ["s"],
        "exposure": "seen source",
        "prompt": "box",
        "comparator": "crop",
        "value": 0.5,
        "interval": None,
    }
    both = one | {"sources": ["s", "t"]}
    rows = [row("s", "box", "crop", 0.5)]
    assert [r[0] for r in regions_table(result(headline=[one], region=rows)).rows] == ["s"]
    assert [r[0] for r in regions_table(result(headline=[both], region=rows)).rows] == ["MEAN of 2", "s"]


def test_pairs_images_differences():
    pairs = [row("s", "box", "crop", 0.5)]
    assert pairs_table(result(pairs=pairs)).rows == [["place", "a / b", "box", "50.0 [50.0, 75.0]"]]
    several = [*pairs, row("t", "box", "crop", 0.5)]
    assert [r[2] for r in pairs_table(result(pairs=several)).rows] == ["s", "t"]
    images = images_table(result(image=[row("s", "image", "unprompted", 0.5)]))
    assert images.rows[0][:4] == ["modality", "seen source", "2", "12/5"]
    minus = differences_table(result(differences=[row("s", "box", "crop", -0.1, interval=[-0.2, 0.0])]))
    assert minus.rows == [["s", "box", "-10.0 [-20.0, +0.0]"]]
    assert tables(result()) == []


def test_figure_without_a_value_or_an_interval():
    assert figure({"value": None, "interval": None}) == "-"
    assert figure({"value": 0.5, "interval": None}) == "50.0"
