"""The symmetric contrastive loss (LoTLIP, equation 1) over all workers, without the matrix of all pairs.

B rows of this worker, N of all workers, C of a chunk, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.utils.checkpoint import checkpoint

from cornerstone.objectives.gather import Sizes, gather, gather_sizes, gather_values, start_of, workers

_LOGITS = 2**22
"""Logits held at a time if no chunk is given: 16 MiB in fp32."""
Chunk = Callable[[Tensor, Tensor, Tensor | float, int], Tensor]
"""The sum of the losses of some rows (C, D) against all columns (N, D), given the scale and the first row's place."""


def contrastive_loss(
    image_BD: Tensor,
    text_BD: Tensor,
    scale: Tensor | float,
    *,
    row_ids_B: Tensor | None = None,
    valid_B: Tensor | None = None,
    group: ProcessGroup | None = None,
    chunk: int | None = None,
    uneven: bool = False,
    label_smoothing: float = 0.0,
) -> Tensor:
    """½ (image → text + text → image) InfoNCE, a mean over all workers' valid rows: a scalar.

    Features are L2-normalised, `scale` is 1/τ (shape (1,) or a float). A row whose `valid_B` is False is neither row
    nor column. Another column with the same row id is no negative. If no row is valid the loss is 0, with a graph.

    On each of W workers the value is (sum over its own rows) / (valid rows of all workers) × W: the mean over workers,
    which DeepSpeed takes of the gradients, is the global mean. Workers have equally many rows, masked ones counted, unless
    `uneven` (LCL's images): then their numbers, which may be 0, are gathered first.

    With `label_smoothing` ε the target is 1 − ε on the own column and ε / K on each of the K columns that count, the own
    one included, as in torch's cross-entropy.

    Logits are computed in fp32 or, for float64 features, float64, `chunk` rows at a time against all columns (None:
    what fits in 16 MiB); with more than one chunk they are computed again in the backward pass. Value and gradient are
    exact.
    """
    with torch.autocast(image_BD.device.type, enabled=False):
        pairs = Pairs.of(image_BD, row_ids_B, valid_B, group, uneven)
        image, text = (Side.of(x, valid_B, group, pairs.sizes) for x in (image_BD, text_BD))
        return pairs.loss(image, text, scale, chunk, label_smoothing)


def at_least_fp32(x: Tensor) -> Tensor:
    """The same numbers in fp32, or as they are if they are more precise."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Side(NamedTuple):
    """One side of the pairs, images or texts: this worker's rows and every worker's."""

    local_BD: Tensor
    all_ND: Tensor

    @staticmethod
    def of(local_BD: Tensor, valid_B: Tensor | None, group: ProcessGroup | None, sizes: Sizes = None) -> Side:
        """Gather a side. What masked rows hold, infinities too, does not reach the loss or a gradient."""
        local_BD = at_least_fp32(local_BD)
        if valid_B is not None:
            local_BD = torch.where(valid_B.view(-1, *[1] * (local_BD.ndim - 1)), local_BD, 0)
        return Side(local_BD, gather(local_BD, group, sizes))

    def term(self, k: int) -> Side:
        """Feature k of each row of a (B, M, D) side."""
        return Side(self.local_BD[:, k], self.all_ND[:, k])


class Pairs(NamedTuple):
    """Which of all workers' rows count, where this worker's begin, and which are the same row of the data."""

    start: int
    workers: int
    valid_N: Tensor | None
    ids_N: Tensor | None
    sizes: Sizes = None

    @staticmethod
    def of(
        local_B: Tensor,
        row_ids_B: Tensor | None,
        valid_B: Tensor | None,
        group: ProcessGroup | None,
        uneven: bool = False,
    ) -> Pairs:
        """Gather ids and masks; None means that all rows are valid, or that no two are the same."""
        sizes = gather_sizes(local_B, group) if uneven else None
        valid_N, ids_N = (None if x is None else gather_values(x, group, sizes) for x in (valid_B, row_ids_B))
        return Pairs(start_of(len(local_B), group, sizes), workers(group), valid_N, ids_N, sizes)

    def loss(
        self, image: Side, text: Side, scale: Tensor | float, chunk: int | None, label_smoothing: float = 0.0
    ) -> Tensor:
        """The InfoNCE of one pair of sides; see `contrastive_loss`."""
        of_rows = partial(self._of_rows, label_smoothing=label_smoothing)
        total = self.sum_of(of_rows, image, text, scale, chunk) + self.sum_of(of_rows, text, image, scale, chunk)
        return 0.5 * self.mean_of(total, image)

    def mean_of(self, total: Tensor, side: Side) -> Tensor:
        """A sum over this worker's rows / the valid rows of all workers × workers."""
        if self.valid_N is None:
            return total * self.workers / max(len(side.all_ND), 1)
        return total * self.workers / self.valid_N.sum().clamp(min=1)

    def sum_of(self, loss: Chunk, rows: Side, columns: Side, scale: Tensor | float, chunk: int | None) -> Tensor:
        """The sum of a loss over this worker's rows against all columns, some rows at a time."""
        rows_BD, columns_ND = rows.local_BD, columns.all_ND
        size = chunk or max(1, _LOGITS // max(len(columns_ND), 1))
        sums = []
        # Without a row there is one empty chunk: its graph has this worker take part in the backward pass of the others.
        for start in range(0, max(len(rows_BD), 1), size):
            arguments = (rows_BD[start : start + size], columns_ND, scale, self.start + start)
            if size < len(rows_BD):
                sums.append(checkpoint(loss, *arguments, use_reentrant=False, preserve_rng_state=False))
            else:
                sums.append(loss(*arguments))
        return torch.stack(sums).sum()

    def _of_rows(
        self, rows_CD: Tensor, columns_ND: Tensor, scale: Tensor | float, first: int, *, label_smoothing: float
    ) -> Tensor:
        if isinstance(scale, Tensor):
            scale = scale.to(rows_CD.dtype)
        return self.infonce((rows_CD * scale) @ columns_ND.T, first, label_smoothing)

    def infonce(self, logits_CN: Tensor, first: int, label_smoothing: float = 0.0) -> Tensor:
        """Sum of −log softmax over the valid rows; a masked row keeps its own column, and adds 0."""
        own_C = torch.arange(first, first + len(logits_CN), device=logits_CN.device)
        positive_C = logits_CN.gather(1, own_C[:, None]).squeeze(1)
        ignored_CN = self.ignored(own_C)
        if label_smoothing:
            mean_C = logits_CN.mean(1) if ignored_CN is None else _mean_of_kept(logits_CN, ignored_CN)
            positive_C = (1 - label_smoothing) * positive_C + label_smoothing * mean_C
        if ignored_CN is not None:
            logits_CN = logits_CN.masked_fill(ignored_CN, -torch.inf)
        losses_C = logits_CN.logsumexp(1) - positive_C
        return (losses_C if self.valid_N is None else torch.where(self.valid_N[own_C], losses_C, 0)).sum()

    def ignored(self, own_C: Tensor) -> Tensor | None:
        """(C, N): the columns that are no negatives of a row, masked or the same row of the data; never its own."""
        if self.valid_N is None and self.ids_N is None:
            return None
        ignored_CN = torch.zeros(len(own_C), 1, dtype=torch.bool, device=own_C.device)
        if self.valid_N is not None:
            ignored_CN = ignored_CN | ~self.valid_N
        if self.ids_N is not None:
            ignored_CN = ignored_CN | (self.ids_N[own_C][:, None] == self.ids_N)
        return ignored_CN.scatter(1, own_C[:, None], False)


def _mean_of_kept(logits_CN: Tensor, ignored_CN: Tensor) -> Tensor:
    kept_C = (~ignored_CN.expand_as(logits_CN)).sum(1)
    return logits_CN.masked_fill(ignored_CN, 0).sum(1) / kept_C
