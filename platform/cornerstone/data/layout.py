"""How a run's stream is cut: steps into units, a unit for each worker in turn, units into segments.

A unit is one worker's rows of one or a few consecutive steps. Every unit of a run has the same number of rows, and units
are dealt in the order (step, worker): so unit i is worker i mod n's. A segment is what one Ray Data execution streams;
executions remember something of every unit, and a long run is a chain of segments.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cornerstone.data.pairs.samples import Draws, Pictures, Texts
from cornerstone.data.pairs.views import View
from cornerstone.data.plan import Plan, share_size

if TYPE_CHECKING:
    from cornerstone.data.documents import Packed

UNIT_BYTES = 16 << 20  # decoded bytes of a unit: large enough to hide the 10 ms that each one costs
BYTES_PER_WORKER = 1 << 20  # units grow with the workers, which one executor serves: 64 MiB for 64 of them
LARGEST_UNIT = 96 << 20
UNIT_ROWS = 1024
UNITS_AHEAD = 16  # of each worker: where steps are slower than decoding, more would only fill the object store
LEAST_AHEAD = 512 << 20  # half of it costs 8 % of the rate on two cores
SEGMENT_UNITS = 20_000  # an execution keeps some 8 kB of each: 150 MB


@dataclass(frozen=True)
class EvaluationSource:
    """An evaluation set as the stream reads it: its shards, its stored features where there are some, what is judged."""

    name: str
    data: str
    rows: int
    view: View
    features: str = ""


@dataclass(frozen=True)
class StreamSpec:
    """All that an actor needs to make any unit of a run; it travels to the actors once.

    `data` is the folders of rows: of pairs, or, with `packed`, of the documents behind the plan's packed sequences.
    """

    data: tuple[str, ...]
    plan: Plan
    draws: Draws
    pictures: Pictures
    texts: Texts
    steps: int
    evaluations: tuple[EvaluationSource, ...] = ()
    every: int = 0
    """Steps between evaluations; 0: at the end alone."""
    packed: Packed | None = None

    @property
    def row_bytes(self) -> int:
        """Decoded bytes of a row, at the most."""
        image = 3 * self.pictures.transform.size**2
        if self.packed is not None:
            return 9 * self.packed.row_tokens + self.packed.most_images * image
        return 4 * self.pictures.width if self.pictures.features else image

    def evaluates_after(self, step: int) -> bool:
        """Whether the sets are evaluated after this step (counted from 0) is done."""
        done = step + 1
        return bool(self.evaluations) and (done == self.steps or (self.every > 0 and done % self.every == 0))


@dataclass(frozen=True)
class Layout:
    """How a run's stream is cut into blocks for a number of workers."""

    spec: StreamSpec
    workers: int
    segment_units: int = SEGMENT_UNITS

    @property
    def share(self) -> int:
        """Rows of one worker in one batch."""
        return share_size(self.spec.plan.batch_size, self.workers)

    @property
    def steps_per_unit(self) -> int:
        """Steps that one block serves: several where steps are small, since every block has a cost of its own."""
        unit_bytes = min(max(UNIT_BYTES, self.workers * BYTES_PER_WORKER), LARGEST_UNIT)
        rows = max(min(UNIT_ROWS, unit_bytes // self.spec.row_bytes), 1)
        span = min(self.spec.steps, self.spec.every or self.spec.steps)
        return max(1, min(rows // self.share, math.ceil(span / 8)))

    @property
    def unit_rows(self) -> int:
        """Rows of every block."""
        return self.share * self.steps_per_unit

    @property
    def ahead_bytes(self) -> int:
        """Memory for units that are ready before they are needed."""
        return max(UNITS_AHEAD * self.workers * self.unit_rows * self.spec.row_bytes, LEAST_AHEAD)

    def segments(self, start: int) -> list[tuple[int, int]]:
        """First and last step (excluded) of each segment from step `start` to the run's end; never none."""
        steps = max(self.segment_units // self.workers, 1) * self.steps_per_unit
        starts = range(start, self.spec.steps, steps)
        return [(first, min(first + steps, self.spec.steps)) for first in starts] or [(start, start)]

    def rounds(self, start: int, stop: int) -> Iterator[list[dict[str, int]]]:
        """The units of the steps start..stop-1 in the order in which they are dealt, one for each worker at a time.

        `set` is -1 for training; an evaluation's unit starts at row `first` of its set.
        """
        step = start
        while step < stop:
            end = min(self._boundary(step), stop)
            yield self._round(step=step, stop=end, set=-1, first=0)
            step = end
            if self.spec.evaluates_after(step - 1):
                for index, source in enumerate(self.spec.evaluations):
                    for first in range(0, source.rows, self.unit_rows * self.workers):
                        yield self._round(step=step - 1, stop=step, set=index, first=first)
        if start == stop:  # nothing is left of the run, and Ray Data cannot stream nothing
            yield self._round(step=start, stop=start, set=-1, first=0)

    def _round(self, **unit: int) -> list[dict[str, int]]:
        """One unit for each worker."""
        return [{**unit, "worker": worker} for worker in range(self.workers)]

    def _boundary(self, step: int) -> int:
        """The first step after `step` that another unit holds: an evaluation falls due between units, never inside."""
        stops = [step + self.steps_per_unit, self.spec.steps]
        if self.spec.every and self.spec.evaluations:
            stops.append((step // self.spec.every + 1) * self.spec.every)
        return min(stops)

    def evaluation_batches(self) -> int:
        """Batches that each worker gets in one evaluation; the same number for all."""
        sizes = [math.ceil(source.rows / (self.unit_rows * self.workers)) for source in self.spec.evaluations]
        return sum(sizes) * self.steps_per_unit
