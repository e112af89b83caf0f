"""All workers' features on every worker, with a gradient.

B rows of this worker, N rows of all, in the order of the ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

Sizes = tuple[int, ...] | None
"""Rows of each worker; None if all have equally many."""


def workers(group: ProcessGroup | None = None) -> int:
    """Workers of the group (None: of the whole run); 1 if nothing is distributed."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def rank(group: ProcessGroup | None = None) -> int:
    """This worker's place in the group; 0 if nothing is distributed."""
    return dist.get_rank(group) if dist.is_available() and dist.is_initialized() else 0


def gather_sizes(local_B: Tensor, group: ProcessGroup | None = None) -> tuple[int, ...]:
    """How many rows each worker has. It waits for the device: ask only if the numbers may differ."""
    count = torch.tensor([len(local_B)], device=local_B.device)
    return tuple(gather_values(count, group).tolist())


def gather_values(local_B: Tensor, group: ProcessGroup | None = None, sizes: Sizes = None) -> Tensor:
    """(B, ...) of every worker, one after the other, as (N, ...), without a gradient."""
    n = workers(group)
    local_B = local_B.detach()
    if n == 1:
        return local_B
    most = len(local_B) if sizes is None else max(sizes)
    if len(local_B) < most:
        local_B = torch.cat([local_B, local_B.new_zeros(most - len(local_B), *local_B.shape[1:])])
    all_N = local_B.new_empty(n * most, *local_B.shape[1:])
    if most:
        dist.all_gather(list(all_N.chunk(n)), local_B.contiguous(), group=group)
    if sizes is None or len(set(sizes)) == 1:
        return all_N
    return torch.cat([part[:size] for part, size in zip(all_N.split(most), sizes, strict=True)])


def gather(local_B: Tensor, group: ProcessGroup | None = None, sizes: Sizes = None) -> Tensor:
    """The same with a gradient: a worker's rows receive the *sum* of what all workers' losses say of them."""
    if workers(group) == 1:
        return local_B
    gathered: Tensor = _Gather.apply(local_B, group, sizes)  # type: ignore[no-untyped-call]
    return gathered


def summed(local: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """The sum over all workers, without a gradient."""
    total = local.detach()
    if workers(group) > 1:
        total = total.clone()
        dist.all_reduce(total, group=group)
    return total


def global_mean(total: Tensor, count: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """A sum over this worker's items / the items of all workers × workers: the mean over workers is the global mean.

    `count` is this worker's number of items, which may be 0; without any item the result is 0, with a graph.
    """
    return total * workers(group) / summed(count.to(total.dtype), group).clamp(min=1)


def start_of(rows: int, group: ProcessGroup | None, sizes: Sizes) -> int:
    """The place of this worker's first row among all workers' rows."""
    return sum(sizes[: rank(group)]) if sizes is not None else rank(group) * rows


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local_B: Tensor, group: ProcessGroup | None, sizes: Sizes) -> Tensor:
        ctx.group, ctx.sizes, ctx.rows = group, sizes, len(local_B)
        return gather_values(local_B, group, sizes)

    @staticmethod
    def backward(ctx: Any, gradient_N: Tensor) -> tuple[Tensor, None, None]:
        group, sizes = ctx.group, ctx.sizes
        uneven = sizes is not None and len(set(sizes)) > 1
        if uneven or dist.get_backend(group) == "gloo":  # some versions of gloo cannot reduce-scatter
            total_N = gradient_N.clone(memory_format=torch.contiguous_format)
            dist.all_reduce(total_N, group=group)
            start = start_of(ctx.rows, group, sizes)
            return total_N[start : start + ctx.rows], None, None
        shares: Sequence[Tensor] = gradient_N.contiguous().chunk(workers(group))
        own_B = torch.empty_like(shares[0])
        dist.reduce_scatter(own_B, list(shares), group=group)
        return own_B, None, None
