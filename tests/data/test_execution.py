"""The stream through Ray Data: the same batches as without it, over the edges of executions, for several workers."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from sources import pair_evaluation, pair_source

from cornerstone.data import execution
from cornerstone.data.execution import NAMES, _Actor, _Prefetched, _read, execution_options, ray_datasets, ray_stream
from cornerstone.data.images import Transform
from cornerstone.data.layout import LARGEST_UNIT, UNIT_BYTES, Layout, StreamSpec, Unit
from cornerstone.data.pairs.image_input import DecodedImages
from cornerstone.data.plan import Plan
from cornerstone.data.stream import Stream
from cornerstone.errors import CornerstoneError

STEPS, EVERY, BATCH = 40, 15, 7


@pytest.fixture(scope="module")
def spec(pairs_folder, wordpiece) -> StreamSpec:
    tokenizer, transform = wordpiece.read_text(), Transform(8, crop_scale=(0.5, 1.0))
    train = pair_source(pairs_folder, tokenizer, transform, seed=4)
    evaluations = (pair_evaluation(pairs_folder, tokenizer, transform),)
    return StreamSpec(train, Plan(train.parts, BATCH, seed=4), STEPS, evaluations, every=EVERY)


def seen(stream: Stream, start: int) -> list[tuple]:
    """All that a worker's loop gets, in its order."""
    found = []
    for step in range(start, stream.layout.spec.steps):
        batch = stream.batch(step)
        found.append((step, batch.row.tolist(), batch.long_ids.tolist(), batch.image.tolist()))
        if stream.layout.spec.evaluates_after(step):
            found += [(step, place, batch.row.tolist()) for place, batch in stream.evaluation(step)]
    with pytest.raises(CornerstoneError, match="ended before the run did"):
        stream.batch(stream.layout.spec.steps)
    return found


@pytest.mark.parametrize(("workers", "start", "executions"), [(1, 0, 7), (2, 3, 7), (3, 17, 4), (2, 36, 1)])
def test_executions_follow_each_other_without_a_gap(ray_cluster, spec, workers, start, executions):
    """Units of 2 steps, executions of 3 rounds: each data set runs several times; a start in the last one leaves one idle."""
    layout = Layout(spec, workers, units_per_execution=3 * workers)
    assert len(layout.executions(start)) == executions
    datasets = ray_datasets(layout, lambda: start, actors=2, cpus_per_actor=0.25)
    shards = {name: build().streaming_split(workers, equal=True) for name, build in datasets.items()}

    def work(worker: int) -> list[tuple]:
        return seen(ray_stream(layout, start, lambda name: shards[name][worker]), start)

    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(work, range(workers)))
    assert found == [seen(Stream.local(layout, worker, start), start) for worker in range(workers)]


def given(step: int) -> dict[str, np.ndarray]:
    """A unit as Ray Data hands it to an actor."""
    return {"unit": np.array([pickle.dumps(Unit(0, step, step + 1, 0, BATCH))], dtype=object)}


def test_a_run_of_one_execution_is_one_data_set(spec):
    """Each costs a process, which a short run waits for."""
    layout = Layout(spec, 1)
    assert len(layout.executions(0)) == 1
    assert list(ray_datasets(layout, lambda: 0, actors=1, cpus_per_actor=0.25)) == [NAMES[0]]


def test_a_block_is_read_where_it_lies(spec):
    actor = _Actor(Layout(spec, 1))
    column = pa.concat_tables([actor(given(0)), actor(given(1))]).combine_chunks()["block"].slice(1)
    block = _read(column)  # the second one of a longer column
    assert block["row"].to_pylist() == spec.plan.batch(1)[0].tolist()
    held = column.chunk(0).buffers()[2]
    image = spec.train.batch(1, block).image
    assert held.address < image.data_ptr() < held.address + held.size  # to the batch without a copy


def test_the_next_block_is_fetched_while_one_is_used():
    asked, given = [], threading.Semaphore(0)

    def rows():
        for n in range(3):
            asked.append(n)
            given.release()
            yield n

    fetched = _Prefetched(rows())
    assert given.acquire(timeout=10)
    assert fetched.first.result() == 0
    assert next(fetched) == 0
    assert given.acquire(timeout=10)  # the second one, which nobody has asked for
    assert asked == [0, 1]
    assert list(fetched) == [1, 2]


def test_the_executor_does_not_busy_wait(spec, monkeypatch):
    clock, slept = [100.0], []
    monkeypatch.setattr(execution.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(execution.time, "sleep", slept.append)
    limit = execution._PollLimit()
    for later in (0.0, 0.005, 0.5):
        clock[0] += later
        limit.on_execution_step(None)
    assert slept == [0.0, pytest.approx(execution.POLL_INTERVAL - 0.005), 0.0]


def test_every_dataset_limits_polling(ray_cluster, spec):
    (build,) = ray_datasets(Layout(spec, 1), lambda: 0, actors=1, cpus_per_actor=0.25).values()
    assert build().context.custom_execution_callback_classes == [execution._PollLimit]


def test_a_run_with_nothing_left_has_an_empty_stream(ray_cluster, spec):
    layout = Layout(spec, 1)
    datasets = ray_datasets(layout, lambda: STEPS, actors=1, cpus_per_actor=0.25)
    shards = {name: build().streaming_split(1, equal=True)[0] for name, build in datasets.items()}
    assert seen(ray_stream(layout, STEPS, shards.__getitem__), STEPS) == []


def of_size(spec: StreamSpec, size: int, batch: int, workers: int) -> Layout:
    train = replace(spec.train, images=DecodedImages(Transform(size)))
    return Layout(replace(spec, train=train, plan=replace(spec.plan, batch_size=batch), steps=10**6, every=0), workers)


def test_units_grow_with_the_workers_that_one_executor_serves(spec):
    sizes = {}
    for workers in (1, 64, 1024):
        layout = of_size(spec, 224, 14, workers)
        sizes[workers] = layout.share * layout.steps_per_unit * 3 * 224 * 224
    assert 14e6 < sizes[1] <= UNIT_BYTES
    assert 60e6 < sizes[64] <= 64 << 20
    assert 90e6 < sizes[1024] <= LARGEST_UNIT


def test_what_lies_ready_is_bounded(spec):
    """A worker's 16 units, or half a gigabyte if they are small."""
    small, large = Layout(spec, 1), of_size(spec, 224, BATCH, 512)
    assert execution_options(small).resource_limits.object_store_memory == 512 << 20
    unit = large.share * large.steps_per_unit * 3 * 224 * 224
    assert execution_options(large).resource_limits.object_store_memory == 16 * 512 * unit
    assert execution_options(small).preserve_order
