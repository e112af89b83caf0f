"""One worker of a distributed loss: its share of the rows, its loss, DeepSpeed's mean of gradients over workers."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from cornerstone.objectives import lotlip_loss


def backward(data: dict[str, Tensor], share: slice, chunk: int | None) -> tuple[list[Tensor], list[Tensor]]:
    """The loss's parts on a share of the rows, and the gradients of two projections and of the temperature."""
    weights = [data[name].clone().requires_grad_() for name in ("image_weight", "text_weight", "log_scale")]
    image_weight, text_weight, log_scale = weights
    texts = F.normalize(data["text"][share] @ text_weight, dim=-1)
    parts = lotlip_loss(
        F.normalize(data["image"][share] @ image_weight, dim=-1),
        texts[:, 0],
        texts[:, 1:],
        log_scale.exp(),
        row_ids_B=data["row"][share],
        raw_valid_B=data["raw_valid"][share],
        long_valid_B=data["long_valid"][share],
        chunk=chunk,
    )
    sum(parts.values()).backward()
    return list(parts.values()), [weight.grad for weight in weights]


def main(folder: Path, rank: int, workers: int, as_nccl: bool) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=workers)
    if as_nccl:  # the branch of backends that reduce-scatter
        dist.get_backend = lambda group=None: "nccl"
    data = torch.load(folder / "data.pt")
    rows = len(data["row"]) // workers
    parts, gradients = backward(data, slice(rank * rows, (rank + 1) * rows), chunk=None if rank else 2)
    for value in [*(part.detach() for part in parts), *gradients]:
        dist.all_reduce(value)
        value /= workers
    if rank == 0:
        torch.save([[part.detach() for part in parts], gradients], folder / "result.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "nccl")
