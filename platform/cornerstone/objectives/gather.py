"""All workers' features on every worker, with a gradient.

B rows of this worker, N = B × workers rows of all, in the order of the ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


def workers(group: ProcessGroup | None = None) -> int:
    """Workers of the group (None: of the whole run); 1 where nothing is distributed."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def rank(group: ProcessGroup | None = None) -> int:
    """This worker's place in the group; 0 where nothing is distributed."""
    return dist.get_rank(group) if dist.is_available() and dist.is_initialized() else 0


def gather_values(local_B: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """(B, ...) of every worker, one after the other, as (N, ...), without a gradient; B is the same on all."""
    n = workers(group)
    if n == 1:
        return local_B.detach()
    local_B = local_B.detach().contiguous()
    all_N = local_B.new_empty(n * len(local_B), *local_B.shape[1:])
    dist.all_gather(list(all_N.chunk(n)), local_B, group=group)
    return all_N


def gather(local_B: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """The same with a gradient: a worker's rows receive the *sum* of what all workers' losses say of them."""
    return local_B if workers(group) == 1 else _Gather.apply(local_B, group)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local_B: Tensor, group: ProcessGroup | None) -> Tensor:
        ctx.group = group
        return gather_values(local_B, group)

    @staticmethod
    def backward(ctx: Any, gradient_N: Tensor) -> tuple[Tensor, None]:
        shares = gradient_N.contiguous().chunk(workers(ctx.group))
        if dist.get_backend(ctx.group) == "gloo":  # some versions of gloo cannot reduce-scatter
            total_N = gradient_N.clone(memory_format=torch.contiguous_format)
            dist.all_reduce(total_N, group=ctx.group)
            return total_N.chunk(len(shares))[rank(ctx.group)], None
        own_B = torch.empty_like(shares[0])
        dist.reduce_scatter(own_B, list(shares), group=ctx.group)
        return own_B, None
