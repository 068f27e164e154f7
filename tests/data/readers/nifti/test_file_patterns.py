"""Patterns with placeholders: what fits, what doesn't, and what is refused."""

from pathlib import Path

import pytest

from medpclip.data.readers.nifti.file_patterns import FilePattern, find_files, match_all

NII = (".nii.gz", ".nii")


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("imagesTr/{case}_{channel:\\d{4}}.nii.gz", "imagesTr/a_b_0001.nii.gz", {"case": "a_b", "channel": "0001"}),
        ("imagesTr/{case}_{channel:\\d{4}}.nii.gz", "imagesTr/a_b_01.nii.gz", None),
        ("imagesTr/{case}.nii", "imagesTr/a.b.nii.gz", {"case": "a.b"}),
        ("imagesTr/{case}.nii.gz", "imagesTr/a.nii", {"case": "a"}),
        ("imagesTr/{case}.nii", "imagesTr/sub/a.nii", None),
        ("{case}/{case}_{sequence:t1|t1ce}.nii", "x/B1/B1_t1ce.nii", None),
        ("**/{case}/{case}_{sequence:t1|t1ce}.nii", "x/y/B1/B1_t1ce.nii.gz", {"case": "B1", "sequence": "t1ce"}),
        ("**/{case}/{case}_{sequence:t1|t1ce}.nii", "B1/B1_t1.nii.gz", {"case": "B1", "sequence": "t1"}),
        ("**/{case}/{case}_{sequence:t1|t1ce}.nii", "B1/B2_t1.nii.gz", None),
        ("*/{dir:.+}/v*.nii", "a/b/c/v+1.nii", {"dir": "b/c"}),
        ("a+(1).nii", "a+(1).nii", {}),
        ("a+(1).nii", "aa1.nii", None),
    ],
)
def test_what_fits(pattern: str, path: str, expected: dict[str, str] | None) -> None:
    assert FilePattern(pattern, NII).match(path) == expected


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("images", "must end in .nii.gz or .nii"),
        ("../{case}.nii", "leads out of the source"),
        ("/data/{case}.nii", "leads out of the source"),
        ("{case.nii", "isn't closed"),
        ("{Case}.nii", "placeholder 'Case'"),
        ("{}.nii", "placeholder ''"),
        ("{a:[}.nii", "broken regular expression"),
        ("{a:(x|y)}.nii", "has a group"),
        ("{a}/{a:x}.nii", "two regular expressions for 'a'"),
    ],
)
def test_what_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FilePattern(pattern, NII)


def test_files_are_found_at_any_depth_but_not_hidden_ones(tmp_path: Path) -> None:
    for name in ("a.nii", "b/c.nii.gz", "b/._c.nii.gz", ".d/e.nii", "f.nii.txt", "g.nii.gz/h.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files = find_files(tmp_path, NII)
    assert files == ["a.nii", "b/c.nii.gz", "g.nii.gz/h.nii"]
    assert match_all(FilePattern("{x}/{y}.nii", NII), files) == {
        "b/c.nii.gz": {"x": "b", "y": "c"},
        "g.nii.gz/h.nii": {"x": "g.nii.gz", "y": "h"},
    }
