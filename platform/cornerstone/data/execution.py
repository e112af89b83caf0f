"""The stream as Ray Data executes it: units through decode actors, in order, to the Train workers.

A Ray data source yields the units of an execution one by one, a decode actor turns each into one row that holds a whole
block, and Ray Data never joins or cuts rows: with ordered execution, row i reaches worker i mod n. Two data sets take turns,
so that the next execution starts its actors while the last units of the one before are being used.
"""

from __future__ import annotations

import itertools
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from ray.data import ActorPoolStrategy, DataContext, Datasource, ExecutionOptions, ExecutionResources, TaskPoolStrategy
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from cornerstone.data.layout import Layout, Unit
from cornerstone.data.stream import Arrival, Stream, UnitMaker, unit_of

if TYPE_CHECKING:
    import ray.data

NAMES = ("stream-0", "stream-1")
"""The data sets that take turns."""
UNITS_PER_TASK = 1000
"""Units that one task of the source yields."""
POLL_INTERVAL = 0.02  # seconds
START_AHEAD = 0.05
"""Share of an execution that is left when the next one is started."""


class _PollLimit(ExecutionCallback):
    """Limits how often Ray Data's scheduling loop polls its tasks.

    Under back-pressure the source's task is always ready, so the loop would busy-wait: 0.7 of a core, measured. The callback
    is private to Ray Data; it has no public setting for the interval.
    """

    def __init__(self) -> None:
        self._last = 0.0

    def on_execution_step(self, executor: Any) -> None:
        """Called by the loop after each poll."""
        time.sleep(max(self._last + POLL_INTERVAL - time.monotonic(), 0.0))
        self._last = time.monotonic()


class _Units(Datasource):
    """The units of some executions, one a row; each time it is executed it gives the next one's."""

    def __init__(self, layout: Layout, executions: Sequence[tuple[int, int]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layout, self.steps, self.executed = layout, executions, 0

    def estimate_inmemory_data_size(self) -> int | None:
        """Next to nothing."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """The tasks of the execution that is due. Ray Data also asks while it plans, and then gives no context."""
        if data_context is None:
            return []
        start, stop = self.steps[self.executed]
        self.executed += 1
        rounds = self.layout.rounds(start, stop)
        size = max(UNITS_PER_TASK // self.layout.workers, 1)
        tasks = iter(lambda: [unit for units in itertools.islice(rounds, size) for unit in units], [])
        return [ReadTask(partial(_rows, units), BlockMetadata(len(units), None, None, None)) for units in tasks]


def _rows(units: list[Unit]) -> Iterator[pa.Table]:
    return (pa.table({"unit": [pickle.dumps(unit)]}) for unit in units)


def warm_up() -> None:
    """Execute a data set of one number.

    Ray Data's first execution starts helper actors that later ones reuse, and leaves a worker process that has imported Ray
    Data: this takes 0.7 s off the time to the first batch on two cores.
    """
    import ray.data

    DataContext.get_current().enable_progress_bars = False
    ray.data.from_items([0]).map_batches(lambda rows: rows, num_cpus=0).materialize()


class _Actor:
    """A decode actor. Its block is one value of one row, which Ray Data neither joins with others nor cuts."""

    def __init__(self, layout: Layout) -> None:
        self._maker = UnitMaker(layout)

    def __call__(self, rows: dict[str, Any]) -> pa.Table:
        """Called by Ray Data, with one unit at a time."""
        block = self._maker.make(pickle.loads(rows["unit"][0]))
        data = _serialized(block)
        offsets = pa.array([0, data.size], pa.int64()).buffers()[1]
        return pa.table({"block": pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, data])})


def _serialized(block: pa.Table) -> pa.Buffer:
    """The block in Arrow's stream format. Its length is computed first, so that it is copied only once."""
    counted = pa.MockOutputStream()
    _write(block, counted)
    data = pa.allocate_buffer(counted.size())
    _write(block, pa.FixedSizeBufferWriter(data))
    return data


def _read(blocks: pa.ChunkedArray) -> pa.Table:
    """The block that is one value of one row, read in place: taking the value would copy it."""
    (held,) = blocks.chunks
    _, offsets, data = held.buffers()
    first, end = np.frombuffer(offsets, np.int64)[held.offset : held.offset + 2].tolist()
    return pa.ipc.open_stream(data.slice(first, end - first)).read_all()


def _write(block: pa.Table, sink: Any) -> None:
    with pa.ipc.new_stream(sink, block.schema) as writer:
        writer.write_table(block)


def execution_options(layout: Layout) -> ExecutionOptions:
    """Ordered execution, which decides the rows that a step sees, and a limit on the blocks that wait in the object store.

    Ray Train copies these options over a data set's own, so it must be given them too.
    """
    limits = ExecutionResources(object_store_memory=layout.bytes_ahead)
    return ExecutionOptions(preserve_order=True, resource_limits=limits)


def ray_datasets(
    layout: Layout,
    start: Callable[[], int],
    actors: int,
    cpus_per_actor: float,
    selector: Mapping[str, str] | None = None,
) -> dict[str, ray.data.Dataset | Callable[[], ray.data.Dataset]]:
    """The run's stream from step `start()` on. Ray Train calls these factories whenever it starts its workers.

    `selector` is Ray's label selector for the nodes of the decode actors; none for any node.
    """

    def build(turn: int) -> ray.data.Dataset:
        import ray.data

        context = DataContext.get_current()
        context.execution_options = execution_options(layout)  # for use without Ray Train
        context.custom_execution_callback_classes = [_PollLimit]
        context.enable_progress_bars = False
        context.target_max_block_size = 1  # a row is a block
        context.memory_usage_poll_interval_s = None  # polling an actor's memory each second costs it 3 % of its time
        executions = layout.executions(start())[turn :: len(names)]
        made: ray.data.Dataset = ray.data.read_datasource(
            _Units(layout, executions), num_cpus=0, compute=TaskPoolStrategy(1), override_num_blocks=1
        ).map_batches(
            _Actor,
            fn_constructor_args=(layout,),
            batch_size=None,
            compute=ActorPoolStrategy(size=actors),
            num_cpus=cpus_per_actor,
            label_selector=dict(selector) if selector else None,
        )
        return made

    names = _names(layout)
    return {name: partial(build, turn) for turn, name in enumerate(names)}


def _names(layout: Layout) -> tuple[str, ...]:
    """The data sets of a run: only one if the whole run is one execution, since each costs a process."""
    return NAMES[: len(layout.executions(0))]


def ray_stream(layout: Layout, start: int, shard: Callable[[str], Any]) -> Stream:
    """A worker's stream from step `start` on; `shard` gives its shard of a data set by name. The first execution starts now."""
    chain, arrival = _Chain(layout, start, shard), Arrival()
    chain.first.add_done_callback(arrival)
    return Stream(layout, chain, arrival)


class _Chain:
    """The blocks of all executions, one after another."""

    def __init__(self, layout: Layout, start: int, shard: Callable[[str], Any]) -> None:
        self._executions, self._shard = layout.executions(start), shard
        self._turns = itertools.cycle(_names(layout))
        self._begun = [self._begin()]
        self.first = self._begun[0].first

    def _begin(self) -> _Prefetched:
        # Ray Data's own prefetching would wait for a second block before it gives the first one.
        rows = self._shard(next(self._turns)).iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0)
        return _Prefetched(iter(rows))

    def __iter__(self) -> Iterator[pa.Table]:
        for number, (first, stop) in enumerate(self._executions):
            waiting = number + 1 < len(self._executions)
            for row in self._begun[0]:
                block = _read(row["block"])
                if waiting and unit_of(block).stop >= stop - START_AHEAD * (stop - first):
                    self._begun.append(self._begin())
                    waiting = False
                yield block
            if not waiting and number + 1 < len(self._executions):
                del self._begun[0]


class _Prefetched(Iterator[pa.Table]):
    """The rows of one execution, each fetched by a thread while the one before is used; the first is fetched at once."""

    def __init__(self, rows: Iterator[pa.Table]) -> None:
        self._rows, self._pool = rows, ThreadPoolExecutor(1, thread_name_prefix="next-block")
        self.first = self._next = self._pool.submit(next, rows, None)

    def __next__(self) -> pa.Table:
        row = self._next.result()
        if row is None:
            self._pool.shutdown(wait=True)
            raise StopIteration
        self._next = self._pool.submit(next, self._rows, None)
        return row
