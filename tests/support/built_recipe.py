"""A shipped recipe, built on a small tree of its layout: what the tests of public corpora share."""

import json
from pathlib import Path
from typing import Any

from medpclip.data.building.build import build
from medpclip.data.building.privacy import Salt
from medpclip.data.building.recipe import Recipe
from medpclip.data.inspection.check import check_folder
from medpclip.data.schema import Sample
from medpclip.data.shards import ShardFolder

SALT = Salt(b"a secret that only tests know", "test")
SHIPPED = Path(__file__).parents[2] / "data_recipes"


class Built:
    """A recipe's tree, built and checked."""

    def __init__(self, name: str, source: Path) -> None:
        out = source.with_name(f"{source.name}.out")
        self.recipe = Recipe.load(SHIPPED / f"{name}.yaml")
        self.manifest: dict[str, Any] = build(self.recipe, source, out, SALT)
        assert not list(check_folder(out))
        shards = ShardFolder(out)
        self.samples = [shards.sample(i) for i in range(len(shards))]
        lines = (out.with_name(f"{out.name}.private") / "quarantine.jsonl").read_text().splitlines()
        self.quarantined = [(json.loads(line)["file"], json.loads(line)["reason"]) for line in lines]

    def counts(self) -> tuple[int, int, int]:
        """Images written, regions written, regions quarantined."""
        images, regions = self.manifest["images"], self.manifest["regions"]
        return images["written"], regions["written"], regions["quarantined"]

    def of(self, image: str, part: str = "") -> Sample:
        key = SALT.hash("sample", f"{self.recipe.name}\0{image}" + (f"\0{part}" if part else ""))
        return next(sample for sample in self.samples if sample.key == key)


def regions(sample: Sample) -> list[tuple[str, Any]]:
    return [(region.category, region.bbox) for region in sample.regions]
