"""The recipes of the real sources: counts as published, masks and boxes where they belong."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medpclip.config import from_mapping
from medpclip.data.building.build import build
from medpclip.data.building.privacy import Salt
from medpclip.data.building.recipe import Recipe
from medpclip.data.building.regions import make_region
from medpclip.data.inspection.check import check_folder
from medpclip.data.readers import READERS, Entry
from medpclip.data.schema import Region
from medpclip.data.shards import ShardFolder

DATA = os.environ.get("MEDPCLIP_DATA", "")
pytestmark = pytest.mark.skipif(
    not Path(DATA, "bccd_blood").is_dir(), reason="MEDPCLIP_DATA doesn't name the real data"
)
RECIPES = Path(__file__).parents[2] / "data_recipes"
SALT = Salt(b"a secret that only tests know", "test")

# Source -> images and regions found, those quarantined, and regions written per term.
EXPECTED: dict[str, dict[str, Any]] = {
    "bccd_blood": {
        "found": (272, 3625),
        "lost": (0, 0),
        "terms": {"red blood cell": 3074, "white blood cell": 279, "platelet": 272},
    },
    # One image is there twice, byte for byte, with boxes drawn anew.
    "cxr_lungboxes": {"found": (214, 428), "lost": (1, 2), "terms": {"left lung": 213, "right lung": 213}},
    "usgra_nerve_us": {"found": (170, 423), "lost": (1, 2), "terms": {"nerve": 223, "blood vessel": 198}},
    "dsb2018_nuclei": {"found": (95, 3424), "lost": (0, 0), "terms": {"cell nucleus": 3424}},
    # One image is there twice, byte for byte.
    "chula_rbc12": {
        "found": (94, 3644),
        "lost": (1, 79),
        "terms": {
            "normal red blood cell": 1053,
            "ovalocyte": 484,
            "spherocyte": 439,
            "target cell": 403,
            "elliptocyte": 288,
            "stomatocyte": 201,
            "burr cell": 159,
            "hypochromic red blood cell": 153,
            "schistocyte": 128,
            "macrocyte": 122,
            "microcyte": 74,
            "teardrop cell": 45,
            "uncategorised red blood cell": 16,
        },
    },
    # Six of the 181 rows have no mask and the whole picture as box: they speak of the image.
    "cxr_structures": {
        "found": (29, 175),
        "lost": (0, 0),
        "terms": {
            "airway": 29,
            "cardiomediastinum": 29,
            "ground-glass opacity": 28,
            "left lung": 28,
            "right lung": 28,
            "consolidation": 10,
            "monitoring probe": 5,
            "tube": 5,
            "central venous line": 4,
            "nasogastric tube": 4,
            "endotracheal tube": 3,
            "pleural effusion": 1,
            "pneumothorax": 1,
        },
    },
    "brain_mri_tumor": {
        "found": (360, 360),
        "lost": (0, 0),
        "terms": {"glioma": 120, "meningioma": 120, "pituitary tumour": 120},
    },
    "btcv_ct": {
        "found": (98, 540),
        "lost": (0, 0),
        "terms": {
            "aorta": 94,
            "inferior vena cava": 84,
            "liver": 63,
            "stomach": 46,
            "left kidney": 40,
            "right kidney": 38,
            "spleen": 38,
            "oesophagus": 34,
            "pancreas": 34,
            "portal vein and splenic vein": 20,
            "left adrenal gland": 19,
            "gallbladder": 15,
            "right adrenal gland": 15,
        },
    },
    # Three volumes, slice by slice; each of the 19 labels of the volumes is in several slices.
    "sct_spine_mri": {
        "found": (69, 216),
        "lost": (0, 0),
        "terms": {
            "nerve rootlets C5": 8,
            "nerve rootlets C6": 4,
            "nerve rootlets C7": 6,
            "spinal cord": 75,
            "spinal cord at vertebral level C2": 17,
            "spinal cord at vertebral level C3": 18,
            "spinal cord at vertebral level C4": 15,
            "spinal cord at vertebral level C5": 4,
            "spinal cord centreline": 55,
            "spinal cord grey matter": 14,
        },
    },
    # Frame by frame, with the slide that is there a second time, compressed otherwise. Lost are four contours of a slice
    # that isn't there, and all twelve of a structure set that has another one's identifier.
    "dicom_small": {
        "found": (54, 66),
        "lost": (0, 16),
        "terms": {"bone": 1, "connective tissue": 40, "phantom insert": 9},
    },
    "isic2017_derm": {"found": (300, 0), "lost": (0, 0), "terms": {}},
    "brca_m2c_histology": {
        "found": (62, 14859),
        "lost": (0, 0),
        "terms": {"tumour epithelial cell": 7562, "stromal cell": 3915, "lymphocyte": 3382},
    },
    "ham10000_mini": {"found": (5, 5), "lost": (0, 0), "terms": {"skin lesion": 5}},
    # One component has fewer than 20 pixels.
    "kvasir_polyp": {"found": (420, 449), "lost": (0, 1), "terms": {"polyp": 448}},
}


@pytest.fixture(scope="module", params=sorted(EXPECTED))
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    name = request.param
    out = tmp_path_factory.mktemp("real") / name
    build(Recipe.load(RECIPES / f"{name}.yaml"), Path(DATA) / name, out, SALT)
    return name, out


def test_counts_are_the_published_ones(built: tuple[str, Path]) -> None:
    name, out = built
    manifest = ShardFolder(out).manifest
    expected = EXPECTED[name]
    assert (manifest["images"]["found"], manifest["regions"]["found"]) == expected["found"]
    assert (manifest["images"]["quarantined"], manifest["regions"]["quarantined"]) == expected["lost"]
    terms: dict[str, int] = {}
    for split in manifest["splits"].values():
        for term, count in split["category"].items():
            terms[term] = terms.get(term, 0) + count
    assert terms == expected["terms"]
    shards = ShardFolder(out)
    if len({shards.sample(i).group for i in range(len(shards))}) > 20:
        assert set(manifest["splits"]) == {"train", "val", "test"}


def test_shards_pass_the_deep_check(built: tuple[str, Path]) -> None:
    assert not list(check_folder(built[1]))


def test_no_file_name_in_the_manifest_or_json(built: tuple[str, Path]) -> None:
    name, out = built
    reader = Recipe.load(RECIPES / f"{name}.yaml").make_reader(Path(DATA) / name)
    stems = {Path(entry.image).stem for entry in reader.scan() if isinstance(entry, Entry)}
    shards = ShardFolder(out)
    for i in range(len(shards)):
        sample = shards.sample(i)
        words = {sample.key, sample.group, *map(str, sample.labels.values()), *(r.category for r in sample.regions)}
        assert not words & stems


def test_derived_coco_forms_equal_the_instance_masks() -> None:
    """The same nuclei as run lengths (compressed and not), as polygons, and as the masks they came from."""
    source = Path(DATA) / "dsb2018_nuclei"
    masks = Recipe.load(RECIPES / "dsb2018_nuclei.yaml").make_reader(source)
    originals = {entry.image: entry for entry in masks.scan() if isinstance(entry, Entry)}
    reader_class, options_class = READERS["coco"]
    for form, least in (("rle", 1.0), ("polygons", 0.9)):
        options = from_mapping(
            options_class, {"annotations": f"derived_coco_{form}.json", "images": "stage1_train/*/images/*"}, "test"
        )
        reader = reader_class(source, options)
        entries = [entry for entry in reader.scan() if isinstance(entry, Entry)]
        assert len(entries) == len(originals)
        for entry in sorted(entries, key=lambda entry: entry.metadata["width"])[:4]:
            mine = [_mask(raw, entry) for raw in reader.read(entry).regions]
            theirs = [_mask(raw, entry) for raw in masks.read(originals[entry.image]).regions]
            assert len(mine) == len(theirs)
            for mask in mine:
                best = max(float((mask & other).sum() / (mask | other).sum()) for other in theirs)
                assert best >= least


def _mask(raw: Any, entry: Entry) -> np.ndarray:
    size = (entry.metadata["width"], entry.metadata["height"])
    region = make_region(raw, 1, "cell nucleus", size, "test")
    assert isinstance(region, Region)
    mask = region.mask()
    assert mask is not None
    return mask
