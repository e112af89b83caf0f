"""One worker of BLIP-2: its share of the pairs, the losses, and the mean of the gradients over workers.

blip2_worker.py FOLDER RANK WORKERS
"""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from pathlib import Path

import torch
import torch.distributed as dist

import cornerstone.models  # noqa: F401 - repairs torchvision before timm imports it
from cornerstone.data.pairs.batch import PairBatch
from cornerstone.data.source import MASKED

sys.path.append(str(Path(__file__).parents[1] / "support"))
import tiny_blip2 as tiny


def share(rank: int, workers: int) -> PairBatch:
    """A worker's rows, filled with masked ones as the layout fills them."""
    each = -(-tiny.ROWS // workers)
    whole = tiny.batch()
    mine = whole.rows(rank * each, min((rank + 1) * each, tiny.ROWS))
    missing = each - len(mine)
    filled = {
        f.name: torch.cat([x, torch.zeros_like(x[:1]).expand(missing, *x.shape[1:])])
        for f in fields(mine)
        if isinstance(x := getattr(mine, f.name), torch.Tensor)
    }
    filled["row"][len(mine) :] = MASKED
    return tiny.double(replace(mine, **filled))


def backward(pairs: PairBatch) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """The loss's parts and reports, and every parameter's gradient."""
    model = tiny.method().double()
    losses = model.losses(model(pairs), pairs)
    sum(losses.parts.values()).backward()
    parts = [*losses.parts.values(), *losses.reports.values()]
    return [part.detach().double() for part in parts], {name: p.grad for name, p in model.named_parameters()}


def main(folder: Path, rank: int, workers: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=workers)
    parts, gradients = backward(share(rank, workers))
    for value in [*parts, *gradients.values()]:
        dist.all_reduce(value)
        value /= workers
    if rank == 0:
        torch.save((parts, gradients), folder / "result.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
