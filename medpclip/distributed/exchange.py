"""What ranks exchange of tensors. Everything here is a plain operation: gradients are worked out by the callers."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from medpclip.distributed.world import World

# torch 2.13 calls them by other names and warns of the old ones.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def gather_rows(rows: Tensor, world: World) -> Tensor:
    """(n, ...) on each rank, n the same on all -> (size * n, ...), in ranks' order."""
    if world.size == 1:
        return rows
    out = rows.new_empty(world.size * rows.shape[0], *rows.shape[1:])
    _all_gather(out, rows.contiguous())
    return out


def sum_own_rows(rows: Tensor, world: World) -> Tensor:
    """(size * n, ...) on each rank -> (n, ...): the sum over ranks of this rank's part. `gather_rows` backwards."""
    if world.size == 1:
        return rows
    out = rows.new_empty(rows.shape[0] // world.size, *rows.shape[1:])
    _reduce_scatter(out, rows.contiguous())
    return out


def total(tensor: Tensor, world: World) -> Tensor:
    """The sum over ranks, in place."""
    if world.size > 1:
        dist.all_reduce(tensor)
    return tensor


def largest(tensor: Tensor, world: World) -> Tensor:
    """The elementwise maximum over ranks, in place."""
    if world.size > 1:
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor


def pass_on(tensors: list[Tensor], world: World) -> list[Tensor]:
    """Give tensors to the next rank, and take those of the one before: a step around the ring."""
    if world.size == 1:
        return tensors
    received = [torch.empty_like(tensor) for tensor in tensors]
    following, before = (world.rank + 1) % world.size, (world.rank - 1) % world.size
    operations = [dist.P2POp(dist.isend, tensor.contiguous(), following) for tensor in tensors]
    operations += [dist.P2POp(dist.irecv, tensor, before) for tensor in received]
    for request in dist.batch_isend_irecv(operations):
        request.wait()
    return received
