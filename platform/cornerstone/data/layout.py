"""How a run's stream is cut: steps into units, a unit for each worker in turn, units into executions.

A unit is one worker's rows of one or a few consecutive steps or, if a share is large, a part of its rows of one step. It
travels as one block. Units are dealt in the order (step, part, worker), so unit i belongs to worker i mod n. An execution is
what one Ray Data execution streams; executions keep something in memory for every unit, so a long run is a chain of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from cornerstone.data.plan import Plan, share_size
from cornerstone.data.source import Source

if TYPE_CHECKING:
    from cornerstone.data.batch import Batch

UNIT_BYTES = 16 << 20
"""Decoded bytes of a unit: large enough to hide the 10 ms that each one costs."""
BYTES_PER_WORKER = 1 << 20
"""Units grow with the workers, all of which one executor serves: 64 MiB for 64 of them."""
LARGEST_UNIT = 96 << 20
UNIT_ROWS = 1024
LARGEST_WHOLE = 2
"""A share of up to so many units is not split: every unit has a cost, and joining parts costs a copy."""
UNITS_AHEAD = 16
"""Units that may wait for each worker. If steps are slower than decoding, more would only fill the object store."""
LEAST_AHEAD = 512 << 20
"""With half of it the stream is 8 % slower on two cores."""
UNITS_PER_EXECUTION = 20_000
"""An execution keeps about 8 kB of each training unit, 150 MB; units of evaluations come on top."""


@dataclass(frozen=True)
class StreamSpec:
    """What a run streams; it travels to every decode actor once."""

    train: Source[Batch]
    plan: Plan
    steps: int
    evaluations: tuple[Source[Batch], ...] = ()
    every: int = 0
    """Steps between evaluations; 0 evaluates at the end alone."""

    def evaluates_after(self, step: int) -> bool:
        """Whether the sets are evaluated after this step (counted from 0) is done."""
        done = step + 1
        return bool(self.evaluations) and (done == self.steps or (self.every > 0 and done % self.every == 0))


@dataclass(frozen=True)
class Unit:
    """One worker's rows that travel as one block.

    Training: the places first..first+rows-1 of the worker's share in each of the steps step..stop-1. Evaluation: the rows
    first..first+rows-1 of a set, judged after `step`.
    """

    worker: int
    step: int
    stop: int
    first: int
    rows: int
    evaluation: int | None = None
    """The place of the evaluation set in the run's spec; None for training."""


@dataclass(frozen=True)
class Layout:
    """How a run's stream is cut into units for a number of workers."""

    spec: StreamSpec
    workers: int
    units_per_execution: int = UNITS_PER_EXECUTION

    @cached_property
    def share(self) -> int:
        """Rows of one worker in one batch, masked ones included."""
        return share_size(self.spec.plan.batch_size, self.workers)

    @property
    def unit_bytes(self) -> int:
        """Decoded bytes that a unit should not exceed."""
        return min(max(UNIT_BYTES, self.workers * BYTES_PER_WORKER), LARGEST_UNIT)

    def _fitting(self, source: Source[Batch]) -> int:
        """Rows of a source that fit a unit."""
        return max(min(UNIT_ROWS, self.unit_bytes // source.row_bytes), 1)

    @cached_property
    def parts(self) -> tuple[tuple[int, int], ...]:
        """First place and rows of each part of a share: equal parts that fit units; a share of up to two units is one part."""
        fitting = self._fitting(self.spec.train)
        count = math.ceil(self.share / fitting) if self.share > LARGEST_WHOLE * fitting else 1
        size = math.ceil(self.share / count)
        return tuple((first, min(size, self.share - first)) for first in range(0, self.share, size))

    @cached_property
    def steps_per_unit(self) -> int:
        """Steps that one block serves: several if shares are small, since every block has a cost of its own."""
        if len(self.parts) > 1:
            return 1
        span = min(self.spec.steps, self.spec.every or self.spec.steps)  # eighths: decode actors share even a short run
        return max(1, min(self._fitting(self.spec.train) // self.share, math.ceil(span / 8)))

    @property
    def bytes_ahead(self) -> int:
        """Memory for units that are ready before they are needed."""
        rows = self.parts[0][1] * self.steps_per_unit
        return max(UNITS_AHEAD * self.workers * rows * self.spec.train.row_bytes, LEAST_AHEAD)

    def executions(self, start: int) -> list[tuple[int, int]]:
        """First and last step (excluded) of each execution from step `start` to the run's end; at least one."""
        steps = max(self.units_per_execution // (self.workers * len(self.parts)), 1) * self.steps_per_unit
        starts = range(start, self.spec.steps, steps)
        return [(first, min(first + steps, self.spec.steps)) for first in starts] or [(start, start)]

    def rounds(self, start: int, stop: int) -> Iterator[list[Unit]]:
        """The units of the steps start..stop-1 in the order in which they are dealt, one for each worker at a time."""
        step = start
        while step < stop:
            end = min(self._boundary(step), stop)
            for first, rows in self.parts:
                yield [Unit(worker, step, end, first, rows) for worker in range(self.workers)]
            step = end
            if self.spec.evaluates_after(step - 1):
                yield from self.evaluation_rounds(step - 1)
        if start == stop:  # nothing of the run is left, but Ray Data cannot stream nothing
            yield [Unit(worker, start, start, 0, 0) for worker in range(self.workers)]

    def evaluation_rounds(self, step: int) -> Iterator[list[Unit]]:
        """The units of the evaluation after `step`, one for each worker at a time."""
        for index, source in enumerate(self.spec.evaluations):
            size = self._fitting(source)
            for first in range(0, source.rows, size * self.workers):
                starts = [first + worker * size for worker in range(self.workers)]
                yield [
                    Unit(worker, step, step + 1, begin, max(min(size, source.rows - begin), 0), index)
                    for worker, begin in enumerate(starts)
                ]

    def _boundary(self, step: int) -> int:
        """The first step after `step` that another unit holds: an evaluation is due between units, never inside one."""
        stops = [step + self.steps_per_unit, self.spec.steps]
        if self.spec.every and self.spec.evaluations:
            stops.append((step // self.spec.every + 1) * self.spec.every)
        return min(stops)
