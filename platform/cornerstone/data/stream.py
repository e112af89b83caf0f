"""One stream a run: units of the plan through Ray Data actors, in order, to the Train workers.

Block i reaches worker i mod n, given ordered execution, one unit a block and equal rows in every unit. Evaluations ride in
the same stream, at the steps where they fall due: no second execution has to wait for a free CPU, and their first batch
is ready when the last training batch has been used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cornerstone.data.plan import MASKED, Plan, share_size
from cornerstone.data.samples import Draws, Pictures, Samples, Texts, View
from cornerstone.errors import CornerstoneError

if TYPE_CHECKING:
    import ray.data

    from cornerstone.data.batches import Batch, EvaluationBatch

UNIT_BYTES = 16 << 20  # decoded bytes of a unit: far below Ray Data's block limit, large enough to hide a unit's cost
UNIT_ROWS = 1024


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
    """All that an actor needs to make any unit of a run; it travels to the actors once. `data` is the folders of rows."""

    data: tuple[str, ...]
    plan: Plan
    draws: Draws
    pictures: Pictures
    texts: Texts
    steps: int
    evaluations: tuple[EvaluationSource, ...] = ()
    every: int = 0
    """Steps between evaluations; 0: at the end alone."""

    def evaluates_after(self, step: int) -> bool:
        """Whether the sets are evaluated after this step (counted from 0) is done."""
        done = step + 1
        return bool(self.evaluations) and (done == self.steps or (self.every > 0 and done % self.every == 0))


@dataclass(frozen=True)
class Layout:
    """How a run's stream is cut into blocks for a number of workers."""

    spec: StreamSpec
    workers: int

    @property
    def share(self) -> int:
        """Rows of one worker in one batch."""
        return share_size(self.spec.plan.batch_size, self.workers)

    @property
    def steps_per_unit(self) -> int:
        """Steps that one block serves: several where steps are small, since every block has a cost of its own."""
        pictures = self.spec.pictures
        row_bytes = 4 * pictures.width if pictures.features else 3 * pictures.transform.size**2
        rows = max(min(UNIT_ROWS, UNIT_BYTES // row_bytes), 1)
        span = min(self.spec.steps, self.spec.every or self.spec.steps)
        return max(1, min(rows // self.share, math.ceil(span / 8)))

    @property
    def unit_rows(self) -> int:
        """Rows of every block."""
        return self.share * self.steps_per_unit

    def units(self, start: int) -> list[dict[str, int]]:
        """Every unit from step `start` to the run's end, in the order in which they are dealt to the workers.

        `set` is -1 for training; an evaluation's unit starts at row `first` of its set.
        """
        units: list[dict[str, int]] = []
        step = start
        while step < self.spec.steps:
            stop = self._boundary(step)
            units += self._round(step=step, stop=stop, set=-1, first=0)
            step = stop
            if self.spec.evaluates_after(step - 1):
                for index, source in enumerate(self.spec.evaluations):
                    for first in range(0, source.rows, self.unit_rows * self.workers):
                        units += self._round(step=step - 1, stop=step, set=index, first=first)
        return units or self._round(step=start, stop=start, set=-1, first=0)  # Ray Data cannot stream nothing

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


class UnitMaker:
    """The actor: one unit in, one block of samples out."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.spec = layout, layout.spec
        self._open: dict[int, Samples] = {}

    def _samples(self, index: int) -> Samples:
        if index not in self._open:
            source = self.spec.evaluations[index] if index >= 0 else None
            data, pictures = self.spec.data, self.spec.pictures
            if source:
                data, pictures = (source.data,), replace(pictures, features=(source.features,) * bool(source.features))
            self._open[index] = Samples(data, pictures, self.spec.texts)
        return self._open[index]

    def make(self, unit: dict[str, int]) -> pa.Table:
        """The block of a unit, `layout.unit_rows` rows."""
        if unit["set"] >= 0:
            return self._evaluation(unit)
        plan, workers = self.spec.plan, self.layout.workers
        steps = range(unit["step"], unit["stop"])
        shares = [plan.share(step, unit["worker"], workers) for step in steps]
        missing = self.layout.unit_rows - len(shares) * self.layout.share
        rows = np.concatenate([*(rows for rows, _ in shares), np.full(missing, MASKED, dtype=np.int64)])
        epochs = np.concatenate([*(epochs for _, epochs in shares), np.zeros(missing, dtype=np.int64)])
        step = np.concatenate([np.repeat(np.asarray(steps), self.layout.share), np.full(missing, -1, dtype=np.int64)])
        return self._samples(-1).training(step, rows, epochs, self.spec.draws)

    def _evaluation(self, unit: dict[str, int]) -> pa.Table:
        source = self.spec.evaluations[unit["set"]]
        first = unit["first"] + unit["worker"] * self.layout.unit_rows
        rows = np.arange(first, first + self.layout.unit_rows, dtype=np.int64)
        rows[rows >= source.rows] = MASKED
        return self._samples(unit["set"]).evaluation(unit["step"], unit["set"], rows, source.view)

    def __call__(self, block: dict[str, Any]) -> pa.Table:
        """Ray Data's door: a block holds exactly one unit."""
        return self.make({name: int(values[0]) for name, values in block.items()})


def ray_dataset(layout: Layout, start: int, actors: int, cpus_per_actor: float) -> ray.data.Dataset:
    """The run's stream from step `start` on, one block a unit."""
    import ray.data
    from ray.data import ActorPoolStrategy, DataContext

    context = DataContext.get_current()
    context.execution_options.preserve_order = True  # where this dataset is read without Ray Train
    context.enable_progress_bars = False
    units = layout.units(start)
    return ray.data.from_items(units, override_num_blocks=len(units)).map_batches(
        UnitMaker,
        fn_constructor_args=(layout,),
        batch_size=None,
        compute=ActorPoolStrategy(size=actors),
        num_cpus=cpus_per_actor,
    )


class Stream:
    """A worker's end of the stream: its batches in order, each one checked to be the one that was asked for."""

    def __init__(self, layout: Layout, tables: Iterator[pa.Table]) -> None:
        self.layout, self._tables = layout, tables

    @staticmethod
    def local(layout: Layout, worker: int, start: int) -> Stream:
        """The same batches made in this process, without Ray: for tests, dry runs and bare loops."""
        maker = UnitMaker(layout)

        def tables() -> Iterator[pa.Table]:
            for unit in layout.units(start):
                if unit["worker"] == worker:
                    block = maker.make(unit)
                    for first in range(0, block.num_rows, layout.share):
                        yield block.slice(first, layout.share)

        return Stream(layout, tables())

    @staticmethod
    def ray(layout: Layout, shard: Any) -> Stream:
        """The batches of a Ray Train dataset shard."""
        batches = shard.iter_batches(batch_size=layout.share, batch_format="pyarrow", prefetch_batches=2)
        return Stream(layout, _started(iter(batches)))

    def training(self, step: int) -> Batch:
        """This worker's share of global batch `step`."""
        from cornerstone.data.batches import training_batch

        table = self._next()
        while table["step"][0].as_py() < 0:  # filler behind a short unit
            table = self._next()
        self._check(table, step, evaluation=False)
        return training_batch(table)

    def evaluation(self, step: int) -> Iterator[EvaluationBatch]:
        """This worker's share of the evaluation after `step`, set by set; batches without a usable row included."""
        from cornerstone.data.batches import evaluation_batch

        done = 0
        while done < self.layout.evaluation_batches():
            table = self._next()
            if table["step"][0].as_py() < 0:
                continue
            self._check(table, step, evaluation=True)
            done += 1
            yield evaluation_batch(table)

    def _next(self) -> pa.Table:
        table = next(self._tables, None)
        if table is None:
            raise CornerstoneError("The stream ended before the run did: see the log of the decode actors above.")
        return table

    def _check(self, table: pa.Table, step: int, evaluation: bool) -> None:
        """Refuse another step's rows: going on would silently train on other data than planned."""
        found, is_evaluation = table["step"][0].as_py(), table["set"][0].as_py() >= 0
        if found != step or is_evaluation != evaluation:
            wanted = f"{'evaluation' if evaluation else 'training'} rows of step {step}"
            got = f"{'evaluation' if is_evaluation else 'training'} rows of step {found}"
            raise CornerstoneError(
                f"The stream is out of step: expected {wanted}, got {got}. Resume from the last checkpoint."
            )


def _started(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same iterator, whose first element is fetched from now on: Ray Data starts its actors when it is first asked."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="first-batch")
    first = pool.submit(next, tables, None)
    pool.shutdown(wait=False)

    def begin() -> Iterator[pa.Table]:
        table = first.result()
        if table is not None:
            yield table
            yield from tables

    return begin()
