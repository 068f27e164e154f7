"""Recipes of public corpora of volumes: small trees of the documented layouts, built whole.

The trees are made here from the corpora's public documentation; nothing of the corpora is in them.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from built_recipe import SALT, SHIPPED, Built, regions

from medpclip.data.building.build import build
from medpclip.data.building.recipe import Recipe
from medpclip.errors import MedpclipError

SHAPE = (20, 16, 6)  # right, front, head


def refused(name: str, source: Path) -> str:
    """The message with which a build ends, and the private list that it points to, if it got so far."""
    with pytest.raises(MedpclipError) as caught:
        build(Recipe.load(SHIPPED / f"{name}.yaml"), source, source.with_name("refused"), SALT)
    assert "\n" not in str(caught.value)
    listed = source.with_name("refused.private") / "quarantine.jsonl"
    return str(caught.value) + (listed.read_text() if listed.exists() else "")


def volume(path: Path, array: np.ndarray, spacing: tuple[float, float, float] = (2, 2, 5), stored: str = "RAS") -> None:
    """Save an array whose axes point to right, front and head, stored in other axes."""
    import nibabel
    from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

    path.parent.mkdir(parents=True, exist_ok=True)
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(tuple(stored)))
    affine = np.diag([*spacing, 1.0]) @ inv_ornt_aff(turn, array.shape)
    nibabel.save(nibabel.Nifti1Image(nibabel.apply_orientation(array, turn), affine), path)


def noise(path: Path) -> np.ndarray:
    """Another one for each path: the build refuses copies."""
    return np.random.default_rng(list(path.as_posix().encode())).integers(-200, 300, SHAPE).astype(np.int16)


def cuboid(value: int = 1, z: tuple[int, int] = (2, 4)) -> np.ndarray:
    """Voxels 12 to 16 to the right, 3 to 9 to the front, in two slices: x 3 to 8 and y 6 to 13 of the picture."""
    out = np.zeros(SHAPE, np.uint8)
    out[12:17, 3:10, z[0] : z[1]] = value
    return out


BOX = [3, 6, 5, 7]  # of the cuboid, as radiologists see it: right on the left, front at the top


def totalsegmentator(image: str, structures: list[str]) -> Callable[[Path], None]:
    def make(source: Path) -> None:
        lines = ["\ufeffimage_id;age;gender;institute;study_type;split"]
        for case, split in (("s0011", "train"), ("s0058", "val"), ("s0223", "test")):
            folder = source / case
            volume(folder / image, noise(folder))
            for structure in structures:
                there = structure != structures[-1]
                volume(folder / f"segmentations/{structure}.nii.gz", cuboid() * np.uint8(there))
            lines.append(f"{case};65;m;A;ct abdomen;{split}")
        (source / "meta.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")

    return make


CT = totalsegmentator("ct.nii.gz", ["kidney_left", "vertebrae_L5", "heart_atrium_left", "spleen"])
MRI = totalsegmentator("mri.nii.gz", ["intervertebral_discs", "sartorius_right", "brain"])


def test_totalsegmentator_ct(tmp_path: Path) -> None:
    CT(tmp_path / "source")
    built = Built("totalsegmentator_ct", tmp_path / "source")
    assert built.counts() == (3, 9, 0), "of two annotated slices each, one in three is taken"
    first = built.of("s0011/ct.nii.gz", "z 002")
    # "heart_atrium_left" is of the first version, and "spleen" has an empty file.
    assert sorted(regions(first)) == [("left atrium", BOX), ("left kidney", BOX), ("vertebra L5", BOX)]
    assert (first.modality, first.split, first.labels) == ("CT", "train", {"sex": "male", "age": "older adult"})
    assert (first.spacing, len(first.annotated_terms)) == ([2, 2], 117)
    assert [built.of(f"{case}/ct.nii.gz", "z 002").split for case in ("s0058", "s0223")] == ["val", "test"]


def test_totalsegmentator_mri(tmp_path: Path) -> None:
    MRI(tmp_path / "source")
    built = Built("totalsegmentator_mri", tmp_path / "source")
    assert built.counts() == (6, 12, 0)
    first, second = (built.of("s0011/mri.nii.gz", f"z 00{i}") for i in (2, 3))
    assert sorted(regions(first)) == [("intervertebral disc", BOX), ("right sartorius", BOX)]
    assert (first.modality, first.group == second.group) == ("MRI", True)
    assert len({sample.group for sample in built.samples}) == 3


def brats2021(source: Path) -> None:
    for case, ending in (("BraTS2021_00000", ".nii.gz"), ("BraTS20_Training_001", ".nii")):
        folder = source / "TrainingData" / case
        for sequence in ("flair", "t1", "t1ce", "t2"):
            path = folder / f"{case}_{sequence}{ending}"
            volume(path, noise(path), (1, 1, 1), "LPS")
        seg = cuboid(2, (2, 4)) + cuboid(4, (5, 6))
        volume(folder / f"{case}_seg{ending}", seg, (1, 1, 1), "LPS")


def test_brats2021_and_2020(tmp_path: Path) -> None:
    brats2021(tmp_path / "source")
    built = Built("brats2021", tmp_path / "source")
    assert built.counts() == (24, 24, 0)
    folder = "TrainingData/BraTS2021_00000/BraTS2021_00000"
    flair, t1ce = built.of(f"{folder}_flair.nii.gz", "z 002"), built.of(f"{folder}_t1ce.nii.gz", "z 005")
    assert (flair.modality, regions(flair)) == ("FLAIR", [("peritumoral oedema", BOX)])
    assert (t1ce.modality, regions(t1ce)) == ("contrast-enhanced T1-weighted MRI", [("enhancing tumour", BOX)])
    assert flair.group == t1ce.group
    assert len({sample.group for sample in built.samples}) == 2


def brats2023(source: Path) -> None:
    for case in ("BraTS-GLI-00000-000", "BraTS-GLI-00000-001", "BraTS-GLI-00002-000"):
        for sequence in ("t1c", "t1n", "t2f", "t2w"):
            path = source / case / f"{case}-{sequence}.nii.gz"
            volume(path, noise(path), (1, 1, 1), "LPS")
        volume(source / case / f"{case}-seg.nii.gz", cuboid(1, (2, 3)) + cuboid(3, (3, 4)), (1, 1, 1), "LPS")


def test_brats2023(tmp_path: Path) -> None:
    brats2023(tmp_path / "source")
    built = Built("brats2023", tmp_path / "source")
    assert built.counts() == (24, 24, 0)
    cases = ("BraTS-GLI-00000-000", "BraTS-GLI-00000-001", "BraTS-GLI-00002-000")
    first, later, other = (built.of(f"{case}/{case}-t2f.nii.gz", "z 003") for case in cases)
    assert (first.modality, regions(first)) == ("FLAIR", [("enhancing tumour", BOX)])
    assert first.group == later.group != other.group, "two scans of one patient"


def isles2022(source: Path) -> None:
    for i, case in enumerate(("sub-strokecase0001", "sub-strokecase0002")):
        name, inner = f"{case}_ses-0001", ["", "dwi"][i]  # as in the first release, and as in the later one
        for sequence in ("dwi", "adc"):
            path = source / ("rawdata", ".")[i] / case / "ses-0001" / inner / f"{name}_{sequence}.nii.gz"
            volume(path, noise(path))
        flair = path.parent / f"{name}_{('flair', 'FLAIR')[i]}.nii.gz"
        volume(flair, noise(flair)[:, :, :3], (2, 2, 9))
        volume(source / "derivatives" / case / "ses-0001" / f"{name}_msk.nii.gz", cuboid())


def test_isles2022(tmp_path: Path) -> None:
    isles2022(tmp_path / "source")
    built = Built("isles2022", tmp_path / "source")
    assert built.counts() == (8, 8, 0)
    assert not built.quarantined
    adc = built.of("sub-strokecase0002/ses-0001/dwi/sub-strokecase0002_ses-0001_adc.nii.gz", "z 003")
    assert (adc.modality, regions(adc)) == ("apparent diffusion coefficient map", [("ischaemic stroke", BOX)])
    assert len({sample.group for sample in built.samples}) == 2


def lits(source: Path) -> None:
    for i in (0, 10):
        volume(source / f"volume-{i}.nii", noise(Path(str(i))), stored="LAS")
        volume(source / f"segmentation-{i}.nii", cuboid(1, (1, 3)) + cuboid(2, (3, 4)), stored="LAS")
    volume(source / "test-volume-0.nii", noise(source))


def msd(source: Path) -> None:
    folder = source / "Task03_Liver"
    for i in (0, 10):
        volume(folder / f"imagesTr/liver_{i}.nii.gz", noise(Path(str(i))), stored="LAS")
        volume(folder / f"labelsTr/liver_{i}.nii.gz", cuboid(1, (1, 3)) + cuboid(2, (3, 4)), stored="LAS")
    volume(folder / "imagesTs/liver_1.nii.gz", noise(folder))
    (folder / "imagesTr/._liver_0.nii.gz").write_bytes(b"left by an archiver")


@pytest.mark.parametrize(
    ("name", "tree", "first"),
    [("lits", lits, "volume-0.nii"), ("msd_task03_liver", msd, "Task03_Liver/imagesTr/liver_0.nii.gz")],
)
def test_liver(tmp_path: Path, name: str, tree: Callable[[Path], None], first: str) -> None:
    tree(tmp_path / "source")
    built = Built(name, tmp_path / "source")
    assert built.counts() == (6, 6, 0)
    assert not built.quarantined, "what has no labels by design is left out"
    assert regions(built.of(first, "z 001")) == [("liver", BOX)]
    assert regions(built.of(first, "z 003")) == [("liver tumour", BOX)]
    assert len({sample.group for sample in built.samples}) == 2


def kits23(source: Path) -> None:
    for i in range(2):
        folder = source / "dataset" / f"case_0000{i}"
        volume(folder / "imaging.nii.gz", noise(folder), stored="ILP")
        volume(folder / "segmentation.nii.gz", cuboid(1, (1, 2)) + cuboid(2, (2, 3)) + cuboid(3, (3, 4)), stored="ILP")
        volume(folder / "instances/kidney_instance-1_annotation-1.nii.gz", cuboid(), stored="ILP")


def test_kits23(tmp_path: Path) -> None:
    kits23(tmp_path / "source")
    built = Built("kits23", tmp_path / "source")
    assert built.counts() == (6, 6, 0)
    assert not built.quarantined
    image = "dataset/case_00001/imaging.nii.gz"
    found = [regions(built.of(image, f"z 00{z}")) for z in (1, 2, 3)]
    assert found == [[("kidney", BOX)], [("kidney tumour", BOX)], [("kidney cyst", BOX)]]


def lacks(path: str) -> Callable[[Path], None]:
    def remove(source: Path) -> None:
        (source / path).rename(source / "elsewhere")

    return remove


def renamed(old: str, new: str) -> Callable[[Path], None]:
    """Files whose names go on otherwise."""

    def rename(source: Path) -> None:
        for path in list(source.rglob(f"*{old}*")):
            path.rename(path.with_name(path.name.replace(old, new)))

    return rename


def without_split(source: Path) -> None:
    text = (source / "meta.csv").read_text(encoding="utf-8")
    (source / "meta.csv").write_text(text.replace(";split", ";part"), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "tree", "damage", "says"),
    [
        ("totalsegmentator_ct", CT, renamed("ct.nii", "image.nii"), "no NIfTI file fits '**/{case:s[0-9]+}/ct.nii.gz'"),
        ("totalsegmentator_ct", CT, lacks("meta.csv"), "meta.csv: unreadable table"),
        ("totalsegmentator_ct", CT, renamed("segmentations", "labels"), "nothing fits '**/{case}/segmentations"),
        ("totalsegmentator_ct", CT, without_split, "image is in none of the published splits"),
        ("totalsegmentator_mri", MRI, renamed("mri.nii", "mr.nii"), "/mri.nii.gz'"),
        ("brats2021", brats2021, renamed("_seg", "-seg"), "nothing fits '**/{case}/{case}_seg.nii.gz"),
        ("brats2023", brats2023, renamed("-seg", "_seg"), "nothing fits '**/{case}/{case}-seg.nii.gz"),
        ("isles2022", isles2022, renamed("_ses-0001", ""), "no NIfTI file fits"),
        ("lits", lits, renamed("volume-", "ct-"), "no NIfTI file fits '**/volume-{case"),
        (
            "kits23",
            kits23,
            renamed("segmentation", "aggregated_MAJ_seg"),
            "nothing fits '**/{case}/segmentation.nii.gz",
        ),
        ("msd_task03_liver", msd, renamed("labelsTr", "labels"), "nothing fits '**/labelsTr/{case}.nii.gz"),
    ],
)
def test_another_layout_is_refused_by_name(
    tmp_path: Path, name: str, tree: Callable[[Path], None], damage: Callable[[Path], None], says: str
) -> None:
    tree(tmp_path / "source")
    damage(tmp_path / "source")
    assert says in refused(name, tmp_path / "source")


def test_a_sequence_of_another_name_is_listed(tmp_path: Path) -> None:
    brats2021(tmp_path / "source")
    renamed("_t1ce", "_t1gd")(tmp_path / "source")
    built = Built("brats2021", tmp_path / "source")
    assert built.counts() == (18, 18, 0)
    assert {reason for _, reason in built.quarantined} == {"file fits none of the recipe's patterns"}
    assert len(built.quarantined) == 2
