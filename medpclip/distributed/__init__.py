"""Several processes as one: which rank this is, and what ranks tell one another."""

from medpclip.distributed.world import World, join

__all__ = ["World", "join"]
