"""One worker of a method on pairs: its share, the loss, and the mean of the gradients over workers.

pair_worker.py FOLDER KIND RANK WORKERS
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

import cornerstone.models  # noqa: F401 - repairs torchvision before timm imports it

sys.path.append(str(Path(__file__).parents[1] / "support"))
import tiny_pairs as tiny

from cornerstone.data.pairs.batch import PairBatch

ROWS = 12
"""Of the first of three workers one row in four has no caption, of the others less and more: the counts of targets differ."""


def backward(kind: str, first: int, stop: int) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """The loss's parts on some of the pairs, and every parameter's gradient."""
    model = tiny.method(kind=kind).double()
    batch = trimmed(tiny.double(tiny.some(ROWS)).rows(first, stop))
    losses = model.losses(model(batch), batch)
    sum(losses.parts.values()).backward()
    parts = [*losses.parts.values(), *losses.reports.values()]
    return [part.detach().double() for part in parts], {
        name: p.grad for name, p in model.named_parameters() if p.requires_grad
    }


def trimmed(batch: PairBatch) -> PairBatch:
    """With texts as wide as the longest of this share."""
    raw, long = (int(lengths.max()) for lengths in (batch.raw_length, batch.long_length))
    return replace(batch, raw_ids=batch.raw_ids[:, :raw], long_ids=batch.long_ids[:, :long])


def main(folder: Path, kind: str, rank: int, workers: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=workers)
    share = ROWS // workers
    parts, gradients = backward(kind, rank * share, (rank + 1) * share)
    for value in [*parts, *gradients.values()]:
        dist.all_reduce(value)
        value /= workers
    if rank == 0:
        torch.save((parts, gradients), folder / "result.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
