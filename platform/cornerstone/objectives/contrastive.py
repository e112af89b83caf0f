"""The symmetric contrastive loss (LoTLIP, equation 1) over all workers, without the matrix of all pairs.

B rows of this worker, N of all workers, C of a chunk, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup
from torch.utils.checkpoint import checkpoint

from cornerstone.objectives.gather import Sizes, gather, gather_sizes, gather_values, start_of, summed, workers

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
    what fits in 16 MiB), once for both directions; with more than one chunk they are computed again in the backward pass.
    Value and gradient are exact.
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
        if valid_B is not None and not (valid_B.device.type == "cpu" and bool(valid_B.all())):
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
    group: ProcessGroup | None = None

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
        if local_B.device.type == "cpu":  # masks cost more there, and to look at them does not wait for a device
            valid_N = None if valid_N is None or bool(valid_N.all()) else valid_N
            ids_N = None if ids_N is None or len(ids_N.unique()) == len(ids_N) else ids_N
        return Pairs(start_of(len(local_B), group, sizes), workers(group), valid_N, ids_N, sizes, group)

    def loss(
        self, image: Side, text: Side, scale: Tensor | float, chunk: int | None, label_smoothing: float = 0.0
    ) -> Tensor:
        """The InfoNCE of one pair of sides; see `contrastive_loss`."""
        rows_BD, columns_ND = image.local_BD, text.all_ND
        size = chunk or max(1, _LOGITS // max(len(columns_ND), 1))
        scale = torch.as_tensor(scale, dtype=rows_BD.dtype, device=rows_BD.device)
        total: Tensor = _BothDirections.apply(rows_BD, columns_ND, scale, self, size, label_smoothing)  # type: ignore[no-untyped-call]
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

    def infonce(self, logits_CN: Tensor, first: int) -> Tensor:
        """Sum of −log softmax over the valid rows; a masked row keeps its own column, and adds 0."""
        own_C = torch.arange(first, first + len(logits_CN), device=logits_CN.device)
        positive_C = logits_CN.gather(1, own_C[:, None]).squeeze(1)
        ignored_CN = self.ignored(own_C)
        if ignored_CN is not None:
            logits_CN = logits_CN.masked_fill(ignored_CN, -torch.inf)
        losses_C = logits_CN.logsumexp(1) - positive_C
        return (losses_C if self.valid_N is None else torch.where(self.valid_N[own_C], losses_C, 0)).sum()

    def ignored(self, own_C: Tensor) -> Tensor | None:
        """(C, N): the columns that are no negatives of a row, masked or the same row of the data; never its own.

        A masked row has no negatives, so that of square logits rows and columns are ignored alike.
        """
        if self.valid_N is None and self.ids_N is None:
            return None
        ignored_CN = torch.zeros(len(own_C), 1, dtype=torch.bool, device=own_C.device)
        if self.valid_N is not None:
            ignored_CN = ignored_CN | ~self.valid_N | ~self.valid_N[own_C][:, None]
        if self.ids_N is not None:
            ignored_CN = ignored_CN | (self.ids_N[own_C][:, None] == self.ids_N)
        return ignored_CN.scatter(1, own_C[:, None], False)


class _BothDirections(torch.autograd.Function):
    """The sum of both directions' losses, of this worker's rows and of its columns, from one pass over its rows' logits.

    A column's log-sum-exp over the rows of other workers is gathered. The gradient is that of all workers' sums together,
    restricted to this worker's rows: what it says of the columns is summed over the workers by `gather`'s backward pass. So
    every worker must weigh its value alike, as a mean over workers does.

    With ε of label smoothing and K the columns that count, the gradient of logit (i, j) is

        softmax_j − (1 − ε) δ_ij − ε / K_i  +  softmax_i − (1 − ε) δ_ij − ε / K_j,    0 where it is ignored.

    A masked row or column has its own logit alone: its loss and its gradient are 0.
    """

    @staticmethod
    def forward(
        ctx: Any, rows_BD: Tensor, columns_ND: Tensor, scale: Tensor, pairs: Pairs, size: int, smoothing: float
    ) -> Tensor:
        count = len(columns_ND)
        mine = slice(pairs.start, pairs.start + len(rows_BD))
        row_B, positive_B, row_sum_B = (rows_BD.new_zeros(len(rows_BD)) for _ in range(3))
        column_N, column_sum_N = rows_BD.new_full((count,), -torch.inf), rows_BD.new_zeros(count)
        kept_B, kept_N = rows_BD.new_zeros(len(rows_BD)), rows_BD.new_zeros(count)
        logits_CN = ignored_CN = None
        for start in range(0, len(rows_BD), size):
            part = slice(start, start + size)
            logits_CN, ignored_CN, own_C = _logits(rows_BD[part], columns_ND, scale, pairs, start)
            positive_B[part] = logits_CN.gather(1, own_C[:, None]).squeeze(1)
            row_B[part] = logits_CN.logsumexp(1)
            column_N = torch.logaddexp(column_N, logits_CN.logsumexp(0))
            if smoothing:
                counted_CN = logits_CN if ignored_CN is None else logits_CN.masked_fill(ignored_CN, 0)
                counts_CN = torch.ones_like(counted_CN) if ignored_CN is None else (~ignored_CN).to(counted_CN.dtype)
                row_sum_B[part], kept_B[part] = counted_CN.sum(1), counts_CN.sum(1)
                column_sum_N, kept_N = column_sum_N + counted_CN.sum(0), kept_N + counts_CN.sum(0)
        if pairs.workers > 1:
            column_N = gather_values(column_N[None], pairs.group).logsumexp(0)
            column_sum_N, kept_N = summed(column_sum_N, pairs.group), summed(kept_N, pairs.group)
        targets_B = 2 * (1 - smoothing) * positive_B
        if smoothing:
            targets_B = targets_B + smoothing * (row_sum_B / kept_B + column_sum_N[mine] / kept_N[mine])
        losses_B = row_B + column_N[mine] - targets_B
        ctx.pairs, ctx.size, ctx.smoothing = pairs, size, smoothing
        held = (logits_CN,) if 0 < len(rows_BD) <= size else ()  # one chunk need not be computed again
        ctx.save_for_backward(rows_BD, columns_ND, scale, row_B, column_N, kept_B, kept_N, *held)
        return losses_B.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        rows_BD, columns_ND, scale, row_B, column_N, kept_B, kept_N, *held = ctx.saved_tensors
        pairs, smoothing = ctx.pairs, ctx.smoothing
        of_rows_BD, of_columns_ND, of_scale = torch.zeros_like(rows_BD), torch.zeros_like(columns_ND), 0.0 * scale
        with torch.autocast(rows_BD.device.type, enabled=False):
            for start in range(0, len(rows_BD), ctx.size):
                part = slice(start, start + ctx.size)
                rows_CD = rows_BD[part]
                logits_CN, ignored_CN, own_C = _logits(rows_CD, columns_ND, scale, pairs, start, *held)
                of_row_CN = (logits_CN - row_B[part, None]).exp_()
                of_column_CN = logits_CN.sub(column_N).exp_() if held else logits_CN.sub_(column_N).exp_()
                if smoothing:
                    of_row_CN -= smoothing / kept_B[part, None]
                    of_column_CN -= smoothing / kept_N
                both_CN = of_row_CN.add_(of_column_CN)
                if smoothing and ignored_CN is not None:
                    both_CN.masked_fill_(ignored_CN, 0)
                own_C1 = own_C[:, None]
                both_CN.scatter_(1, own_C1, both_CN.gather(1, own_C1) - 2 * (1 - smoothing))
                pulled_CD = both_CN @ columns_ND
                of_scale = of_scale + (pulled_CD * rows_CD).sum()
                of_rows_BD[part] = pulled_CD.mul_(scale * gradient)
                of_columns_ND.addmm_(both_CN.T, rows_CD * (scale * gradient))
        return of_rows_BD, of_columns_ND, of_scale * gradient, None, None, None


def _logits(
    rows_CD: Tensor, columns_ND: Tensor, scale: Tensor, pairs: Pairs, start: int, held: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Logits (C, N) of some rows, −∞ where they are ignored; where that is; and the place of each row's own column."""
    first = pairs.start + start
    own_C = torch.arange(first, first + len(rows_CD), device=rows_CD.device)
    ignored_CN = pairs.ignored(own_C)
    if held is not None:
        return held, ignored_CN, own_C
    logits_CN = (rows_CD * scale) @ columns_ND.T
    if ignored_CN is not None:
        logits_CN.masked_fill_(ignored_CN, -torch.inf)
    return logits_CN, ignored_CN, own_C
