"""The generation loss: next-token cross-entropy at text targets, without the logits of all of them at a time.

B sequences, T tokens, K targets, C targets of a chunk, E width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cornerstone.objectives.contrastive import at_least_fp32

_LOGITS = 2**24
"""Logits held at a time: 64 MiB in fp32, and as much again for their gradient."""
Head = Callable[[Tensor], Tensor]


class TokenLosses(NamedTuple):
    """Of each sequence, over its targets; sums, so that micro-batches and workers can be added up."""

    sum_B1: Tensor
    """−log p of the targets, in nats; the smoothed loss if labels are smoothed."""
    correct_B1: Tensor
    """Targets that have the largest logit; no gradient."""


def token_losses(
    hidden_BTE: Tensor,
    token_ids_BT: Tensor,
    target_BT: Tensor,
    head: Head,
    *,
    chunk: int | None = None,
    vocabulary: int,
    label_smoothing: float = 0.0,
) -> TokenLosses:
    """The losses of the tokens marked in `target_BT`, each predicted from the hidden state of the token before it.

    `head` maps hidden states (C, E) to logits (C, V). It is called a fixed number of times for a shape (B, T), whatever the
    number of targets, as ZeRO-3 needs: so that at most `chunk` targets (None: what fits in 64 MiB of logits) are given to it
    at a time. With more than one call the logits are computed again in the backward pass. Value and gradient are exact.
    The first token of a sequence is no target. With `label_smoothing` s a loss is (1 − s) (−log p) + s times the mean of −log p
    over the vocabulary.
    """
    row_K, place_K = torch.nonzero(target_BT[:, 1:], as_tuple=True)
    hidden_KE, label_K = hidden_BTE[row_K, place_K], token_ids_BT[row_K, place_K + 1]
    calls = max(1, math.ceil(target_BT.numel() / (chunk or max(1, _LOGITS // vocabulary))))
    losses_of = partial(_losses, label_smoothing=label_smoothing)
    losses, correct = [], []
    for hidden_CE, label_C in zip(hidden_KE.tensor_split(calls), label_K.tensor_split(calls), strict=True):
        if calls == 1:
            of_chunk = losses_of(hidden_CE, label_C, head)
        else:
            of_chunk = checkpoint(losses_of, hidden_CE, label_C, head, use_reentrant=False, preserve_rng_state=False)
        losses.append(of_chunk[0])
        correct.append(of_chunk[1])
    loss_K = torch.cat(losses)
    none_B = loss_K.new_zeros(len(target_BT))
    sum_B = none_B.index_add(0, row_K, loss_K)
    correct_B = none_B.detach().index_add(0, row_K, torch.cat(correct))
    return TokenLosses(sum_B[:, None], correct_B[:, None])


def _losses(hidden_CE: Tensor, label_C: Tensor, head: Head, label_smoothing: float) -> tuple[Tensor, Tensor]:
    logits_CV = at_least_fp32(head(hidden_CE))
    right_C = (
        (logits_CV.detach().argmax(-1) == label_C).to(logits_CV.dtype) if len(label_C) else logits_CV.sum(-1).detach()
    )
    losses_C = functional.cross_entropy(logits_CV, label_C, reduction="none", label_smoothing=label_smoothing)
    return losses_C, right_C
