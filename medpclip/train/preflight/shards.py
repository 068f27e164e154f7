"""Can every node read the shards, and can the ranks share them?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medpclip.data.loading.dataset import Source, data_sources
from medpclip.data.shards import MANIFEST, ShardFolder, read_manifest
from medpclip.distributed import World
from medpclip.errors import MedpclipError
from medpclip.files import file_sha256
from medpclip.train.config import TrainConfig
from medpclip.train.preflight.findings import Finding, listed
from medpclip.train.preflight.nodes import node_name
from medpclip.train.start import partition


@dataclass
class Corpus:
    """Attributes:
    samples, regions, bytes: of the run's split, in all sources.
    draws: samples of an epoch, by the sources' weights.
    """

    samples: int
    regions: int
    bytes: int
    draws: int


def check_shards(config: TrainConfig, world: World) -> tuple[list[Finding], Corpus | None]:
    """Manifests, sizes of shards, some samples, and how they are shared out; None where they can't be read.

    One rank of each node looks at everything, since nodes may see disks of their own.
    """
    mine: dict[str, Any] = {"node": node_name(), "error": None}
    if world.local_rank == 0:
        try:
            mine |= _read(config)
        except MedpclipError as error:
            mine["error"] = str(error)
    looked = [one for one in world.gather(mine) if one["error"] is not None or "hashes" in one]
    wrong = [one for one in looked if one["error"] is not None]
    if wrong:
        where = "" if len(wrong) == len(looked) else f" (on {listed([one['node'] for one in wrong])} only)"
        what, _, remedy = wrong[0]["error"].rpartition("; ")
        return [Finding("shards", "problem", f"{what or remedy}{where}", remedy)], None
    other = [one["node"] for one in looked if one["hashes"] != looked[0]["hashes"]]
    if other:
        what = f"{MANIFEST} on {listed(other)} is another than on {looked[0]['node']}"
        return [Finding("shards", "problem", what, "copy the same shards to all nodes, or use a shared disk")], None
    corpus = Corpus(**looked[0]["corpus"])
    epochs = config.steps * config.batch_size / max(1, corpus.draws)
    what = (
        f"{corpus.samples:,} samples with {corpus.regions:,} regions in {looked[0]['shards']:,} shards; "
        f"{config.steps:,} steps are {epochs:.2f} epochs"
    )
    return [Finding("shards", "ok", what), *_shares(config, world, corpus)], corpus


def _read(config: TrainConfig) -> dict[str, Any]:
    """What this node sees.

    Raises:
        MedpclipError: a manifest, shard, index or sample can't be read, or a size isn't the manifest's.
    """
    samples = regions = size = draws = shards = 0
    hashes = []
    for source in data_sources(config.data):
        manifest = read_manifest(source.folder)
        hashes.append(file_sha256(source.folder / MANIFEST))
        of_split = [shard for shard in manifest["shards"] if shard["split"] == config.data.split]
        if not of_split:
            has = ", ".join(manifest["splits"])
            raise MedpclipError(
                f"{source.folder}/{MANIFEST}: no split {config.data.split!r} (it has: {has}); change data.split"
            )
        _look_into(source, config)
        count = sum(shard["samples"] for shard in of_split)
        samples, draws = samples + count, draws + round(source.weight * count)
        regions += sum(shard["regions"] for shard in of_split)
        size += sum(shard["bytes"] for shard in of_split)
        shards += len(of_split)
    corpus = {"samples": samples, "regions": regions, "bytes": size, "draws": draws}
    return {"hashes": hashes, "shards": shards, "corpus": corpus}


def _look_into(source: Source, config: TrainConfig) -> None:
    """Every shard's size and index, and three samples. Those that are streamed from elsewhere are seen by the dry batch."""
    if config.data.reader == "streaming" and Path(source.folder).name in config.data.urls:
        return
    folder = ShardFolder(source.folder, config.data.split)  # compares all sizes with the manifest's
    for index in sorted({0, len(folder) // 2, len(folder) - 1}):
        folder.sample(index)
        folder.image(index)


def _shares(config: TrainConfig, world: World, corpus: Corpus) -> list[Finding]:
    found = []
    try:
        partition(config, world)
    except MedpclipError as error:
        what, _, remedy = str(error).rpartition("; ")
        found.append(Finding("shards", "problem", what, remedy))
    if corpus.draws < config.batch_size:
        what = f"key 'batch_size' is {config.batch_size}, but an epoch has only {corpus.draws} samples"
        found.append(Finding("shards", "problem", what, "lower it, or add data"))
    return found
