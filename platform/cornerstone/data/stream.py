"""A worker's end of the stream: its batches in order, each one checked to be the one that was asked for.

Evaluations ride in the same stream, at the steps where they fall due: no second execution has to wait for a free CPU, and
their first batch is ready when the last training batch has been used.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cornerstone.data.layout import Layout
from cornerstone.data.pairs.samples import Samples
from cornerstone.data.plan import MASKED
from cornerstone.errors import CornerstoneError

if TYPE_CHECKING:
    from cornerstone.data.batches import Batch, EvaluationBatch, SequenceBatch
    from cornerstone.data.documents import PackedSequences


class UnitMaker:
    """One unit in, one block of samples out. A decode actor holds one, and so does a bare loop."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.spec = layout, layout.spec
        self._open: dict[int, Samples] = {}

    @cached_property
    def _sequences(self) -> PackedSequences | None:
        spec = self.spec
        return spec.packed.open(spec.data, spec.pictures.transform) if spec.packed is not None else None

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
        if self._sequences is not None:
            return _of_training(step, self._sequences.take(rows, epochs, self.spec.draws.seed))
        return self._samples(-1).training(step, rows, epochs, self.spec.draws)

    def _evaluation(self, unit: dict[str, int]) -> pa.Table:
        source = self.spec.evaluations[unit["set"]]
        first = unit["first"] + unit["worker"] * self.layout.unit_rows
        rows = np.arange(first, first + self.layout.unit_rows, dtype=np.int64)
        rows[rows >= source.rows] = MASKED
        return self._samples(unit["set"]).evaluation(unit["step"], unit["set"], rows, source.view)


def _of_training(step: npt.NDArray[np.int64], table: pa.Table) -> pa.Table:
    """Packed sequences as a block of training rows."""
    sets = np.full(len(step), -1, dtype=np.int32)
    return table.add_column(0, "step", pa.array(step)).add_column(1, "set", pa.array(sets))


class Arrival:
    """When the first block came, in seconds from when this was made."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self.seconds: float | None = None

    def __call__(self, block: object) -> None:
        """It is there."""
        self.seconds = time.perf_counter() - self._begun


class Blocks(Protocol):
    """What gives a worker's blocks in order, and can be ended early."""

    def __iter__(self) -> Iterator[pa.Table]:
        """The blocks."""
        ...

    def close(self) -> None:
        """No more of them."""
        ...


def _steps(blocks: Blocks, share: int) -> Iterator[pa.Table]:
    """The rows of each step, from blocks that hold several."""
    for block in blocks:
        for first in range(0, block.num_rows, share):
            yield block.slice(first, share)


class Stream:
    """A worker's batches, from the blocks of its units."""

    def __init__(self, layout: Layout, blocks: Blocks, arrival: Arrival | None = None) -> None:
        self.layout, self._blocks, self._arrival = layout, blocks, arrival
        self._tables = _steps(blocks, layout.share)

    @property
    def seconds_to_first_batch(self) -> float | None:
        """From the stream's start to its first block here; None before, and where nobody has looked at the clock."""
        return self._arrival.seconds if self._arrival is not None else None

    def close(self) -> None:
        """End it early, so that what makes it stops and frees its processors."""
        self._blocks.close()

    @staticmethod
    def local(layout: Layout, worker: int, start: int) -> Stream:
        """The batches from step `start` on, made in this process without Ray: for tests, dry runs and bare loops."""
        maker = UnitMaker(layout)
        rounds = layout.rounds(start, layout.spec.steps)
        return Stream(layout, (maker.make(units[worker]) for units in rounds))

    def training(self, step: int) -> Batch:
        """This worker's share of global batch `step`, of pairs."""
        from cornerstone.data.batches import training_batch

        return training_batch(self._training(step))

    def sequences(self, step: int) -> SequenceBatch:
        """This worker's share of global batch `step`, of packed sequences."""
        from cornerstone.data.batches import sequence_batch

        return sequence_batch(self._training(step))

    def _training(self, step: int) -> pa.Table:
        table = self._next()
        while table["step"][0].as_py() < 0:  # filler behind a short unit
            table = self._next()
        self._check(table, step, evaluation=False)
        return table

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
