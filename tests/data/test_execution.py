"""The stream through Ray Data: the same batches as without it, over the edges of segments, for several workers."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from cornerstone.data import execution
from cornerstone.data.batches import training_batch
from cornerstone.data.execution import NAMES, _Actor, _Ahead, _read, execution_options, ray_datasets, ray_stream
from cornerstone.data.images import Transform
from cornerstone.data.layout import LARGEST_UNIT, UNIT_BYTES, EvaluationSource, Layout, StreamSpec
from cornerstone.data.mixture import Mixture
from cornerstone.data.pairs.samples import Draws, Pictures, Texts
from cornerstone.data.pairs.views import Wanted
from cornerstone.data.plan import Plan
from cornerstone.data.stream import Stream
from cornerstone.errors import CornerstoneError

STEPS, EVERY, BATCH = 40, 15, 7


@pytest.fixture(scope="module")
def spec(pairs_folder, wordpiece) -> StreamSpec:
    return StreamSpec(
        data=(pairs_folder,),
        plan=Plan(Mixture.open(pairs_folder).parts, BATCH, seed=4),
        draws=Draws(4, sub_captions=2),
        pictures=Pictures(Transform(8, crop_scale=(0.5, 1.0))),
        texts=Texts(wordpiece.read_text(), 32, corners=2),
        steps=STEPS,
        evaluations=(EvaluationSource("long", pairs_folder, 50, (Wanted("long"),)),),
        every=EVERY,
    )


def seen(stream: Stream, start: int) -> list[tuple]:
    """All that a worker's loop gets, in its order."""
    found = []
    for step in range(start, stream.layout.spec.steps):
        batch = stream.training(step)
        found.append((step, batch.row.tolist(), batch.long_ids.tolist(), batch.image.tolist()))
        if stream.layout.spec.evaluates_after(step):
            found += [(step, batch.set, batch.row.tolist()) for batch in stream.evaluation(step)]
    with pytest.raises(CornerstoneError, match="ended before the run did"):
        stream.training(stream.layout.spec.steps)
    return found


@pytest.mark.parametrize(("workers", "start", "segments"), [(1, 0, 7), (2, 3, 7), (3, 17, 4), (2, 36, 1)])
def test_segments_follow_each_other_as_if_there_were_none(ray_cluster, spec, workers, start, segments):
    """Units of 2 steps, segments of 3 rounds: each data set runs several times; a start in the last one leaves one idle."""
    layout = Layout(spec, workers, segment_units=3 * workers)
    assert len(layout.segments(start)) == segments
    datasets = ray_datasets(layout, lambda: start, actors=2, cpus_per_actor=0.25)
    shards = {name: build().streaming_split(workers, equal=True) for name, build in datasets.items()}

    def work(worker: int) -> list[tuple]:
        return seen(ray_stream(layout, start, lambda name: shards[name][worker]), start)

    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(work, range(workers)))
    assert found == [seen(Stream.local(layout, worker, start), start) for worker in range(workers)]


def units(step: int) -> dict[str, np.ndarray]:
    """A unit as Ray Data hands it to an actor."""
    unit = {"step": step, "stop": step + 1, "set": -1, "first": 0, "worker": 0}
    return {name: np.array([value]) for name, value in unit.items()}


def test_a_run_of_one_segment_is_one_data_set(spec):
    """Each costs a process, which a short run waits for."""
    layout = Layout(spec, 1)
    assert len(layout.segments(0)) == 1
    assert list(ray_datasets(layout, lambda: 0, actors=1, cpus_per_actor=0.25)) == [NAMES[0]]


def test_a_block_is_read_where_it_lies(spec):
    actor = _Actor(Layout(spec, 1))
    column = pa.concat_tables([actor(units(0)), actor(units(1))]).combine_chunks()["block"].slice(1)
    block = _read(column)  # the second one of a longer column
    assert block["step"].to_pylist()[:BATCH] == [1] * BATCH
    held = column.chunk(0).buffers()[2]
    image = training_batch(block.slice(0, BATCH)).image
    assert image is not None
    assert held.address < image.data_ptr() < held.address + held.size  # to the batch without a copy


def test_the_next_block_is_fetched_while_one_is_used():
    asked, given = [], threading.Semaphore(0)

    def rows():
        for n in range(3):
            asked.append(n)
            given.release()
            yield n

    fetched = _Ahead(rows())
    assert given.acquire(timeout=10)
    assert fetched.first.result() == 0
    assert next(fetched) == 0
    assert given.acquire(timeout=10)  # the second one, which nobody has asked for
    assert asked == [0, 1]
    assert list(fetched) == [1, 2]


def test_the_executor_does_not_look_without_a_pause(spec, monkeypatch):
    clock, slept = [100.0], []
    monkeypatch.setattr(execution.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(execution.time, "sleep", slept.append)
    unhurried = execution._Unhurried()
    for later in (0.0, 0.005, 0.5):
        clock[0] += later
        unhurried.on_execution_step(None)
    assert slept == [0.0, pytest.approx(execution.LOOK_EVERY - 0.005), 0.0]
    (build,) = ray_datasets(Layout(spec, 1), lambda: 0, actors=1, cpus_per_actor=0.25).values()
    assert build().context.custom_execution_callback_classes == [execution._Unhurried]


@pytest.mark.parametrize("used", [True, False], ids=["after a batch", "before its first one"])
def test_a_stream_that_is_closed_frees_its_processors(ray_cluster, spec, used):
    """The next one needs them."""
    layout = Layout(replace(spec, steps=100_000, evaluations=()), 1)

    def first_batch() -> list[int]:
        datasets = ray_datasets(layout, lambda: 0, actors=2, cpus_per_actor=0.9)
        shards = {name: build().streaming_split(1, equal=True)[0] for name, build in datasets.items()}
        stream = ray_stream(layout, 0, shards.__getitem__)
        rows = stream.training(0).row.tolist() if used else spec.plan.batch(0)[0].tolist()
        stream.close()
        return rows

    assert first_batch() == first_batch() == spec.plan.batch(0)[0].tolist()


def test_a_run_with_nothing_left_has_an_empty_stream(ray_cluster, spec):
    layout = Layout(spec, 1)
    datasets = ray_datasets(layout, lambda: STEPS, actors=1, cpus_per_actor=0.25)
    shards = {name: build().streaming_split(1, equal=True)[0] for name, build in datasets.items()}
    assert seen(ray_stream(layout, STEPS, shards.__getitem__), STEPS) == []


def test_units_grow_with_the_workers_that_one_executor_serves(spec):
    spec = replace(
        spec, pictures=Pictures(Transform(224)), plan=replace(spec.plan, batch_size=14), steps=10**6, every=0
    )
    sizes = {workers: Layout(spec, workers).unit_rows * 3 * 224 * 224 for workers in (1, 64, 1024)}
    assert 14e6 < sizes[1] <= UNIT_BYTES
    assert 60e6 < sizes[64] <= 64 << 20
    assert 90e6 < sizes[1024] <= LARGEST_UNIT


def test_what_lies_ready_is_bounded(spec):
    """A worker's 16 units, or half a gigabyte where they are small."""
    small, large = Layout(spec, 1), Layout(replace(spec, pictures=Pictures(Transform(224))), 512)
    assert execution_options(small).resource_limits.object_store_memory == 512 << 20
    assert execution_options(large).resource_limits.object_store_memory == 16 * 512 * large.unit_rows * 3 * 224 * 224
    assert execution_options(small).preserve_order
