"""LoTLIP's loss: L_short + L_long (paper, equations 1 and 4 to 6).

B rows of this worker, D width, M = 1 + m text features of a long caption: [CLS], then the m corners.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from cornerstone.errors import CornerstoneError, did_you_mean
from cornerstone.objectives.contrastive import Pairs, Side


def lotlip_loss(
    image_BD: Tensor,
    raw_BD: Tensor | None,
    long_BMD: Tensor | None,
    scale: Tensor | float,
    *,
    reduction: Literal["sum", "mean"] = "sum",
    raw_weight: float = 1.0,
    long_weight: float = 1.0,
    balance: Literal["paper", "equal"] = "paper",
    row_ids_B: Tensor | None = None,
    raw_valid_B: Tensor | None = None,
    long_valid_B: Tensor | None = None,
    group: ProcessGroup | None = None,
    chunk: int | None = None,
) -> dict[str, Tensor]:
    """The loss in two parts, `raw` and `long`, whose sum is the loss.

    A *term* is `contrastive_loss` of the images with one text feature: [CLS] of the raw text, [CLS] of the long text,
    and each corner of the long text (corner k against corner k of the other samples), 1 + M in all. Each term is a
    mean over the rows that have that text: `raw_valid_B` and `long_valid_B` may differ.

    `sum` adds the terms (the paper), `mean` divides by their number, 1 + M (the authors' code). `balance="paper"`
    leaves raw : long at 1 : M; `"equal"` divides the long part by M first, so that it is 1 : 1 for every number of
    corners. The weights multiply the parts at the end. A part that is None or has weight 0 is left out: it is not in
    the result and its terms are not in the divisor of `mean`.

    Features are L2-normalised; `scale`, `row_ids_B`, `group` and `chunk` are those of `contrastive_loss`, and so is the
    scale of the value on several workers.
    """
    for given, valid in ((reduction, ("sum", "mean")), (balance, ("paper", "equal"))):
        if given not in valid:
            raise CornerstoneError(f"Unknown option of the LoTLIP loss, {given!r}{did_you_mean(given, valid)}")
    raw_BD = raw_BD if raw_weight else None
    long_BMD = long_BMD if long_weight else None
    features = long_BMD.shape[1] if long_BMD is not None else 0
    terms = features + (raw_BD is not None)
    share = 1 / terms if terms and reduction == "mean" else 1.0
    parts = {}
    with torch.autocast(image_BD.device.type, enabled=False):
        masks = [valid for part, valid in ((raw_BD, raw_valid_B), (long_BMD, long_valid_B)) if part is not None]
        image = Side.of(image_BD, _any(masks), group)
        if raw_BD is not None:
            pairs = Pairs.of(image_BD, row_ids_B, raw_valid_B, group)
            parts["raw"] = raw_weight * share * pairs.loss(image, Side.of(raw_BD, raw_valid_B, group), scale, chunk)
        if long_BMD is not None:
            pairs = Pairs.of(image_BD, row_ids_B, long_valid_B, group)
            long = Side.of(long_BMD, long_valid_B, group)
            total = torch.stack([pairs.loss(image, long.term(k), scale, chunk) for k in range(features)]).sum()
            parts["long"] = long_weight * share * (total / features if balance == "equal" else total)
    return parts


def _any(masks: list[Tensor | None]) -> Tensor | None:
    """Rows that count for at least one of the masks, None being all rows."""
    given = [mask for mask in masks if mask is not None]
    return torch.stack(given).any(0) if given and len(given) == len(masks) else None
