"""What a run trains on, and how it draws from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medpclip.data.loading.prompting import PromptSampling
from medpclip.data.loading.texts import TextSampling


@dataclass
class Augmentation:
    """Random changes to training images (our design). By default nothing is mirrored or turned: left and right, up and
    down mean something.

    Attributes:
        zoom: the window's side is the whole image's times a uniform draw from this range.
        shift: the window moves by up to this share of its side, each way.
        rotate: the image is turned by a uniform draw of up to so many degrees, each way.
        flip: chance that an image is mirrored, left to right; only where its sample says `"laterality": "none"`.
        brightness, contrast: each changes by a uniform draw of up to this share.
    """

    zoom: tuple[float, float] = (0.8, 1.1)
    shift: float = 0.08
    rotate: float = 0.0
    flip: float = 0.0
    brightness: float = 0.2
    contrast: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise ValueError(f"'zoom' is {list(self.zoom)}, expected [low, high] with 0 < low <= high")
        for name, highest in (("shift", 1.0), ("flip", 1.0), ("brightness", 1.0), ("contrast", 1.0), ("rotate", 180.0)):
            if not 0 <= getattr(self, name) <= highest:
                raise ValueError(f"'{name}' is {getattr(self, name)}, expected 0 to {highest:g}")


@dataclass
class DataConfig:
    """What a run trains on.

    Attributes:
        shards: folders of shards, or mixtures of them; their samples are joined.
        split: which split of them.
        weights: source's folder name -> how often an epoch has each of its samples; a mixture's own weight, or 1,
            where none is given.
        reader: "indexed" for local files: any order, any resume; "streaming" reads shards from front to back.
        urls: folder of shards -> where its shards are streamed from, as "pipe:ssh store cat /corpus/{}" or
            "https://store/corpus/{}"; {} becomes a shard's name. The folder itself needs its manifest only.
        shuffle_buffer: samples among which the streaming reader draws the next one, per worker.
        trim: the streaming reader may leave out what would make workers or ranks uneven, another part each epoch.
        regions_per_image: at most so many regions of an image, drawn anew each epoch.
        balance: draw an image's regions evenly over its categories.
        leave_out_terms: regions of these terms are neither pointed at nor put into words, and no text of an image names
            them; the images stay. A term's kinds are others.
        workers: loader processes; 0 decodes in the training process.
        max_unreadable: the run stops when more than this share of the samples (of the first 1000, at least) can't be
            read; 0 stops at the first.
    """

    shards: list[Path]
    split: str = "train"
    weights: dict[str, float] = field(default_factory=dict)
    reader: Literal["indexed", "streaming"] = "indexed"
    urls: dict[str, str] = field(default_factory=dict)
    shuffle_buffer: int = 1000
    trim: bool = False
    regions_per_image: int = 8
    balance: bool = True
    leave_out_terms: list[str] = field(default_factory=list)
    workers: int = 1
    max_unreadable: float = 0.001
    augmentation: Augmentation = field(default_factory=Augmentation)
    prompts: PromptSampling = field(default_factory=PromptSampling)
    texts: TextSampling = field(default_factory=TextSampling)

    def __post_init__(self) -> None:
        if self.workers < 0 or self.regions_per_image < 1 or self.shuffle_buffer < 1:
            raise ValueError("expected 'workers' of at least 0, 'regions_per_image' and 'shuffle_buffer' of at least 1")
        if not 0 <= self.max_unreadable <= 1:
            raise ValueError(f"'max_unreadable' is {self.max_unreadable}, expected a share from 0 to 1")
        for name, weight in self.weights.items():
            if not weight > 0:
                raise ValueError(f"'weights' gives {name!r} {weight}, expected more than 0; or leave its folder out")
        for name, pattern in self.urls.items():
            if "{}" not in pattern:
                raise ValueError(f"'urls' gives {name!r} {pattern!r}, expected {{}} where a shard's name goes")
