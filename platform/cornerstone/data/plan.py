"""The plan: which rows make global batch s, as a pure function of (seed, row groups, weights, batch size, s).

Each data set of a mixture has its own epochs, and each epoch its own order: shards are shuffled, the row groups of a
shuffle window (64 shards) are shuffled together, and rows are shuffled within each row group. A batch takes rows of every
data set in proportion to its weight, rounded to whole rows and spread evenly over the batch. Batches cross epoch
boundaries: there is no pause at the end of an epoch, and such a batch may contain a row twice (the losses get the row ids).
The plan does not depend on the number of workers, so the step number is the whole state of the data.

A step is planned from the row counts of all shards and the row groups of the shuffle windows that it touches, so starting
in the middle of a billion rows costs the same as starting at the beginning.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TypeVar

import numpy as np

from cornerstone.data import draws
from cornerstone.data.source import MASKED, Ints, Part
from cornerstone.errors import CornerstoneError

WINDOW = 64  # shards of a shuffle window: their row groups are shuffled together
_KEPT = 4  # epochs and shuffle windows that are cached: a batch across a boundary needs two of each
Key = TypeVar("Key")
Value = TypeVar("Value")


class _Passes:
    """The endless order of one data set's rows, epoch after epoch; with a limit, of its first `limit` rows only."""

    def __init__(self, shards: tuple[tuple[int, ...], ...], limit: int, seed: int, part: int) -> None:
        self.shards, self.seed, self.part = shards, seed, part
        ends = np.cumsum(np.fromiter(map(sum, shards), np.int64, len(shards)))
        self.ends = np.minimum(ends, limit)[: int(np.searchsorted(ends, limit)) + 1]
        self.rows = int(self.ends[-1])
        self._sizes = np.diff(self.ends, prepend=0)
        self._orders: dict[int, tuple[Ints, Ints]] = {}
        self._windows: dict[tuple[int, int], tuple[Ints, Ints, Ints, Ints]] = {}

    def _order(self, epoch: int) -> tuple[Ints, Ints]:
        """The shards in the order of this epoch, and the position at which each shuffle window ends."""
        if epoch not in self._orders:
            count = len(self._sizes)
            shuffles = count > WINDOW
            order = draws.permutation(count, self.seed, "shards", epoch, self.part) if shuffles else np.arange(count)
            last = np.minimum(np.arange(WINDOW, count + WINDOW, WINDOW), count) - 1
            _keep(self._orders, epoch, (order, np.cumsum(self._sizes[order])[last]))
        return self._orders[epoch]

    def _window(self, epoch: int, window: int) -> tuple[Ints, Ints, Ints, Ints]:
        """The shuffled row groups of a shuffle window: number, first row, size, and the position at which each one ends."""
        if (epoch, window) not in self._windows:
            chosen = np.sort(self._order(epoch)[0][window * WINDOW : (window + 1) * WINDOW])
            groups = [np.asarray(self.shards[shard], dtype=np.int64) for shard in chosen.tolist()]
            starts = self.ends[chosen] - self._sizes[chosen]
            first = np.concatenate([start + np.cumsum(g) - g for start, g in zip(starts, groups, strict=True)])
            sizes = np.concatenate(groups)
            if self.rows - first[-1] < sizes[-1]:  # the limit falls inside a row group
                first, sizes = first[first < self.rows], sizes[first < self.rows]
                sizes[-1] = self.rows - first[-1]
            order = draws.permutation(len(sizes), self.seed, "groups", epoch, *self._number(window))
            _keep(self._windows, (epoch, window), (order, first[order], sizes[order], np.cumsum(sizes[order])))
        return self._windows[epoch, window]

    def _number(self, window: int) -> tuple[int, ...]:
        """Extra keys that make the draws of a shuffle window different from those of other windows and data sets.

        Empty for the first window of the first data set, so that the order of a small data set is the same in a mixture.
        """
        return (window, self.part) if window or self.part else ()

    def take(self, start: int, stop: int) -> tuple[Ints, Ints]:
        """Rows and epochs at the positions start..stop-1 of the endless order."""
        rows, epochs = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        while start < stop:
            epoch, place = divmod(start, self.rows)
            ends = self._order(epoch)[1]
            window = int(np.searchsorted(ends, place, side="right"))
            begin = int(ends[window - 1]) if window else 0
            count = min(stop - start, int(ends[window]) - place)
            rows.append(self._span(epoch, window, place - begin, place - begin + count))
            epochs.append(np.full(count, epoch, dtype=np.int64))
            start += count
        return np.concatenate(rows), np.concatenate(epochs)

    def _span(self, epoch: int, window: int, start: int, stop: int) -> Ints:
        numbers, first, sizes, ends = self._window(epoch, window)
        parts = []
        for place in range(np.searchsorted(ends, start, side="right"), np.searchsorted(ends, stop, side="left") + 1):
            size, begin, group = int(sizes[place]), int(ends[place] - sizes[place]), int(numbers[place])
            within = draws.permutation(size, self.seed, "rows", epoch, group, *self._number(window))
            parts.append(first[place] + within[max(start - begin, 0) : stop - begin])
        return np.concatenate(parts)


def _keep(kept: dict[Key, Value], key: Key, value: Value) -> None:
    while len(kept) >= _KEPT:
        del kept[next(iter(kept))]
    kept[key] = value


@dataclass(frozen=True)
class Plan:
    """The endless order of rows.

    The id of a row is its position in its data set plus the number of rows in all data sets before it. `limit_rows` keeps
    only the first rows (they are stored in random order); of a mixture, the same share of each data set. Raises
    CornerstoneError if a batch would need the same row of one epoch twice.
    """

    parts: tuple[Part, ...]
    batch_size: int
    seed: int
    limit_rows: int | None = None

    def __post_init__(self) -> None:
        if not all(passes.rows for passes in self._passes):
            raise CornerstoneError(
                f"A limit of {self.limit_rows} rows leaves no row of a data set of the mixture: raise --limit-rows."
            )
        fits = min(int(passes.rows / share) for passes, share in zip(self._passes, self._shares, strict=True))
        if self.batch_size > fits:
            whose = "rows to train on" if len(self.parts) == 1 else "rows that the mixture has before it repeats one"
            raise CornerstoneError(
                f"A batch of {self.batch_size} is larger than the {fits} {whose}: set "
                f"--recipe.optimization.batch-size to {fits} or less, or add rows."
            )
        if len(self.parts) > 1 and self.batch_size * max(self._shares) < len(self.parts):
            raise CornerstoneError(
                f"A batch of {self.batch_size} is too small for a mixture of {len(self.parts)} data sets: raise "
                f"--recipe.optimization.batch-size."
            )

    def __reduce__(self) -> tuple[type[Plan], tuple[object, ...]]:
        """Pickle the fields without the cached properties, because the plan is sent to every actor."""
        return Plan, (self.parts, self.batch_size, self.seed, self.limit_rows)

    @cached_property
    def _sizes(self) -> list[int]:
        return [part.rows for part in self.parts]

    @cached_property
    def _passes(self) -> list[_Passes]:
        ends, total = np.cumsum([0, *self._sizes]).tolist(), sum(self._sizes)
        limit = min(self.limit_rows or total, total)
        limits = np.diff([limit * end // total for end in ends]).tolist()
        return [_Passes(part.shards, limits[i], self.seed, i) for i, part in enumerate(self.parts)]

    @cached_property
    def _shares(self) -> list[Fraction]:
        """Share of each data set in a batch."""
        weights = [passes.rows * part.weight for passes, part in zip(self._passes, self.parts, strict=True)]
        return [weight / sum(weights) for weight in weights]

    @cached_property
    def offsets(self) -> Ints:
        """The id of each data set's first row."""
        return np.cumsum([0, *self._sizes])[:-1]

    @property
    def rows(self) -> int:
        """Rows of one epoch: the rows of each data set times its weight."""
        return int(sum(passes.rows * part.weight for passes, part in zip(self._passes, self.parts, strict=True)))

    def _taken(self, step: int) -> list[int]:
        """Rows of each data set in all batches before `step`. The data set with the largest share gets what rounding leaves."""
        taken = [int(step * self.batch_size * share) for share in self._shares]
        taken[self._shares.index(max(self._shares))] += step * self.batch_size - sum(taken)
        return taken

    def batch(self, step: int) -> tuple[Ints, Ints]:
        """Row ids and epochs (batch_size,) of global batch `step`, counted from 0."""
        return self._places(step, 0, self.batch_size)

    def _places(self, step: int, start: int, stop: int) -> tuple[Ints, Ints]:
        """Row ids and epochs at the positions start..stop-1 of a batch, without planning the other positions."""
        before = self._taken(step)
        counts = [after - count for after, count in zip(self._taken(step + 1), before, strict=True)]
        part, index = _spread(counts, start, stop)
        rows, epochs = np.zeros(len(part), dtype=np.int64), np.zeros(len(part), dtype=np.int64)
        for i, passes in enumerate(self._passes):
            mine = index[part == i]
            if len(mine):  # consecutive positions of this data set
                found, epochs[part == i] = passes.take(before[i] + int(mine[0]), before[i] + int(mine[-1]) + 1)
                rows[part == i] = self.offsets[i] + found
        return rows, epochs

    def share(self, step: int, worker: int, workers: int, first: int = 0, rows: int | None = None) -> tuple[Ints, Ints]:
        """Row ids and epochs of one worker's share of a batch, or of the positions first..first+rows-1 of the share.

        A share has `share_size` positions; if the batch size is not divisible by the number of workers, the last ones are
        MASKED.
        """
        size = share_size(self.batch_size, workers)
        rows = size - first if rows is None else rows
        start, stop = (min(place, self.batch_size) for place in (worker * size + first, worker * size + first + rows))
        found, epochs = self._places(step, start, stop)
        missing = rows - len(found)
        return (
            np.concatenate([found, np.full(missing, MASKED, dtype=np.int64)]),
            np.concatenate([epochs, np.zeros(missing, dtype=np.int64)]),
        )


def _spread(counts: list[int], start: int, stop: int) -> tuple[Ints, Ints]:
    """The data set of each of the positions start..stop-1, and the row's index among that data set's rows of the batch.

    The rows of every data set are spread evenly over the batch.
    """
    if len(counts) == 1:
        return np.zeros(stop - start, dtype=np.int64), np.arange(start, stop)
    owner = np.repeat(np.arange(len(counts)), counts)
    index = np.concatenate([np.arange(count) for count in counts])
    order = np.argsort((index + 0.5) / np.repeat(counts, counts), kind="stable")[start:stop]
    return owner[order], index[order]


def share_size(batch_size: int, workers: int) -> int:
    """Positions of one worker in a global batch, masked ones included."""
    return -(-batch_size // workers)
