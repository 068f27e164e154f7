"""Which texts a step has: the same list on all ranks, whoever has which image, and of which items each is true."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medpclip.data.lexicon import Lexicon
from medpclip.data.loading.loader import Batch
from medpclip.data.loading.texts import (
    NEGATIVE,
    POSITIVE,
    Text,
    draw_image_text,
    draw_region_text,
    draw_region_texts,
    known_of_regions,
    targets,
)
from medpclip.distributed import World
from medpclip.train.config import TrainConfig

_TEXTS, _MODEL = 2, 5  # what a random stream is for; the loader has 0, 1 and 3, patches 4
_OF_REGIONS = 1  # an image's second stream of texts


@dataclass(frozen=True)
class Place:
    """Where a rank's images stand in a step, so that what is drawn for one doesn't depend on who has it."""

    seed: int
    step: int
    world: World
    micros: int
    batch_size: int

    def of(self, micro: int, b: int) -> int:
        """The number of an image in the whole step, as `BatchOrder` deals them out."""
        return (micro * self.world.size + self.world.rank) * self.batch_size + b

    def model_seed(self, micro: int) -> int:
        """Of the model's own random numbers."""
        state = np.random.SeedSequence((self.seed, _MODEL, self.step, micro * self.world.size + self.world.rank))
        return int(state.generate_state(1, np.uint64)[0] >> 1)  # torch takes 63 bits

    def texts_rng(self, number: int | None = None, *more: int) -> np.random.Generator:
        """For the texts of the step, or of its `number`th image."""
        return np.random.default_rng((self.seed, _TEXTS, self.step, *(() if number is None else (number, *more))))


@dataclass
class StepTexts:
    """Attributes:
    image, region: the step's texts, sorted, each of them once; the same on all ranks.
    image_targets: (B, image texts) int8 of this rank's B images.
    region_targets: (M, region texts) int8 of its M regions.
    """

    image: list[Text]
    region: list[Text]
    image_targets: Tensor
    region_targets: Tensor


def agree_on_texts(batches: Sequence[Batch], lexicon: Lexicon, config: TrainConfig, place: Place) -> StepTexts:
    """Draw the step's texts. All ranks call it together.

    Each image has one drawn for it. Regions have one or two per term of the whole step, and every text is compared with
    every image's or region's facts. With `loss.positives` plain each region has one drawn for it too, and only what was
    drawn for an image or region counts as true of it.
    """
    image_facts = [facts for batch in batches for facts in batch.image_facts]
    rows = [row for batch in batches for row in batch.region_facts]
    region_facts = [facts for row in rows for facts in row]
    sampling = config.data.texts
    numbers = [place.of(micro, b) for micro, batch in enumerate(batches) for b in range(len(batch.image_facts))]
    of_image = [
        draw_image_text(facts, lexicon, sampling, place.texts_rng(number))
        for facts, number in zip(image_facts, numbers, strict=True)
    ]
    if config.loss.positives == "plain":
        of_region = []
        for row, number in zip(rows, numbers, strict=True):
            rng = place.texts_rng(number, _OF_REGIONS)
            of_region += [draw_region_text(facts, lexicon, sampling, rng) for facts in row]
        everyone = place.world.gather([_as_lists(of_image), _as_lists(of_region)])
        image, region = (_union(theirs) for theirs in zip(*everyone, strict=True))
        return StepTexts(image, region, _only(of_image, image), _only(of_region, region))
    everyone = place.world.gather([_as_lists(of_image), sorted(known_of_regions(region_facts))])
    image = _union(theirs for theirs, _ in everyone)
    known = {(term, name, value) for _, theirs in everyone for term, name, value in theirs}
    region = sorted(draw_region_texts(known, lexicon, sampling, place.texts_rng()))
    pairs = ((image_facts, image), (region_facts, region))
    return StepTexts(image, region, *(torch.from_numpy(targets(items, texts, lexicon)) for items, texts in pairs))


def _as_lists(texts: Iterable[Text]) -> list[list[Any]]:
    """Each text once, as ranks exchange them."""
    return [[text.facts, text.wording] for text in sorted(set(texts))]


def _union(everyone: Iterable[list[list[Any]]]) -> list[Text]:
    """All ranks' texts, sorted, each of them once."""
    return sorted(
        {
            Text(tuple((name, value) for name, value in facts), wording)
            for theirs in everyone
            for facts, wording in theirs
        }
    )


def _only(drawn: Sequence[Text], texts: Sequence[Text]) -> Tensor:
    """int8 (len(drawn), len(texts)): true of each item is the one text that was drawn for it; all others are false."""
    number = {text: j for j, text in enumerate(texts)}
    own = torch.full((len(drawn), len(texts)), NEGATIVE, dtype=torch.int8)
    own[torch.arange(len(drawn)), torch.tensor([number[text] for text in drawn], dtype=torch.int64)] = POSITIVE
    return own
