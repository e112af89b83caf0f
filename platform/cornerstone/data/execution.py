"""The stream as Ray Data executes it: units through decode actors, in order, to the Train workers.

A source yields the units of a segment one by one, an actor makes each of them into one row that holds a whole block, and
rows are never joined or cut: with ordered execution, row i reaches worker i mod n. Two data sets take turns, so that the
next segment starts its actors while the last units of the one before are used; each execution of a data set is its next
segment.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from ray.data import ActorPoolStrategy, DataContext, Datasource, TaskPoolStrategy
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from cornerstone.data.layout import Layout
from cornerstone.data.stream import Stream, UnitMaker

if TYPE_CHECKING:
    import ray.data

NAMES = ("stream-0", "stream-1")
"""The data sets that take turns."""
TASK_UNITS = 1000  # a task of the source yields so many
AHEAD = 0.05  # share of a segment that is left when the next one is started


class _Units(Datasource):
    """The units of every second segment, one a row."""

    def __init__(self, layout: Layout, segments: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.layout, self.segments, self.executions = layout, segments, 0

    def estimate_inmemory_data_size(self) -> int | None:
        """Next to nothing."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """The tasks of the segment that is due. Ray Data also asks while it plans, and then gives no context."""
        if data_context is None:
            return []
        start, stop = self.segments[self.executions]
        self.executions += 1
        rounds = self.layout.rounds(start, stop)
        size = max(TASK_UNITS // self.layout.workers, 1)
        tasks = iter(lambda: [unit for units in itertools.islice(rounds, size) for unit in units], [])
        return [ReadTask(partial(_rows, units), BlockMetadata(len(units), None, None, None)) for units in tasks]


def _rows(units: list[dict[str, int]]) -> Iterator[pa.Table]:
    return (pa.Table.from_pylist([unit]) for unit in units)


class _Actor:
    """Makes units. The block is one value of one row, which Ray Data neither joins with others nor cuts."""

    def __init__(self, layout: Layout) -> None:
        self._maker = UnitMaker(layout)

    def __call__(self, rows: dict[str, Any]) -> pa.Table:
        """Ray Data's door: one unit at a time."""
        block = self._maker.make({name: int(values[0]) for name, values in rows.items()})
        stream = pa.BufferOutputStream()
        with pa.ipc.new_stream(stream, block.schema) as writer:
            writer.write_table(block)
        data = stream.getvalue()
        offsets = pa.array([0, data.size], pa.int64()).buffers()[1]
        return pa.table({"block": pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, data])})


def ray_datasets(
    layout: Layout, start: Callable[[], int], actors: int, cpus_per_actor: float
) -> dict[str, ray.data.Dataset | Callable[[], ray.data.Dataset]]:
    """The run's stream from step `start()` on, for Ray Train, which asks anew whenever it starts its workers."""

    def build(turn: int) -> ray.data.Dataset:
        import ray.data

        context = DataContext.get_current()
        context.execution_options.preserve_order = True  # where this is read without Ray Train
        context.enable_progress_bars = False
        context.target_max_block_size = 1  # a row is a block
        segments = layout.segments(start())[turn :: len(NAMES)]
        return ray.data.read_datasource(
            _Units(layout, segments), num_cpus=0, compute=TaskPoolStrategy(1), override_num_blocks=1
        ).map_batches(
            _Actor,
            fn_constructor_args=(layout,),
            batch_size=None,
            compute=ActorPoolStrategy(size=actors),
            num_cpus=cpus_per_actor,
        )

    return {name: partial(build, turn) for turn, name in enumerate(NAMES)}


def ray_stream(layout: Layout, start: int, shard: Callable[[str], Any]) -> Stream:
    """A worker's stream from step `start` on; `shard` gives its part of a data set by name. The first segment starts now."""
    return Stream(layout, _chained(layout, start, shard))


def _chained(layout: Layout, start: int, shard: Callable[[str], Any]) -> Iterator[pa.Table]:
    """The blocks of all segments, one after another."""
    turns = itertools.cycle(NAMES)
    segments = layout.segments(start)

    def begin() -> Iterator[pa.Table]:
        rows = shard(next(turns)).iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=2)
        return _started(iter(rows))

    ahead = begin()

    def blocks() -> Iterator[pa.Table]:
        nonlocal ahead
        for number, (first, stop) in enumerate(segments):
            rows, waiting = ahead, number + 1 < len(segments)
            for row in rows:
                block = pa.ipc.open_stream(row["block"][0].as_buffer()).read_all()
                if waiting and pc.max(block["step"]).as_py() + 1 >= stop - AHEAD * (stop - first):
                    ahead, waiting = begin(), False
                yield block

    return blocks()


def _started(rows: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same iterator, whose first element is fetched from now on: Ray Data starts its actors when it is first asked."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="first-block")
    first = pool.submit(next, rows, None)
    pool.shutdown(wait=False)

    def begin() -> Iterator[pa.Table]:
        row = first.result()
        if row is not None:
            yield row
            yield from rows

    return begin()
