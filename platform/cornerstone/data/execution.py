"""The stream as Ray Data executes it: units through decode actors, in order, to the Train workers.

A source yields the units of a segment one by one, an actor makes each of them into one row that holds a whole block, and
rows are never joined or cut: with ordered execution, row i reaches worker i mod n. Two data sets take turns, so that the
next segment starts its actors while the last units of the one before are used; each execution of a data set is its next
segment.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ray.data import ActorPoolStrategy, DataContext, Datasource, ExecutionOptions, ExecutionResources, TaskPoolStrategy
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from cornerstone.data.layout import Layout
from cornerstone.data.stream import Arrival, Stream, UnitMaker

if TYPE_CHECKING:
    import ray.data

NAMES = ("stream-0", "stream-1")
"""The data sets that take turns."""
TASK_UNITS = 1000  # a task of the source yields so many
LOOK_EVERY = 0.02  # seconds
AHEAD = 0.05  # share of a segment that is left when the next one is started


class _Unhurried(ExecutionCallback):
    """A pause between the executor's looks at its tasks. Ray Data waits for a task to have something ready; while what lies
    ready has no room, its source always has, and the executor would look without a pause: 0.7 of a core, measured.
    """

    def __init__(self) -> None:
        self._last = 0.0

    def on_execution_step(self, executor: Any) -> None:
        """Called after each look."""
        time.sleep(max(self._last + LOOK_EVERY - time.monotonic(), 0.0))
        self._last = time.monotonic()


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


def warm_up() -> None:
    """Execute a data set of one number. Ray Data's first execution starts its helper actors, which every later one finds, and
    leaves a worker process that has imported it: 0.7 s of the time to the first batch on two cores.
    """
    import ray.data

    DataContext.get_current().enable_progress_bars = False
    ray.data.from_items([0]).map_batches(lambda rows: rows, num_cpus=0).materialize()


class _Actor:
    """Makes units. The block is one value of one row, which Ray Data neither joins with others nor cuts."""

    def __init__(self, layout: Layout) -> None:
        self._maker = UnitMaker(layout)

    def __call__(self, rows: dict[str, Any]) -> pa.Table:
        """Ray Data's door: one unit at a time."""
        block = self._maker.make({name: int(values[0]) for name, values in rows.items()})
        data = _serialized(block)
        offsets = pa.array([0, data.size], pa.int64()).buffers()[1]
        return pa.table({"block": pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, data])})


def _serialized(block: pa.Table) -> pa.Buffer:
    """Arrow's stream format, copied once: its length is found first."""
    counted = pa.MockOutputStream()
    _write(block, counted)
    data = pa.allocate_buffer(counted.size())
    _write(block, pa.FixedSizeBufferWriter(data))
    return data


def _read(blocks: pa.ChunkedArray) -> pa.Table:
    """The block that is one value of one row, where it lies: taking the value would copy it."""
    (held,) = blocks.chunks
    _, offsets, data = held.buffers()
    first, end = np.frombuffer(offsets, np.int64)[held.offset : held.offset + 2].tolist()
    return pa.ipc.open_stream(data.slice(first, end - first)).read_all()


def _write(block: pa.Table, sink: Any) -> None:
    with pa.ipc.new_stream(sink, block.schema) as writer:
        writer.write_table(block)


def execution_options(layout: Layout) -> ExecutionOptions:
    """What Ray Data must heed: order, which decides the rows that a step sees, and a bound on what lies ready.

    Ray Train copies these options over a data set's own, and must be given them too.
    """
    limits = ExecutionResources(object_store_memory=layout.ahead_bytes)
    return ExecutionOptions(preserve_order=True, resource_limits=limits)


def ray_datasets(
    layout: Layout, start: Callable[[], int], actors: int, cpus_per_actor: float
) -> dict[str, ray.data.Dataset | Callable[[], ray.data.Dataset]]:
    """The run's stream from step `start()` on, for Ray Train, which asks anew whenever it starts its workers."""

    def build(turn: int) -> ray.data.Dataset:
        import ray.data

        context = DataContext.get_current()
        context.execution_options = execution_options(layout)  # where this is read without Ray Train
        context.custom_execution_callback_classes = [_Unhurried]
        context.enable_progress_bars = False
        context.target_max_block_size = 1  # a row is a block
        context.memory_usage_poll_interval_s = None  # walking an actor's memory each second costs it 3 % of its time
        segments = layout.segments(start())[turn :: len(names)]
        return ray.data.read_datasource(
            _Units(layout, segments), num_cpus=0, compute=TaskPoolStrategy(1), override_num_blocks=1
        ).map_batches(
            _Actor,
            fn_constructor_args=(layout,),
            batch_size=None,
            compute=ActorPoolStrategy(size=actors),
            num_cpus=cpus_per_actor,
        )

    names = _names(layout)
    return {name: partial(build, turn) for turn, name in enumerate(names)}


def _names(layout: Layout) -> tuple[str, ...]:
    """The data sets of a run: a single one where no start of it has a second segment, since each costs a process."""
    return NAMES[: len(layout.segments(0))]


def ray_stream(layout: Layout, start: int, shard: Callable[[str], Any]) -> Stream:
    """A worker's stream from step `start` on; `shard` gives its part of a data set by name. The first segment starts now."""
    chain, arrival = _Chain(layout, start, shard), Arrival()
    chain.first.add_done_callback(arrival)
    return Stream(layout, chain, arrival)


class _Chain:
    """The blocks of all segments, one after another."""

    def __init__(self, layout: Layout, start: int, shard: Callable[[str], Any]) -> None:
        self._segments, self._shard = layout.segments(start), shard
        self._turns = itertools.cycle(_names(layout))
        self._begun = [self._begin()]
        self.first = self._begun[0].first

    def _begin(self) -> _Ahead:
        # Ray Data's own prefetching would wait for a second block before it gives the first one.
        rows = self._shard(next(self._turns)).iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0)
        return _Ahead(iter(rows))

    def __iter__(self) -> Iterator[pa.Table]:
        for number, (first, stop) in enumerate(self._segments):
            waiting = number + 1 < len(self._segments)
            for row in self._begun[0]:
                block = _read(row["block"])
                if waiting and pc.max(block["step"]).as_py() + 1 >= stop - AHEAD * (stop - first):
                    self._begun.append(self._begin())
                    waiting = False
                yield block
            if not waiting and number + 1 < len(self._segments):
                del self._begun[0]

    def close(self) -> None:
        """End what runs, and what was begun: Ray Data stops its actors when nobody asks any more."""
        for rows in self._begun:
            rows.close()


class _Ahead(Iterator[pa.Table]):
    """The rows of one execution, each fetched by a thread while the one before is used; `first` is on its way from now on."""

    def __init__(self, rows: Generator[pa.Table]) -> None:
        self._rows, self._pool = rows, ThreadPoolExecutor(1, thread_name_prefix="next-block")
        self.first = self._coming = self._pool.submit(next, rows, None)

    def __next__(self) -> pa.Table:
        row = self._coming.result()
        if row is None:
            self.close()
            raise StopIteration
        self._coming = self._pool.submit(next, self._rows, None)
        return row

    def close(self) -> None:
        """Wait for what is being fetched, and fetch no more."""
        self._pool.shutdown(wait=True)
        self._rows.close()
