"""One rank of SigLIP's loss and of the contrastive one: its rows, its loss, the mean of loss and gradients over ranks."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from cornerstone.objectives import siglip_loss

NAMES = ("image", "text", "log_t", "b")


def shares(rows: int, world: int) -> dict[str, list[int]]:
    """Where each rank's rows end: evenly, and unevenly with nothing for the first rank."""
    return {
        "even": [rows // world * (rank + 1) for rank in range(world)],
        "uneven": [0, *(rows - (world - 1 - rank) for rank in range(1, world))],
    }


def step(data: dict[str, Tensor], start: int, stop: int, way: str) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean over ranks of the loss and of the gradients with respect to all rows."""
    leaves = {name: (data[name].reshape(1) if data[name].ndim == 0 else data[name]).clone() for name in NAMES}
    for leaf in leaves.values():
        leaf.requires_grad_()
    loss = siglip_loss(
        leaves["image"][start:stop],
        leaves["text"][start:stop],
        leaves["log_t"].exp(),
        leaves["b"],
        chunk=2 if dist.get_rank() else None,
        uneven=way == "uneven",
    )
    loss.backward()
    values = [loss.detach().clone(), *(leaf.grad for leaf in leaves.values())]
    for value in values:
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return values[0], dict(zip(leaves, values[1:], strict=True))


def main(folder: Path, rank: int, world: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    data, results = torch.load(folder / "data.pt"), {}
    for way, ends in shares(len(data["image"]), world).items():
        results[way] = step(data, ([0, *ends])[rank], ends[rank], way)
    if rank == 0:
        torch.save(results, folder / "result.pt")
    dist.barrier()  # nobody leaves while another one still talks to it
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
