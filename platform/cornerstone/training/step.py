"""One forward and backward of any method on a worker's share, in one pass or, with micro-batches, exactly in two.

A contrastive loss needs the features of the whole batch at once, so its micro-batches cannot be summed like those of a mean
over rows. Gradient caching (GradCache, Gao et al. 2021) is exact: the first pass computes the features of every micro-batch
without a graph, the loss and its gradient with respect to the features follow, and the second pass computes each
micro-batch again, with a graph, and sends its features' gradient back.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cornerstone.data.batch import Batch
from cornerstone.errors import CornerstoneError
from cornerstone.models.method import Losses, Method

Features = tuple[Any, ...]
Forward = Callable[[Batch], Features]
Backward = Callable[[Tensor, bool], None]
"""Called with a scalar to go backward from, and whether this is the step's last backward call."""


def forward_backward(
    method: Method[Any, Any], batch: Batch, micro_batch: int, forward: Forward, backward: Backward
) -> Losses:
    """The losses of a worker's share; gradients are left where `backward` leaves them.

    `micro_batch` is the most rows that `forward` sees at a time; 0, or a share that is not larger, is one pass.
    """
    parts = math.ceil(len(batch) / micro_batch) if micro_batch else 1
    if parts > 1 and method.whole_share:
        raise CornerstoneError(
            f"The method {method.config.kind!r} compares all rows of a worker's share of {len(batch)} in one pass, but "
            f"micro-batches of {micro_batch} were asked for: set --placement.micro-batch 0, and more workers if the memory "
            f"does not suffice."
        )
    if parts <= 1:
        losses = method.losses(forward(batch), batch)
        backward(_total(losses), True)
    else:
        losses = _two_passes(method, batch, batch.split(parts), forward, backward)
    return Losses(*({name: x.detach() for name, x in named.items()} for named in losses))


def _two_passes(
    method: Method[Any, Any], batch: Batch, micros: list[Batch], forward: Forward, backward: Backward
) -> Losses:
    states, cached = [], []
    with torch.no_grad():
        for micro in micros:
            states.append(_RandomState.now())
            cached.append(forward(micro))
    features, rows = _joined(cached)
    losses = method.losses(features, batch)
    _total(losses).backward()
    for number, (micro, state) in enumerate(zip(micros, states, strict=True)):
        state.restore()  # dropout draws what it drew in the first pass
        again = forward(micro)
        backward(_surrogate(features, again, [of[number] for of in rows], number == 0), number == len(micros) - 1)
    return losses


def _total(losses: Losses) -> Tensor:
    return torch.stack([part.reshape(()) for part in losses.parts.values()]).sum()


def _shared(feature: Tensor) -> bool:
    """Whether all rows share it, as the temperature: shape (1,). Features of rows have two dimensions or more.

    Raises ValueError for any other vector: it could be one number a row, of which only the first micro-batch's would count.
    """
    if feature.ndim < 2 and feature.numel() != 1:
        raise ValueError(
            f"A feature has shape {tuple(feature.shape)}: with micro-batches, `forward` must give (rows, ...) of two or more "
            f"dimensions, or (1,) for what all rows share."
        )
    return feature.ndim < 2


def _joined(cached: list[Features]) -> tuple[Features, list[list[slice]]]:
    """The features of all micro-batches as leaves that take a gradient, and each micro-batch's rows in every feature."""
    leaves, rows = [], []
    for of_micros in zip(*cached, strict=True):
        first = of_micros[0]
        if first is None or _shared(first):
            whole, places = first, [slice(None)] * len(of_micros)
        else:
            whole, ends = torch.cat(of_micros), torch.tensor([0, *map(len, of_micros)]).cumsum(0).tolist()
            places = [slice(begin, end) for begin, end in itertools.pairwise(ends)]
        if whole is not None and whole.is_floating_point():
            whole = whole.detach().requires_grad_()
        leaves.append(whole)
        rows.append(places)
    made: Features = type(cached[0])(*leaves)
    return made, rows


def _surrogate(features: Features, again: Features, rows: list[slice], first: bool) -> Tensor:
    """A scalar whose gradient is the loss's gradient through one micro-batch's features.

    Only the first micro-batch sends back the gradient of shared values; the others add 0 times theirs, so that every
    parameter is part of every graph, which sharded gradients rely on.
    """
    terms = []
    for leaf, feature, place in zip(features, again, rows, strict=True):
        if leaf is None or not leaf.is_floating_point():
            continue
        gradient = leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
        gradient = gradient[place]
        if _shared(leaf) and not first:
            gradient = torch.zeros_like(gradient)
        terms.append((feature * gradient.to(feature.dtype)).sum())
    return torch.stack(terms).sum()


class _RandomState(NamedTuple):
    """torch's generators, of the CPU and of this worker's GPU."""

    cpu: Tensor
    gpu: Tensor | None

    @staticmethod
    def now() -> _RandomState:
        gpu = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        return _RandomState(torch.get_rng_state(), gpu)

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.gpu is not None:
            torch.cuda.set_rng_state(self.gpu)
