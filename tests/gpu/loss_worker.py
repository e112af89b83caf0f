"""One rank of the losses over shares of a batch: NCCL with one GPU per rank, or gloo.

loss_worker.py FOLDER RANK cuda|cpu
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from cornerstone.objectives import contrastive_loss, lotlip_loss, siglip_loss

SHARES = {"even": ((0, 4), (4, 8)), "uneven": ((0, 0), (0, 8))}
"""The rows of each of two ranks, of 8 in all."""


def some_features() -> dict[str, Tensor]:
    """Features of 8 pairs in float64 before they are normalised, and the logarithm of the scale."""
    draw = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    return {"image": normal(8, 6), "text": normal(8, 3, 6), "log_scale": torch.tensor([1.3], dtype=torch.float64)}


def losses(device: torch.device, start: int, stop: int, uneven: bool) -> dict[str, tuple[Tensor, list[Tensor]]]:
    """By loss: its value on some rows, and the gradients with respect to all rows and to the logarithm of the scale."""
    found = {}
    for name in ("contrastive", "siglip") if uneven else ("contrastive", "siglip", "lotlip"):
        leaves = [value.to(device).requires_grad_() for value in some_features().values()]
        image, text, log_scale = leaves
        image, text, scale = (
            F.normalize(image[start:stop], dim=-1),
            F.normalize(text[start:stop], dim=-1),
            log_scale.exp(),
        )
        if name == "contrastive":
            loss = contrastive_loss(image, text[:, 0], scale, uneven=uneven)
        elif name == "siglip":
            loss = siglip_loss(image, text[:, 0], scale, -scale, uneven=uneven)
        else:
            loss = sum(lotlip_loss(image, text[:, 0], text, scale).values())
        loss.backward()
        found[name] = (loss.detach(), [leaf.grad for leaf in leaves])
    return found


def run(rank: int, device: torch.device) -> dict[str, dict[str, tuple[Tensor, list[Tensor]]]]:
    """By way to share the rows: `losses`, averaged over the ranks as DeepSpeed does."""
    results: dict[str, dict[str, tuple[Tensor, list[Tensor]]]] = {}
    for way, rows in SHARES.items():
        results[way] = losses(device, *rows[rank], uneven=way == "uneven")
        for loss, gradients in results[way].values():
            for value in (loss, *gradients):
                dist.all_reduce(value)
                value /= dist.get_world_size()
    return {
        way: {name: (loss.cpu(), [g.cpu() for g in gradients]) for name, (loss, gradients) in found.items()}
        for way, found in results.items()
    }


def main(folder: Path, rank: int, device: str) -> None:
    """Join the group, run, and save the result."""
    torch.set_num_threads(1)
    where = torch.device(device, rank) if device == "cuda" else torch.device(device)
    if device == "cuda":
        torch.cuda.set_device(where)
    backend = {"cuda": "nccl", "cpu": "gloo"}[device]
    dist.init_process_group(backend, init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(run(rank, where), folder / f"result-{rank}.pt")
    dist.barrier()  # no rank leaves while another one still communicates with it
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
