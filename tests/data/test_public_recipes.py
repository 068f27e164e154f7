"""Recipes of public corpora in folders and arrays: small trees of the documented layouts, built whole.

The trees are made here from the corpora's public documentation; nothing of the corpora is in them.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from built_recipe import SALT, SHIPPED, Built, regions
from PIL import Image

from medpclip.data.building.build import build
from medpclip.data.building.recipe import Recipe
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
    Image.fromarray(block(x, y, w, h, 255)).save(path)


def refused(name: str, source: Path) -> str:
    """The message with which a build ends."""
    with pytest.raises(MedpclipError) as caught:
        build(Recipe.load(SHIPPED / f"{name}.yaml"), source, source.with_name("refused"), SALT)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def imed(source: Path) -> None:
    from scipy import sparse

    def add(folder: str, names: list[str], labels: dict[str, str], modality: str) -> None:
        listed = []
        for name in names:
            picture(source / folder / "image" / f"{name}.png")
            rows = np.stack([block(2 + j, 3, 5, 4).reshape(-1) for j in range(len(labels) - 1)])
            label = f"label/x___{name}.({len(rows)}, {H}, {W}, 1).npz"
            (source / folder / "label").mkdir(exist_ok=True)
            sparse.save_npz(source / folder / label, sparse.csr_matrix(rows))
            listed.append({"image": f"image/{name}.png", "label": label})
        data = {"name": folder, "modality": {"0": modality}, "labels": labels, "training": listed}
        (source / folder / "dataset.json").write_text(json.dumps(data))

    labels = {"0": "background", "1": "kidney_left", "2": "liver"}
    add("BTCV", ["ABD_001_10", "ABD_001_11", "ABD_002_10"], labels, "ct")
    add("MoNuSeg", ["TCGA-A"], {"0": "background", "1": "nucleus"}, "histopathology")


def test_imed361m(tmp_path: Path) -> None:
    imed(tmp_path / "source")
    built = Built("imed361m", tmp_path / "source")
    assert built.counts() == (4, 7, 0)
    first = built.of("BTCV/image/ABD_001_10.png")
    assert first.modality == "CT"
    assert regions(first) == [("left kidney", [2, 3, 5, 4]), ("liver", [3, 3, 5, 4])]
    assert built.of("MoNuSeg/image/TCGA-A.png").modality == "stained histology"
    assert first.group == built.of("BTCV/image/ABD_001_11.png").group
    assert first.group != built.of("BTCV/image/ABD_002_10.png").group


def sa_med2d(source: Path) -> None:
    names = {
        "ct_00--AbdomenCT1K--Case_00011--x_0040": ["0001_000", "0003_000"],
        "mr_t1--BraTS2021--BraTS2021_00218--z_0141": ["0011_000", "0011_001"],
        "mr_flair--BraTS2021--BraTS2021_00218--z_0141": ["0011_000"],
        "x_ray--covid_19_ct_cxr--16660_5_1--2d_none": ["0000_001"],
    }
    for name, ids in names.items():
        picture(source / f"images/{name}.png")
        for j, number in enumerate(ids):
            mask(source / f"masks/{name}--{number}.png", 4 + 9 * j, 5, 6, 7)
    classes = {
        "AbdomenCT1K": {"liver": "0001", "kidney": "0002", "union_all": "0003"},
        "BraTS2021": {"enhancing_tumor": "0011"},
        "covid_19_ct_cxr": {"left_lung": "0000"},
    }
    (source / "SAMed2D_v1_class_mapping_id.json").write_text(json.dumps(classes))


def test_sa_med2d_20m(tmp_path: Path) -> None:
    sa_med2d(tmp_path / "source")
    built = Built("sa_med2d_20m", tmp_path / "source")
    assert built.counts() == (4, 5, 1)
    assert [reason for _, reason in built.quarantined] == ["label is not in the recipe's terms"]
    ct = built.of("images/ct_00--AbdomenCT1K--Case_00011--x_0040.png")
    assert (ct.modality, regions(ct)) == ("CT", [("liver", [4, 5, 6, 7])])
    t1 = built.of("images/mr_t1--BraTS2021--BraTS2021_00218--z_0141.png")
    flair = built.of("images/mr_flair--BraTS2021--BraTS2021_00218--z_0141.png")
    assert regions(t1) == [("enhancing tumour", [4, 5, 6, 7]), ("enhancing tumour", [13, 5, 6, 7])]
    assert (t1.modality, flair.modality, t1.group == flair.group) == ("T1-weighted MRI", "FLAIR", True)
    chest = built.of("images/x_ray--covid_19_ct_cxr--16660_5_1--2d_none.png")
    assert (chest.modality, regions(chest)) == ("radiograph", [("left lung", [4, 5, 6, 7])])
    assert len({sample.group for sample in built.samples}) == 3


def biomedparse(source: Path) -> None:
    top = source / "amos22" / "amos22" / "CT"
    for name, split in (("amos_0004_75", "train"), ("amos_0004_76", "train"), ("amos_0006_90", "test")):
        picture(top / split / f"{name}_CT_abdomen.png")
        mask(top / f"{split}_mask" / f"{name}_CT_abdomen_left+kidney.png", 3, 4, 5, 6)
    picture(source / "OCT/train/28DME_as_F_OCT_retinal.png")
    mask(source / "OCT/train_mask/28DME_as_F_OCT_retinal_edema.png", 1, 2, 3, 4)


def test_biomedparse(tmp_path: Path) -> None:
    biomedparse(tmp_path / "source")
    built = Built("biomedparse", tmp_path / "source")
    assert built.counts() == (4, 4, 0)
    first = built.of("amos22/amos22/CT/train/amos_0004_75_CT_abdomen.png")
    assert (first.split, first.modality, first.anatomy) == ("train", "CT", "abdomen")
    assert regions(first) == [("left kidney", [3, 4, 5, 6])]
    assert first.group == built.of("amos22/amos22/CT/train/amos_0004_76_CT_abdomen.png").group
    assert built.of("amos22/amos22/CT/test/amos_0006_90_CT_abdomen.png").split == "test"
    eye = built.of("OCT/train/28DME_as_F_OCT_retinal.png")
    assert (eye.modality, eye.anatomy, regions(eye)) == (
        "optical coherence tomography",
        "retina",
        [("oedema", [1, 2, 3, 4])],
    )


def medsam_npz(source: Path) -> None:
    source.mkdir()
    volume = np.stack([block(0, 0, 0, 0), block(5, 6, 7, 8, 1) + block(20, 6, 4, 4, 2), block(5, 6, 7, 8, 1)])
    images = np.random.default_rng(0).integers(0, 256, volume.shape, np.uint8)
    np.savez_compressed(source / "CT_Abd_case1.npz", imgs=images, gts=volume, spacing=np.array([0.7, 0.8, 5.0]))
    folder = source / "official_val"
    folder.mkdir()
    colours = np.random.default_rng(1).integers(0, 256, (H, W, 3), np.uint8)
    np.savez_compressed(folder / "2DBox_Dermoscopy_0133.npz", imgs=colours, gts=block(1, 2, 3, 4))


def test_medsam_npz(tmp_path: Path) -> None:
    medsam_npz(tmp_path / "source")
    built = Built("medsam_npz", tmp_path / "source")
    assert built.counts() == (3, 4, 0)
    first, second = (built.of("CT_Abd_case1.npz", f"z 00{i}") for i in (1, 2))
    assert sorted(box for _, box in regions(first)) == [[5, 6, 7, 8], [20, 6, 4, 4]]
    assert (first.modality, first.spacing, first.group == second.group) == ("CT", [0.8, 0.7], True)
    assert built.of("official_val/2DBox_Dermoscopy_0133.npz").modality == "dermoscopy"


def medsam_npy(source: Path) -> None:
    for name, number in (("CT_Abd_FLARE22_Tr_0001-000", 13), ("CT_Abd_FLARE22_Tr_0001-001", 1), ("CT_Abd_b-000", 2)):
        for folder, array in (("imgs", np.random.default_rng(number).random((H, W, 3))), ("gts", block(3, 4, 5, 6))):
            (source / folder).mkdir(parents=True, exist_ok=True)
            np.save(source / folder / f"{name}.npy", array if folder == "imgs" else array * np.uint8(number))


def test_medsam_npy(tmp_path: Path) -> None:
    medsam_npy(tmp_path / "source")
    built = Built("medsam_npy", tmp_path / "source")
    assert built.counts() == (3, 3, 0)
    first = built.of("imgs/CT_Abd_FLARE22_Tr_0001-000.npy")
    assert regions(first) == [("left kidney", [3, 4, 5, 6])]
    assert first.group == built.of("imgs/CT_Abd_FLARE22_Tr_0001-001.npy").group
    assert len({sample.group for sample in built.samples}) == 2


def radimagenet(source: Path) -> None:
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for i, (split, folder) in enumerate(
        [
            ("train", "CT/lung/normal"),
            ("train", "MR/knee/acl_pathology"),
            ("val", "MR/af/fracture"),
            ("test", "US/x/cyst"),
        ]
    ):
        name = f"radiology_ai/{folder}/{i}.png"
        picture(source / name)
        lists[split].append(name)
    for split, names in lists.items():
        (source / f"{split}.csv").write_text("filename,label\n" + "".join(f"{name},x\n" for name in names))


def test_radimagenet(tmp_path: Path) -> None:
    radimagenet(tmp_path / "source")
    built = Built("radimagenet", tmp_path / "source")
    assert built.counts() == (4, 0, 0)
    lung = built.of("radiology_ai/CT/lung/normal/0.png")
    assert (lung.modality, lung.anatomy, lung.labels, lung.split) == ("CT", "lung", {"finding": "no finding"}, "train")
    knee, ankle = built.of("radiology_ai/MR/knee/acl_pathology/1.png"), built.of("radiology_ai/MR/af/fracture/2.png")
    assert (knee.modality, knee.labels, ankle.anatomy, ankle.split) == ("MRI", {}, None, "val")
    strange = built.of("radiology_ai/US/x/cyst/3.png")  # a region that nobody documented: listed, and nothing lost
    assert (strange.modality, strange.anatomy, strange.labels) == ("ultrasound", None, {"finding": "cyst"})
    assert built.quarantined == [("radiology_ai/US/x/cyst/3.png", "value of a label is not in the recipe")]


def lacks(path: str) -> Callable[[Path], None]:
    def remove(source: Path) -> None:
        (source / path).rename(source / "elsewhere")

    return remove


def deeper(source: Path) -> None:
    """One folder more than the layout has, as some programs unpack archives."""
    source.rename(source.with_name("inner"))
    source.mkdir()
    source.with_name("inner").rename(source / "inner")


def arrays_renamed(source: Path) -> None:
    for path in source.rglob("*.npz"):
        with np.load(path, allow_pickle=False) as arrays:
            stored = {"image": arrays["imgs"], "label": arrays["gts"]}
        np.savez_compressed(path, **stored)


def renamed_in(path: str, old: str, new: str) -> Callable[[Path], None]:
    def rename(source: Path) -> None:
        text = (source / path).read_text()
        assert old in text
        (source / path).write_text(text.replace(old, new))

    return rename


@pytest.mark.parametrize(
    ("name", "tree", "damage", "says"),
    [
        ("imed361m", imed, deeper, "nothing fits '*/dataset.json'"),
        ("imed361m", imed, renamed_in("BTCV/dataset.json", '"labels"', '"classes"'), "key 'labels'"),
        ("sa_med2d_20m", sa_med2d, lacks("images"), "images: no such folder"),
        ("sa_med2d_20m", sa_med2d, lacks("SAMed2D_v1_class_mapping_id.json"), "class_mapping_id.json: No such file"),
        ("medsam_npz", medsam_npz, arrays_renamed, "nothing"),
        ("medsam_npy", medsam_npy, lacks("imgs"), "imgs: no such folder"),
        ("radimagenet", radimagenet, lacks("val.csv"), "val.csv: unreadable list"),
        ("radimagenet", radimagenet, lacks("radiology_ai"), "radiology_ai: no such folder"),
    ],
)
def test_another_layout_is_refused_by_name(
    tmp_path: Path, name: str, tree: Callable[[Path], None], damage: Callable[[Path], None], says: str
) -> None:
    tree(tmp_path / "source")
    damage(tmp_path / "source")
    assert says in refused(name, tmp_path / "source")


def test_biomedparse_of_another_naming_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "source" / "A" / "train" / "scan.png")
    mask(tmp_path / "source" / "A" / "train_mask" / "scan_liver.png", 1, 1, 4, 4)
    assert "'path_pattern'" in refused("biomedparse", tmp_path / "source")


def test_the_page_lists_all_documented_recipes() -> None:
    page = (SHIPPED.parent / "docs" / "reference" / "public-corpora.md").read_text(encoding="utf-8")
    recipes = [Recipe.load(path) for path in sorted(SHIPPED.glob("*.yaml"))]
    documented = [recipe.name for recipe in recipes if recipe.layout == "documented"]
    assert len(documented) >= 20
    assert [name for name in documented if f"[{name}](../../data_recipes/{name}.yaml)" not in page] == []
