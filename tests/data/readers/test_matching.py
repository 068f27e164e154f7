"""A stated name means one image, or none: exact paths first, and never another folder's image."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medpclip.data.readers.matching import AMBIGUOUS, MISSING, match_names


@pytest.mark.parametrize(
    "stated", ["a/1.PNG", "./a/1.PNG", "images/a/1.PNG", "a\\1.PNG", "a/1.jpg", "a/1", "1.PNG", "1", "C:\\x\\1.PNG"]
)
def test_names_of_one_image(tmp_path: Path, stated: str) -> None:
    files = [tmp_path / "images/a/1.PNG"]
    files[0].parent.mkdir(parents=True)
    files[0].touch()
    assert match_names(tmp_path, "images", files, [stated]) == ({stated: files[0]}, set())
    assert match_names(tmp_path, "images/*/*", files, [stated]) == ({stated: files[0]}, set())


def test_a_name_is_taken_only_where_it_is_one_images(tmp_path: Path) -> None:
    there = [tmp_path / name for name in ("images/train/1.png", "images/x/2.png", "images/y/2.png", "images/1.2.3.png")]
    for path in there:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def find(*stated: str, how: str = "auto") -> dict[str, Any]:
        return match_names(tmp_path, "images", there, stated, how)[0]

    missing, ambiguous = "image file is missing", "several files share one name"
    assert find("train/1.png", "test/1.png") == {"train/1.png": there[0], "test/1.png": missing}
    assert find("/a/1.png", "/b/1.png") == {"/a/1.png": ambiguous, "/b/1.png": ambiguous}
    assert find("2.png", "x/2") == {"2.png": there[2], "x/2": there[1]}
    assert find("2") == {"2": ambiguous}
    assert find("1.2.3", "1.2") == {"1.2.3": there[3], "1.2": missing}
    assert find("../../etc/passwd", "/etc/passwd", ".") == dict.fromkeys(
        ["../../etc/passwd", "/etc/passwd", "."], missing
    )
    assert find("train/1.png", "1.png", how="name") == {"train/1.png": ambiguous, "1.png": ambiguous}
    assert find("1.png", how="path") == {"1.png": missing}
    assert find("1", how="stem") == {"1": there[0]}


paths = st.builds("/".join, st.lists(st.sampled_from(["a", "b", "1.png", "2"]), min_size=1, max_size=3))


@given(st.sets(paths, max_size=5), st.sets(paths, max_size=5), st.sampled_from(["auto", "path", "name", "stem"]))
def test_no_image_has_two_names_and_exact_paths_win(there: set[str], stated: set[str], how: str) -> None:
    source = Path("/nowhere")
    images = [source / "images" / path for path in sorted(there)]
    found, doubtful = match_names(source, "images", images, stated, how)
    matched = [image for image in found.values() if isinstance(image, Path)]
    assert found.keys() == stated and len(set(matched)) == len(matched)
    assert all(result in (MISSING, AMBIGUOUS) for result in found.values() if not isinstance(result, Path))
    assert not doubtful & set(matched) and doubtful <= set(images)
    if how in ("auto", "path"):
        assert all(found[name] == source / "images" / name for name in stated & there)


def test_ends_of_paths(tmp_path: Path) -> None:
    names = ["train/p1/s1/view1.jpg", "train/p2/s1/view1.jpg", "valid/p2/s1/view1.jpg"]
    there = [tmp_path / name for name in names]

    def find(*stated: str) -> dict[str, Any]:
        return match_names(tmp_path, ".", there, stated)[0]

    # The table's paths begin above the source, or below the folder of images.
    assert find(*(f"CheXpert/{name}" for name in names)) == {f"CheXpert/{name}": tmp_path / name for name in names}
    assert find("p1/s1/view1.jpg", "p2/s1/view1") == {"p1/s1/view1.jpg": there[0], "p2/s1/view1": AMBIGUOUS}
    assert find("x/p3/s1/view1.jpg") == {"x/p3/s1/view1.jpg": AMBIGUOUS}
    assert find("x/p1/view1.png") == {"x/p1/view1.png": AMBIGUOUS}


def test_an_expression_says_what_the_table_holds(tmp_path: Path) -> None:
    there = [tmp_path / name for name in ("i/01_02/109.png", "i/01_03/109.png", "i/odd.png")]
    stated = ["01_02_109.png", "01_03_109.png", "109.png"]
    found, doubtful = match_names(tmp_path, "i", there, stated, image_key="([^/]+)/([0-9]+[.]png)$")
    assert found == {"01_02_109.png": there[0], "01_03_109.png": there[1], "109.png": MISSING}
    assert not doubtful
    found, doubtful = match_names(tmp_path, "i", there, ["109"], image_key="/([0-9]+)[.]")
    assert found == {"109": AMBIGUOUS} and doubtful == set(there[:2])
