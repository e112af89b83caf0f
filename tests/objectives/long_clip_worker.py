"""One rank of Long-CLIP's loss: its rows, and the mean of loss and gradients over ranks.

long_clip_worker.py FOLDER RANK WORKERS
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as functional
from torch import Tensor

from cornerstone.objectives import long_clip_loss

WAYS = (0, 3, 5)
"""Images of a group."""


def some(rows: int = 11, width: int = 9) -> tuple[Tensor, ...]:
    """Images, raw and long texts, who has which text, and the rows of the data, of which two come twice."""
    draw = torch.Generator().manual_seed(1)
    image, raw, long = (
        functional.normalize(torch.randn(rows, width, generator=draw, dtype=torch.float64), dim=-1) for _ in range(3)
    )
    place = torch.arange(rows)
    return image, raw, long, place % 4 != 1, place % 5 != 1, place % (rows - 2)  # row 1 has neither text


def step(data: tuple[Tensor, ...], rows: slice, way: int) -> list[Tensor]:
    """The parts of the loss, and the gradients with respect to all rows."""
    leaves = [x.clone().requires_grad_() for x in data[:3]]
    scale = torch.tensor([5.0], dtype=torch.float64, requires_grad=True)
    raw_valid, long_valid, ids = (x[rows] for x in data[3:])
    masks = {"row_ids_B": ids, "raw_valid_B": raw_valid, "long_valid_B": long_valid}
    parts = long_clip_loss(*(x[rows] for x in leaves), scale, components=2, pca_group=way, chunk=2, **masks)
    sum(parts.values()).backward()
    return [*(part.detach().clone() for part in parts.values()), scale.grad, *(leaf.grad for leaf in leaves)]


def main(folder: Path, rank: int, world: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    data, share = some(12), 12 // world
    results = {}
    for way in WAYS:
        results[way] = step(data, slice(rank * share, (rank + 1) * share), way)
        for value in results[way]:
            dist.all_reduce(value)
            value /= world
    if rank == 0:
        torch.save(results, folder / "result.pt")
    dist.barrier()  # nobody leaves while another one still talks to it
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
