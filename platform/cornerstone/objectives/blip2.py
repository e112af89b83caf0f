"""BLIP-2's contrastive loss over an image's queries, and the negatives that its matching is trained on (Li et al. 2023, 3.1).

B rows of this worker, N of all workers, C of a chunk, Q queries of an image, D width, R rows and K columns that are compared.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from cornerstone.objectives.contrastive import Pairs, Side

_LOGITS = 2**22
"""Logits of single queries held at a time: 16 MiB in fp32."""


def query_similarity(image_RQD: Tensor, text_KD: Tensor) -> Tensor:
    """(R, K): the largest cosine of an image's queries with a text, from L2-normalised features; one query at a time."""
    found_RK = image_RQD[:, 0] @ text_KD.T
    for query in range(1, image_RQD.shape[1]):
        found_RK = torch.maximum(found_RK, image_RQD[:, query] @ text_KD.T)
    return found_RK


def query_contrastive_loss(
    image_BQD: Tensor,
    text_BD: Tensor,
    scale: Tensor | float,
    *,
    label_smoothing: float = 0.0,
    constant_columns: bool = False,
    row_ids_B: Tensor | None = None,
    valid_B: Tensor | None = None,
    group: ProcessGroup | None = None,
    chunk: int | None = None,
    uneven: bool = False,
) -> Tensor:
    """½ (image → text + text → image) InfoNCE of `query_similarity` × scale, a mean over all workers' valid rows: a scalar.

    With `label_smoothing` s the target is 1 − s on the own column and s spread over all columns that count. With
    `constant_columns` the gathered features are constants, as in the released code: image features then learn from
    image → text alone, text features from text → image. `scale` is 1/τ, of shape (1,) or a float. Rows, columns, workers,
    `chunk` and `uneven` are those of `contrastive_loss`.
    """

    def infonce(rows: Tensor, columns: Tensor, scale: Tensor | float, first: int) -> Tensor:
        own_C = torch.arange(first, first + len(rows), device=rows.device)
        cosine_CN = query_similarity(rows, columns) if rows.ndim == 3 else query_similarity(columns, rows).T
        logits_CN = cosine_CN * (scale.to(rows.dtype) if isinstance(scale, Tensor) else scale)
        own_logit_C = logits_CN.gather(1, own_C[:, None]).squeeze(1)
        ignored_CN = pairs.ignored(own_C)
        counted_CN = torch.ones_like(logits_CN) if ignored_CN is None else (~ignored_CN).to(logits_CN.dtype)
        mean_logit_C = (logits_CN * counted_CN).sum(1) / counted_CN.sum(1)
        target_C = (1 - label_smoothing) * own_logit_C + label_smoothing * mean_logit_C
        losses_C = logits_CN.masked_fill(counted_CN == 0, -torch.inf).logsumexp(1) - target_C
        return (losses_C if pairs.valid_N is None else torch.where(pairs.valid_N[own_C], losses_C, 0)).sum()

    with torch.autocast(image_BQD.device.type, enabled=False):
        pairs = Pairs.of(text_BD, row_ids_B, valid_B, group, uneven)
        sides = (Side.of(x, valid_B, group, pairs.sizes) for x in (image_BQD, text_BD))
        image, text = (Side(one.local_BD, one.all_ND.detach()) if constant_columns else one for one in sides)
        size = chunk or max(1, _LOGITS // max(len(text.all_ND) * image_BQD.shape[1], 1))
        total = pairs.sum_of(infonce, image, text, scale, size) + pairs.sum_of(infonce, text, image, scale, size)
        return 0.5 * pairs.mean_of(total, text)


def negative_probability(logits_BN: Tensor, excluded_BN: Tensor) -> Tensor:
    """(B, N) float64: how likely each column is drawn as a row's negative, the softmax over those that are not excluded.

    Zeros for a row of which every column is excluded.
    """
    return logits_BN.double().masked_fill(excluded_BN, -torch.inf).softmax(1).nan_to_num(0)


def drawn_columns(probability_BN: Tensor, order_N: Tensor, uniform_B: Tensor) -> Tensor:
    """(B,) the column that each row draws with a uniform number in [0, 1); -1 for a row of zeros.

    The columns are laid side by side by `order_N`, ids of the rows of the data: their order in the batch changes no draw.
    """
    place_N = order_N.argsort(stable=True)
    ends_BN = probability_BN[:, place_N].cumsum(1)
    at_B1 = torch.searchsorted(ends_BN, uniform_B.to(ends_BN)[:, None] * ends_BN[:, -1:], right=True)
    # Rounding must not lead behind the last column that can be drawn.
    last_B1 = torch.searchsorted(ends_BN, ends_BN[:, -1:].contiguous())
    return torch.where(ends_BN[:, -1] > 0, place_N[torch.minimum(at_B1, last_B1).squeeze(1)], -1)
