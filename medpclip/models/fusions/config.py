"""How prompts meet a trunk's features, as run files say it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

FusionKind = Literal[
    "region_tokens",
    "conditioned",
    "alpha_channel",
    "unprompted",
    "crop",
    "context_crop",
    "placed_crop",
    "blurred",
    "greyed",
    "drawn_circle",
    "drawn_box",
    "mask_pooling",
    "roi_align",
]
FUSION_KINDS: tuple[FusionKind, ...] = get_args(FusionKind)
Part = Literal["start", "place", "keys", "values", "logits"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass
class FusionConfig:
    """How prompts meet the trunk's features.

    Attributes:
        kind: "region_tokens" (R prompts in one pass), "conditioned" (prompt written into the patches, a pass a prompt), or
            a comparator: another way to point, trained like them.
        prompt_dim: width of the prompt encoder, of the kinds that have one.
        depths: before (conditioned) or in (region_tokens) which blocks (0-based) the prompt comes in; null for a quarter,
            a half and three quarters up (conditioned), or for all blocks (region_tokens).
        parts: region_tokens only: which of the prompt's ways there are: what the encoded prompt ("start") and the place and
            size of what it points at ("place") add to the token at its start, and what coverage adds to the patches' "keys",
            "values" and "logits".
        glimpse: region_tokens only: each region token also sees glimpse x glimpse patches of the picture at its own
            resolution, cut around the prompt; 0 for none.
        glimpse_context: side of that square as a multiple of the prompt's extent.
    """

    kind: FusionKind = "region_tokens"
    prompt_dim: int = 256
    depths: list[int] | None = None
    parts: list[Part] = field(default_factory=lambda: list(PARTS))
    glimpse: int = 0
    glimpse_context: float = 2.0

    def __post_init__(self) -> None:
        if self.glimpse < 0 or not self.glimpse_context > 0:
            raise ValueError("expected 'glimpse' of at least 0 and 'glimpse_context' of more than 0")
        if not self.parts or not set(self.parts) <= set(PARTS):
            raise ValueError(f"'parts' is {list(self.parts)}, expected at least one of {', '.join(PARTS)}")
        if self.kind != "region_tokens" and (self.glimpse or set(self.parts) != set(PARTS)):
            raise ValueError(f"'glimpse' and 'parts' need kind region_tokens, which is {self.kind}")
        if self.depths is not None and self.kind not in ("region_tokens", "conditioned"):
            raise ValueError(f"'depths' needs kind region_tokens or conditioned, which is {self.kind}")
