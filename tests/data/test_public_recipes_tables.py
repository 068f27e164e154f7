"""Recipes of public corpora with tables, captions and challenge folders: small trees of the documented layouts.

The trees are made here from the corpora's public documentation; nothing of the corpora is in them.
"""

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_recipe import SALT, SHIPPED, Built, regions
from PIL import Image

from medpclip.data.building.build import build
from medpclip.data.building.recipe import Recipe
from medpclip.data.schema import encode_mask
from medpclip.errors import MedpclipError

W, H = 40, 32


def picture(path: Path) -> None:
    """Noise, another one for each path: the build refuses copies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = list(path.as_posix().encode())
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (H, W, 3), np.uint8)).save(path)


def block(x: int, y: int, w: int, h: int, value: int = 1) -> np.ndarray:
    mask = np.zeros((H, W), np.uint8)
    mask[y : y + h, x : x + w] = value
    return mask


def mask(path: Path, x: int, y: int, w: int, h: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of a lossy JPEG: neither 0 nor 255 any more.
    Image.fromarray(block(x, y, w, h) * np.uint8(248) + np.uint8(3)).save(path, quality=100)


def table(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def dicom(path: Path, seed: int) -> None:
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = pydicom.uid.UID(f"1.2.3.{seed}")
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Modality, data.PatientName = "DX", "Qwxyz^An"
    data.Rows, data.Columns, data.SamplesPerPixel = H, W, 1
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PhotometricInterpretation = "MONOCHROME1"
    data.PixelData = np.random.default_rng(seed).integers(0, 4096, (H, W)).astype("<u2").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path)


def refused(name: str, source: Path) -> str:
    """The message with which a build ends."""
    with pytest.raises(MedpclipError) as caught:
        build(Recipe.load(SHIPPED / f"{name}.yaml"), source, source.with_name("refused"), SALT)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rocov2(source: Path) -> None:
    captions = {
        "train_000001": "CT of the abdomen of Mr. John Smith on 12 March 2019 shows a cyst of the left kidney.",
        "valid_000001": "Chest radiograph with a pleural effusion.",
        "test_000001": "MRI of the knee.",
    }
    folders = {"train": "train_images/train", "valid": "valid", "test": "test"}
    for name, text in captions.items():
        split = name.split("_")[0]
        picture(source / folders[split] / f"ROCOv2_2023_{name}.jpg")
        table(source / f"{split}_captions.csv", [{"ID": f"ROCOv2_2023_{name}", "Caption": text}])


def test_rocov2(tmp_path: Path) -> None:
    rocov2(tmp_path / "source")
    built = Built("rocov2", tmp_path / "source")
    assert built.counts() == (3, 0, 0)
    first = built.of("train_images/train/ROCOv2_2023_train_000001.jpg")
    assert first.captions[0].startswith("CT of the abdomen of") and "cyst of the left kidney" in first.captions[0]
    assert "Smith" not in first.captions[0] and "2019" not in first.captions[0]
    assert sorted(sample.split for sample in built.samples) == ["test", "train", "val"]
    assert built.of("valid/ROCOv2_2023_valid_000001.jpg").split == "val"
    assert len({sample.group for sample in built.samples}) == 3


def pmc_oa(source: Path) -> None:
    folder = "images/caption_T060_filtered_top4_sep_v0_subfigures"
    lines = []
    for name in ("PMC100_Fig1_0.jpg", "PMC100_Fig2_1.jpg", "PMC200_Fig1_0.jpg"):
        picture(source / folder / name)
        lines.append({"image": name, "caption": f"Figure of {name[:6]}."})
    (source / "pmc_oa.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")


def test_pmc_oa(tmp_path: Path) -> None:
    pmc_oa(tmp_path / "source")
    built = Built("pmc_oa", tmp_path / "source")
    assert built.counts() == (3, 0, 0)
    folder = "images/caption_T060_filtered_top4_sep_v0_subfigures"
    first, second = (built.of(f"{folder}/{name}.jpg") for name in ("PMC100_Fig1_0", "PMC100_Fig2_1"))
    assert first.group == second.group != built.of(f"{folder}/PMC200_Fig1_0.jpg").group
    assert all(len(sample.captions) == 1 for sample in built.samples)


def medtrinity(source: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = []
    for i in range(3):
        picture(source / f"{i}.jpg")
        data = (source / f"{i}.jpg").read_bytes()
        (source / f"{i}.jpg").unlink()
        rows.append(
            {"image": {"bytes": data, "path": f"{i}.jpg"}, "id": f"uuid-{i}", "caption": f"A CT scan, number {i}."}
        )
    (source / "25M_demo").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), source / "25M_demo" / "train-00000-of-00001.parquet")


def test_medtrinity25m(tmp_path: Path) -> None:
    medtrinity(tmp_path / "source")
    built = Built("medtrinity25m", tmp_path / "source")
    assert built.counts() == (3, 0, 0)
    assert len({sample.group for sample in built.samples}) == 3
    assert {tuple(sample.captions) for sample in built.samples} == {(f"A CT scan, number {i}.",) for i in range(3)}


def ham10000(source: Path) -> None:
    rows = []
    for i, (part, lesion, dx) in enumerate([(1, "HAM_1", "mel"), (1, "HAM_2", "nv"), (2, "HAM_1", "mel")]):
        name = f"ISIC_002430{i}"
        picture(source / f"HAM10000_images_part_{part}/{name}.jpg")
        mask(source / f"HAM10000_segmentations_lesion_tschandl/{name}_segmentation.png", 4, 5, 6 + i, 7)
        facts = {"dx_type": "histo", "age": "45.0", "sex": "unknown", "localization": "back"}
        rows.append({"lesion_id": lesion, "image_id": name, "dx": dx} | facts)
    table(source / "HAM10000_metadata.csv", rows)


def test_ham10000(tmp_path: Path) -> None:
    ham10000(tmp_path / "source")
    built = Built("ham10000", tmp_path / "source")
    assert built.counts() == (3, 3, 0)
    first = built.of("HAM10000_images_part_1/ISIC_0024300.jpg")
    third = built.of("HAM10000_images_part_2/ISIC_0024302.jpg")
    assert first.labels == {"diagnosis": "melanoma", "age": "adult"}
    assert regions(third) == [("skin lesion", [4, 5, 8, 7])]
    assert first.group == third.group != built.of("HAM10000_images_part_1/ISIC_0024301.jpg").group


def isic2018(source: Path) -> None:
    for i, split in enumerate(("Training", "Validation", "Test")):
        picture(source / f"ISIC2018_Task1-2_{split}_Input/ISIC_000000{i}.jpg")
        (source / f"ISIC2018_Task1-2_{split}_Input/LICENSE.txt").write_text("CC0")
        mask(source / f"ISIC2018_Task1_{split}_GroundTruth/ISIC_000000{i}_segmentation.png", 2 + i, 3, 9, 8)


def test_isic2018_task1(tmp_path: Path) -> None:
    isic2018(tmp_path / "source")
    built = Built("isic2018_task1", tmp_path / "source")
    assert built.counts() == (3, 3, 0)
    for i, (folder, split) in enumerate([("Training", "train"), ("Validation", "val"), ("Test", "test")]):
        sample = built.of(f"ISIC2018_Task1-2_{folder}_Input/ISIC_000000{i}.jpg")
        assert (sample.split, regions(sample)) == (split, [("skin lesion", [2 + i, 3, 9, 8])])
    assert sample.group == SALT.hash("group", "isic\0ISIC_0000002"), "found again by other recipes of the archive"


def kvasir(source: Path) -> None:
    for i in range(3):
        picture(source / f"images/cju{i}.jpg")
        mask(source / f"masks/cju{i}.jpg", 8, 8, 16, 8)
    (source / "kavsir_bboxes.json").write_text("{}")


def test_kvasir_seg(tmp_path: Path) -> None:
    kvasir(tmp_path / "source")
    built = Built("kvasir_seg", tmp_path / "source")
    assert built.counts() == (3, 3, 0)
    assert [regions(sample) for sample in built.samples] == [[("polyp", [8, 8, 16, 8])]] * 3
    assert len({sample.group for sample in built.samples}) == 3


def vindr(source: Path) -> None:
    for i, name in enumerate(("train/aa", "train/bb", "test/cc")):
        dicom(source / f"{name}.dicom", i)
    nothing = dict.fromkeys(("x_min", "y_min", "x_max", "y_max"), "")
    box = {"x_min": "4.5", "y_min": "5", "x_max": "20", "y_max": "17"}
    rows = [{"image_id": "aa", "rad_id": reader, "class_name": "Cardiomegaly"} | box for reader in ("R8", "R9")]
    rows.append({"image_id": "aa", "rad_id": "R10", "class_name": "ILD"} | box)
    rows += [
        {"image_id": "bb", "rad_id": reader, "class_name": "No finding"} | nothing for reader in ("R8", "R9", "R10")
    ]
    table(source / "annotations/annotations_train.csv", rows)
    table(source / "annotations/annotations_test.csv", [{"image_id": "cc", "class_name": "Nodule/Mass"} | box])
    votes = [{"image_id": name, "rad_id": reader, "No finding": 1} for name in ("aa", "bb") for reader in ("R8", "R9")]
    table(source / "annotations/image_labels_train.csv", votes)
    facts = {"Cardiomegaly": 0, "Lung tumor": 1, "Pneumonia": 1, "Tuberculosis": 0, "No finding": 0}
    table(source / "annotations/image_labels_test.csv", [{"image_id": "cc"} | facts])


def test_vindr_cxr(tmp_path: Path) -> None:
    vindr(tmp_path / "source")
    built = Built("vindr_cxr", tmp_path / "source")
    assert built.counts() == (3, 4, 0)
    first, none, test = (built.of(f"{name}.dicom") for name in ("train/aa", "train/bb", "test/cc"))
    where = [4.5, 5, 15.5, 12]
    assert regions(first) == [("cardiomegaly", where), ("cardiomegaly", where), ("interstitial lung disease", where)]
    assert (first.split, first.labels, none.regions, none.split) == ("train", {}, [], "train")
    assert "pneumothorax" in none.annotated_terms
    assert (test.split, regions(test)) == ("test", [("nodule or mass", where)])
    assert test.labels == {"diagnosis": ["lung tumour", "pneumonia"]}
    assert b"Qwxyz" not in b"".join(path.read_bytes() for path in (tmp_path / "source.out").iterdir())


def chexmask(source: Path) -> None:
    rows = []
    for i, name in enumerate(("train/aa", "test/bb")):
        dicom(source / f"{name}.dicom", i)
        runs = {
            "Left Lung": runs_of(24, 5, 10, 20),
            "Right Lung": runs_of(4, 5, 12, 20),
            "Heart": runs_of(14, 12, 12, 9),
        }
        scores = {"Dice RCA (Mean)": 0.9, "Dice RCA (Max)": 0.95, "Landmarks": "[1, 2]"}
        rows.append({"image_id": name.split("/")[1]} | scores | runs | {"Height": H, "Width": W})
    table(source / "OriginalResolution/VinDr-CXR.csv", rows)


def runs_of(x: int, y: int, w: int, h: int) -> str:
    """Run lengths as CheXmask's own code writes them: along the rows, from 1."""
    pixels = np.concatenate([[0], block(x, y, w, h).reshape(-1), [0]])
    ends = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    ends[1::2] -= ends[::2]
    return " ".join(map(str, ends))


def test_chexmask(tmp_path: Path) -> None:
    chexmask(tmp_path / "source")
    built = Built("chexmask", tmp_path / "source")
    assert built.counts() == (2, 6, 0)
    first = built.of("train/aa.dicom")
    assert dict(regions(first)) == {
        "left lung": [24, 5, 10, 20],
        "right lung": [4, 5, 12, 20],
        "heart": [14, 12, 12, 9],
    }
    heart = next(region for region in first.regions if region.category == "heart")
    assert heart.segmentation == encode_mask(block(14, 12, 12, 9).astype(bool))
    assert (first.split, built.of("test/bb.dicom").split) == ("train", "test")
    assert first.group == SALT.hash("group", "vindr-cxr\0aa"), "found again by the other recipe of these images"


def lacks(path: str) -> Callable[[Path], None]:
    def remove(source: Path) -> None:
        (source / path).rename(source / "elsewhere")

    return remove


def renamed(start: str, new: str) -> Callable[[Path], None]:
    def rename(source: Path) -> None:
        for path in list(source.glob(f"{start}*")):
            path.rename(source / path.name.replace(start, new))

    return rename


def renamed_in(path: str, old: str, new: str) -> Callable[[Path], None]:
    def rename(source: Path) -> None:
        text = (source / path).read_text()
        assert old in text
        (source / path).write_text(text.replace(old, new))

    return rename


@pytest.mark.parametrize(
    ("name", "tree", "damage", "says"),
    [
        ("rocov2", rocov2, lacks("valid_captions.csv"), "valid_captions.csv: no such file"),
        ("rocov2", rocov2, renamed_in("train_captions.csv", "Caption", "Text"), "no column 'Caption'"),
        ("pmc_oa", pmc_oa, renamed_in("pmc_oa.jsonl", 'caption"', 'text"'), "no object has the key 'caption'"),
        ("pmc_oa", pmc_oa, lacks("images"), "images: no such folder"),
        ("medtrinity25m", medtrinity, lacks("25M_demo"), "nothing fits '25M_demo/*.parquet'"),
        ("ham10000", ham10000, lacks("HAM10000_metadata.csv"), "HAM10000_metadata.csv: unreadable table"),
        ("ham10000", ham10000, renamed_in("HAM10000_metadata.csv", "image_id", "isic_id"), "no column 'image_id'"),
        ("isic2018_task1", isic2018, renamed("ISIC2018_Task1_", "gt_"), "nothing fits 'ISIC2018_Task1_*"),
        ("kvasir_seg", kvasir, lacks("masks"), "masks: no such folder"),
        ("vindr_cxr", vindr, renamed_in("annotations/annotations_test.csv", "x_min", "left"), "no column 'x_min'"),
        ("vindr_cxr", vindr, lacks("annotations/image_labels_test.csv"), "image_labels_test.csv: unreadable table"),
        ("chexmask", chexmask, renamed_in("OriginalResolution/VinDr-CXR.csv", "Heart", "heart"), "no column 'Heart'"),
        ("chexmask", chexmask, lacks("OriginalResolution"), "VinDr-CXR.csv: "),
    ],
)
def test_another_layout_is_refused_by_name(
    tmp_path: Path, name: str, tree: Callable[[Path], None], damage: Callable[[Path], None], says: str
) -> None:
    tree(tmp_path / "source")
    damage(tmp_path / "source")
    assert says in refused(name, tmp_path / "source")
