"""The plan: which rows make global batch s, as a pure function of (seed, row groups, weights, batch size, s).

Each data set of a mixture is passed over again and again, each pass with an order and a number (epoch) of its own: shards
in a random order, the row groups of a window of shards shuffled together, rows within each group too. A batch takes from
every data set its share by weight, as exactly as whole rows allow, spread evenly over the batch. Batches follow one another
without regard to epochs, so that an epoch's edge needs no pause, and a batch across it may hold a row twice (the losses
know the row ids). The plan never depends on the number of workers: the state of the data is the step number.

Any step is planned from the shards' row counts alone, and from the row groups of the windows that it touches: a start in
the middle of a billion rows costs what a start at the beginning does.
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

WINDOW = 64  # shards whose row groups are shuffled together
_KEPT = 4  # passes and windows kept: a batch across an edge touches two of each
Key = TypeVar("Key")
Value = TypeVar("Value")


class _Passes:
    """The endless order of one data set's rows, pass after pass; its first rows alone where there is a limit."""

    def __init__(self, shards: tuple[tuple[int, ...], ...], limit: int, seed: int, part: int) -> None:
        self.shards, self.seed, self.part = shards, seed, part
        ends = np.cumsum(np.fromiter(map(sum, shards), np.int64, len(shards)))
        self.ends = np.minimum(ends, limit)[: int(np.searchsorted(ends, limit)) + 1]
        self.rows = int(self.ends[-1])
        self._sizes = np.diff(self.ends, prepend=0)
        self._orders: dict[int, tuple[Ints, Ints]] = {}
        self._windows: dict[tuple[int, int], tuple[Ints, Ints, Ints, Ints]] = {}

    def _order(self, epoch: int) -> tuple[Ints, Ints]:
        """The shards in this pass's order, and the places where each window of them ends."""
        if epoch not in self._orders:
            count = len(self._sizes)
            shuffles = count > WINDOW
            order = draws.permutation(count, self.seed, "shards", epoch, self.part) if shuffles else np.arange(count)
            last = np.minimum(np.arange(WINDOW, count + WINDOW, WINDOW), count) - 1
            _keep(self._orders, epoch, (order, np.cumsum(self._sizes[order])[last]))
        return self._orders[epoch]

    def _window(self, epoch: int, window: int) -> tuple[Ints, Ints, Ints, Ints]:
        """The row groups of a window in their order: number, first row, size, and the place where each one ends."""
        if (epoch, window) not in self._windows:
            chosen = np.sort(self._order(epoch)[0][window * WINDOW : (window + 1) * WINDOW])
            groups = [np.asarray(self.shards[shard], dtype=np.int64) for shard in chosen.tolist()]
            starts = self.ends[chosen] - self._sizes[chosen]
            first = np.concatenate([start + np.cumsum(g) - g for start, g in zip(starts, groups, strict=True)])
            sizes = np.concatenate(groups)
            if self.rows - first[-1] < sizes[-1]:  # the limit falls inside a group
                first, sizes = first[first < self.rows], sizes[first < self.rows]
                sizes[-1] = self.rows - first[-1]
            order = draws.permutation(len(sizes), self.seed, "groups", epoch, *self._number(window))
            _keep(self._windows, (epoch, window), (order, first[order], sizes[order], np.cumsum(sizes[order])))
        return self._windows[epoch, window]

    def _number(self, window: int) -> tuple[int, ...]:
        """What sets a window's draws apart; nothing for the very first, so that small data keep their order in a mixture."""
        return (window, self.part) if window or self.part else ()

    def take(self, start: int, stop: int) -> tuple[Ints, Ints]:
        """Rows and epochs at the places start..stop-1 of all passes."""
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
    """The order of rows for ever.

    A row's id is its place in its data set, after all rows of the data sets before it. `limit_rows` keeps the first rows
    alone (they lie in random order), of a mixture as large a share of each data set. Raises CornerstoneError where a batch
    would need a row twice.
    """

    parts: tuple[Part, ...]
    batch_size: int
    seed: int
    limit_rows: int | None = None

    def __post_init__(self) -> None:
        if not all(passes.rows for passes in self._passes):
            raise CornerstoneError(f"A limit of {self.limit_rows} rows leaves none of a data set: raise --limit-rows.")
        fits = min(int(passes.rows / share) for passes, share in zip(self._passes, self._shares, strict=True))
        if self.batch_size > fits:
            whose = "rows to train on" if len(self.parts) == 1 else "rows that the mixture gives before it repeats one"
            raise CornerstoneError(
                f"A batch of {self.batch_size} is larger than the {fits} {whose}: set "
                f"--recipe.optimization.batch-size to {fits} or less, or give more rows."
            )
        if len(self.parts) > 1 and self.batch_size * max(self._shares) < len(self.parts):
            raise CornerstoneError(
                f"A batch of {self.batch_size} is too small for a mixture of {len(self.parts)} data sets: raise "
                f"--recipe.optimization.batch-size."
            )

    def __reduce__(self) -> tuple[type[Plan], tuple[object, ...]]:
        """What has been computed stays here: the plan travels to every actor."""
        return Plan, (self.parts, self.batch_size, self.seed, self.limit_rows)

    @cached_property
    def _sizes(self) -> list[int]:
        return [sum(map(sum, part.shards)) for part in self.parts]

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
        """Rows of one epoch: each data set as often as its weight says."""
        return int(sum(passes.rows * part.weight for passes, part in zip(self._passes, self.parts, strict=True)))

    def _taken(self, step: int) -> list[int]:
        """Rows of each data set in all batches before `step`; what rounding leaves goes to the one with the largest share."""
        taken = [int(step * self.batch_size * share) for share in self._shares]
        taken[self._shares.index(max(self._shares))] += step * self.batch_size - sum(taken)
        return taken

    def batch(self, step: int) -> tuple[Ints, Ints]:
        """Row ids and epochs (batch_size,) of global batch `step`, counted from 0."""
        return self._places(step, 0, self.batch_size)

    def _places(self, step: int, start: int, stop: int) -> tuple[Ints, Ints]:
        """Row ids and epochs at the places start..stop-1 of a batch, planned without the others."""
        before = self._taken(step)
        counts = [after - count for after, count in zip(self._taken(step + 1), before, strict=True)]
        part, index = _spread(counts, start, stop)
        rows, epochs = np.zeros(len(part), dtype=np.int64), np.zeros(len(part), dtype=np.int64)
        for i, passes in enumerate(self._passes):
            mine = index[part == i]
            if len(mine):  # a run of consecutive places
                found, epochs[part == i] = passes.take(before[i] + int(mine[0]), before[i] + int(mine[-1]) + 1)
                rows[part == i] = self.offsets[i] + found
        return rows, epochs

    def share(self, step: int, worker: int, workers: int, first: int = 0, rows: int | None = None) -> tuple[Ints, Ints]:
        """Row ids and epochs of one worker's share of a batch, or of the places first..first+rows-1 of it.

        A share has `share_size` places; if the workers do not divide the batch evenly, the last places are MASKED.
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
    """Whose each of the places start..stop-1 is, and which of its owner's: every owner spread evenly over all places."""
    if len(counts) == 1:
        return np.zeros(stop - start, dtype=np.int64), np.arange(start, stop)
    owner = np.repeat(np.arange(len(counts)), counts)
    index = np.concatenate([np.arange(count) for count in counts])
    order = np.argsort((index + 0.5) / np.repeat(counts, counts), kind="stable")[start:stop]
    return owner[order], index[order]


def share_size(batch_size: int, workers: int) -> int:
    """Places of one worker in a global batch, masked ones included."""
    return -(-batch_size // workers)
