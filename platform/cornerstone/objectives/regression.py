"""Emu's regression of the next visual embedding (Sun et al. 2023, section 2.2).

B sequences, T tokens, K regressions, E width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cornerstone.objectives.contrastive import at_least_fp32


def regression_losses(
    hidden_BTE: Tensor, embedding_BTE: Tensor, source_BT: Tensor, head: Callable[[Tensor], Tensor]
) -> Tensor:
    """(B, 1): of each sequence the sum, over the tokens marked in `source_BT`, of the mean squared error over components.

    The hidden state of a marked token, through `head`, predicts the embedding that the language model is given at the next
    place. `head` is called once, also without any regression. The last token of a sequence has no next one.
    """
    row_K, place_K = torch.nonzero(source_BT[:, :-1], as_tuple=True)
    predicted_KE = at_least_fp32(head(hidden_BTE[row_K, place_K]))
    wanted_KE = embedding_BTE[row_K, place_K + 1].to(predicted_KE.dtype)
    error_K = (predicted_KE - wanted_KE).square().mean(-1)
    return error_K.new_zeros(len(source_BT)).index_add(0, row_K, error_K)[:, None]
