"""A worker's end of the stream: its batches in order, each one checked to hold the rows that were asked for.

Evaluation rows are sent in the same stream, at the steps after which they are due: no second execution has to wait for a
free CPU, and their first block is ready when the last training batch has been used.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from cornerstone.data.layout import Layout, Unit
from cornerstone.data.source import Rows
from cornerstone.errors import CornerstoneError

if TYPE_CHECKING:
    from cornerstone.data.batch import Batch

_UNIT = b"unit"


class UnitMaker:
    """One unit in, one block out. A decode actor holds one, and so does a loop without Ray."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.spec = layout, layout.spec
        self._opened: dict[int | None, Rows] = {}

    def make(self, unit: Unit) -> pa.Table:
        """The block of a unit; it says of which one in its schema's metadata."""
        table = self._rows(unit.evaluation).take(*self._places(unit))
        return table.replace_schema_metadata({_UNIT: json.dumps(asdict(unit)).encode()})

    def _rows(self, evaluation: int | None) -> Rows:
        if evaluation not in self._opened:
            source = self.spec.train if evaluation is None else self.spec.evaluations[evaluation]
            self._opened[evaluation] = source.open()
        return self._opened[evaluation]

    def _places(self, unit: Unit) -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.int64]]]:
        """Row ids and epochs of a unit's rows."""
        if unit.evaluation is not None:
            rows = np.arange(unit.first, unit.first + unit.rows, dtype=np.int64)
            return rows, np.zeros_like(rows)
        empty = np.zeros(0, dtype=np.int64)
        planned = [
            self.spec.plan.share(step, unit.worker, self.layout.workers, unit.first, unit.rows)
            for step in range(unit.step, unit.stop)
        ]
        return np.concatenate([empty, *(r for r, _ in planned)]), np.concatenate([empty, *(e for _, e in planned)])


def unit_of(block: pa.Table) -> Unit:
    """The unit that a block holds."""
    return Unit(**json.loads(block.schema.metadata[_UNIT]))


class Arrival:
    """When the first block arrived, in seconds from when this was made."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self.seconds: float | None = None

    def __call__(self, block: object) -> None:
        """The first block has arrived."""
        self.seconds = time.perf_counter() - self._begun


class Blocks(Protocol):
    """A worker's blocks in order."""

    def __iter__(self) -> Iterator[pa.Table]:
        """The blocks."""
        ...


class _Piece(NamedTuple):
    """The rows of one step in one block."""

    unit: Unit
    step: int
    table: pa.Table


def _pieces(blocks: Blocks) -> Iterator[_Piece]:
    for block in blocks:
        unit = unit_of(block)
        if unit.evaluation is not None:
            yield _Piece(unit, unit.step, block)
            continue
        for number, step in enumerate(range(unit.step, unit.stop)):
            yield _Piece(unit, step, block.slice(number * unit.rows, unit.rows))


class Stream:
    """A worker's batches, from the blocks of its units."""

    def __init__(self, layout: Layout, blocks: Blocks, arrival: Arrival | None = None) -> None:
        self.layout, self._arrival = layout, arrival
        self._pieces = _pieces(blocks)
        self._worker: int | None = None  # whose rows these are, by the first block

    @property
    def seconds_to_first_block(self) -> float | None:
        """From the stream's start to its first block here; None before, and if nobody measured it."""
        return self._arrival.seconds if self._arrival is not None else None

    @staticmethod
    def local(layout: Layout, worker: int, start: int) -> Stream:
        """The batches from step `start` on, made in this process without Ray: for tests, dry runs and bare loops."""
        maker = UnitMaker(layout)
        rounds = layout.rounds(start, layout.spec.steps)
        return Stream(layout, (maker.make(units[worker]) for units in rounds))

    def batch(self, step: int) -> Batch:
        """This worker's share of global batch `step`."""
        tables = []
        for first, _ in self.layout.parts:
            piece = self._next()
            if piece.unit.evaluation is not None or (piece.step, piece.unit.first) != (step, first):
                raise self._out_of_step(f"training rows of step {step} from place {first} on", piece)
            tables.append(piece.table)
        batch: Batch = self.layout.spec.train.batch(step, pa.concat_tables(tables) if len(tables) > 1 else tables[0])
        return batch

    def evaluation(self, step: int) -> Iterator[tuple[int, Batch]]:
        """This worker's share of the evaluation after `step`: the place of a set and some of its rows, set by set."""
        for units in self.layout.evaluation_rounds(step):
            piece = self._next()
            wanted = units[piece.unit.worker]
            if piece.unit != wanted or wanted.evaluation is None:
                raise self._out_of_step(
                    f"rows of set {wanted.evaluation} from row {wanted.first} on after step {step}", piece
                )
            yield wanted.evaluation, self.layout.spec.evaluations[wanted.evaluation].batch(step, piece.table)

    def _next(self) -> _Piece:
        piece = next(self._pieces, None)
        if piece is None:
            raise CornerstoneError("The stream ended before the run did: see the log of the decode actors above.")
        if self._worker is None:
            self._worker = piece.unit.worker
        if piece.unit.worker != self._worker:
            raise self._out_of_step(f"rows of worker {self._worker}", piece)
        return piece

    def _out_of_step(self, wanted: str, piece: _Piece) -> CornerstoneError:
        """Training on other rows than planned would go unnoticed: refuse them."""
        kind = "training rows" if piece.unit.evaluation is None else f"rows of evaluation set {piece.unit.evaluation}"
        got = f"{kind} of step {piece.step} from place {piece.unit.first} on, of worker {piece.unit.worker}"
        return CornerstoneError(
            f"The stream is out of step: expected {wanted}, got {got}. Resume from the last checkpoint."
        )
