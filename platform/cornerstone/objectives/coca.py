"""CoCa's loss: the contrastive loss of pairs and the caption loss (Yu et al. 2022, equation 4), with global counts.

B pairs of this worker, D width.
"""

from __future__ import annotations

from torch import Tensor
from torch.distributed import ProcessGroup

from cornerstone.objectives.contrastive import contrastive_loss
from cornerstone.objectives.gather import global_mean


def coca_loss(
    image_BD: Tensor,
    text_BD: Tensor,
    scale: Tensor | float,
    token_loss: Tensor | None,
    tokens: Tensor | None,
    *,
    contrastive_weight: float = 1.0,
    caption_weight: float = 2.0,
    row_ids_B: Tensor | None = None,
    valid_B: Tensor | None = None,
    group: ProcessGroup | None = None,
    chunk: int | None = None,
) -> dict[str, Tensor]:
    """The loss in two parts, `contrastive` and `caption`, whose sum is the loss.

    The first is `contrastive_loss`. The second is Σ −log p / number of targets, both over all workers, so a mean over the
    tokens and not over the captions: `token_loss` is this worker's sum in nats, of any shape, `tokens` its number of targets,
    the end token of each caption among them. Without `token_loss` there is no such part.

    A part of weight 0 stays in the graph and adds 0. On each of W workers the value is W times its share of the global mean,
    as for all losses here.
    """
    contrastive = contrastive_loss(
        image_BD, text_BD, scale, row_ids_B=row_ids_B, valid_B=valid_B, group=group, chunk=chunk
    )
    parts = {"contrastive": contrastive_weight * contrastive}
    if token_loss is not None and tokens is not None:
        parts["caption"] = caption_weight * global_mean(token_loss.sum(), tokens, group)
    return parts
