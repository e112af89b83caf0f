"""SigLIP's pairwise sigmoid loss (Zhai et al. 2023, algorithm 1) over all workers, without the matrix of all pairs.

B rows of this worker, N of all workers, C of a chunk, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.distributed import ProcessGroup

from cornerstone.objectives.contrastive import Pairs, Side


def siglip_loss(
    image_BD: Tensor,
    text_BD: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    *,
    row_ids_B: Tensor | None = None,
    valid_B: Tensor | None = None,
    group: ProcessGroup | None = None,
    chunk: int | None = None,
    uneven: bool = False,
) -> Tensor:
    """(1/N) Σ_ij −log σ(z_ij (scale · x_i·y_j + bias)), z = +1 for a row's own text and −1 for all others: a scalar.

    A mean over the valid images of all workers of the sum over all texts; each worker takes its own images against all
    texts. Masked rows take no part, and another text of the same row of the data counts as neither match nor mismatch.
    Features are L2-normalised; `scale` and `bias` have shape (1,) or are floats. The value on several workers, `chunk` and
    `uneven` are those of `contrastive_loss`.
    """

    def sigmoid(rows_CD: Tensor, columns_ND: Tensor, scale: Tensor | float, first: int) -> Tensor:
        own_C = torch.arange(first, first + len(rows_CD), device=rows_CD.device)
        numbers = [x.to(rows_CD.dtype) if isinstance(x, Tensor) else x for x in (scale, bias)]
        logits_CN = (rows_CD * numbers[0]) @ columns_ND.T + numbers[1]
        sign_CN = torch.full_like(logits_CN, -1).scatter(1, own_C[:, None], 1)
        losses_CN = -functional.logsigmoid(sign_CN * logits_CN)
        ignored_CN = pairs.ignored(own_C)
        if ignored_CN is not None:
            losses_CN = losses_CN.masked_fill(ignored_CN, 0)
        losses_C = losses_CN.sum(1)
        return (losses_C if pairs.valid_N is None else torch.where(pairs.valid_N[own_C], losses_C, 0)).sum()

    with torch.autocast(image_BD.device.type, enabled=False):
        pairs = Pairs.of(image_BD, row_ids_B, valid_B, group, uneven)
        image, text = (Side.of(x, valid_B, group, pairs.sizes) for x in (image_BD, text_BD))
        return pairs.mean_of(pairs.sum_of(sigmoid, image, text, scale, chunk), image)
