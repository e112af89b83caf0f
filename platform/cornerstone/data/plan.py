"""The plan: which rows make global batch s, as a pure function of (seed, row groups, batch size, s).

An epoch is one pass over the data set: row groups in a random order, rows within each group too. Batches follow one
another without regard to epochs, so that an epoch's edge needs no pause, and a batch across it may hold a row twice (the
losses know the row ids). The plan never depends on the number of workers: the state of the data is the step number.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from cornerstone.data import draws
from cornerstone.errors import CornerstoneError

MASKED = -1  # the row id of a place that holds no row
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """The order of rows for ever.

    `row_groups` are the manifest's rows a group, `limit_rows` keeps the first rows alone (they lie in random order).
    """

    row_groups: tuple[int, ...]
    batch_size: int
    seed: int
    limit_rows: int | None = None
    _epochs: dict[int, tuple[Ints, Ints]] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.batch_size > self.rows:
            raise CornerstoneError(
                f"A batch of {self.batch_size} is larger than the {self.rows} rows to train on: set "
                f"--recipe.optimization.batch-size to {self.rows} or less, or give more rows."
            )

    @property
    def rows(self) -> int:
        """Rows of one epoch."""
        return int(self._groups.sum())

    @cached_property
    def _groups(self) -> Ints:
        """Rows of each group that takes part, the last one cut to the limit."""
        groups = np.asarray(self.row_groups, dtype=np.int64)
        if self.limit_rows is None:
            return groups
        ends = np.minimum(np.cumsum(groups), self.limit_rows)
        sizes = np.diff(ends, prepend=0)
        return sizes[sizes > 0]

    @cached_property
    def _starts(self) -> Ints:
        return np.cumsum(self._groups) - self._groups

    def _epoch(self, epoch: int) -> tuple[Ints, Ints]:
        """The shuffled groups of an epoch, and the place in the epoch where each one ends."""
        if epoch not in self._epochs:
            order = draws.permutation(len(self._groups), self.seed, "groups", epoch)
            while len(self._epochs) >= 2:  # a batch touches two epochs at most where the batch is below the rows
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch] = (order, np.cumsum(self._groups[order]))
        return self._epochs[epoch]

    def _span(self, epoch: int, start: int, stop: int) -> Ints:
        """Row ids at the places start..stop-1 of an epoch."""
        order, ends = self._epoch(epoch)
        parts = []
        for place in range(np.searchsorted(ends, start, side="right"), np.searchsorted(ends, stop, side="left") + 1):
            group = int(order[place])
            rows = int(self._groups[group])
            begin = int(ends[place]) - rows
            within = draws.permutation(rows, self.seed, "rows", epoch, group)
            parts.append(self._starts[group] + within[max(start - begin, 0) : stop - begin])
        return np.concatenate(parts)

    def batch(self, step: int) -> tuple[Ints, Ints]:
        """Row ids and epochs (batch_size,) of global batch `step`, counted from 0."""
        place, end = step * self.batch_size, (step + 1) * self.batch_size
        rows, epochs = [], []
        while place < end:
            epoch, start = divmod(place, self.rows)
            count = min(end - place, self.rows - start)
            rows.append(self._span(epoch, start, start + count))
            epochs.append(np.full(count, epoch, dtype=np.int64))
            place += count
        return np.concatenate(rows), np.concatenate(epochs)

    def share(self, step: int, worker: int, workers: int) -> tuple[Ints, Ints]:
        """One worker's part of a batch, `share_size` places; where workers do not divide the batch the last are MASKED."""
        rows, epochs = self.batch(step)
        size = share_size(self.batch_size, workers)
        mine = slice(worker * size, (worker + 1) * size)
        missing = size - len(rows[mine])
        return (
            np.concatenate([rows[mine], np.full(missing, MASKED, dtype=np.int64)]),
            np.concatenate([epochs[mine], np.zeros(missing, dtype=np.int64)]),
        )


def share_size(batch_size: int, workers: int) -> int:
    """Places of one worker in a global batch, masked ones included."""
    return -(-batch_size // workers)
