"""LCL's loss: λ L_con + L_gen (paper, equation 8), with global counts whatever each worker holds.

N images of this worker, D width, B sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from cornerstone.objectives.contrastive import contrastive_loss
from cornerstone.objectives.gather import global_mean


def lcl_loss(
    image_ND: Tensor,
    context_ND: Tensor,
    scale: Tensor | float,
    token_loss: Tensor,
    tokens: Tensor | int,
    *,
    contrastive_weight: float = 0.1,
    generation_weight: float = 1.0,
    image_ids_N: Tensor | None = None,
    valid_N: Tensor | None = None,
    group: ProcessGroup | None = None,
    chunk: int | None = None,
) -> dict[str, Tensor]:
    """The loss in two parts, `contrastive` and `generation`, whose sum is the loss.

    L_con is `contrastive_loss` of each image's pooled feature and the causal model's output at its <BoI>, which has read only
    what comes before the image; both L2-normalised. The mean is over the images of all workers whose `valid_N` is True, and
    the negatives are all of them, those of the same document too. Workers may have different numbers of images, or none.

    L_gen is Σ −log p / number of text targets, both summed over all workers: `token_loss` is this worker's sum in nats, of any
    shape, `tokens` its number of targets.

    A part of weight 0 stays in the graph and adds 0. On each of W workers the value is W times its share of the global mean,
    as for all losses here.
    """
    count = torch.as_tensor(tokens, device=token_loss.device)
    contrastive = contrastive_loss(
        image_ND,
        context_ND,
        scale,
        row_ids_B=image_ids_N,
        valid_B=valid_N,
        group=group,
        chunk=chunk,
        uneven=True,
    )
    generation = global_mean(token_loss.sum(), count, group)
    return {"contrastive": contrastive_weight * contrastive, "generation": generation_weight * generation}
