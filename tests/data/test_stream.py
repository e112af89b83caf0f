from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sources import LONG, RAW, pair_evaluation, pair_source

from cornerstone.data.images import Transform
from cornerstone.data.layout import Layout, StreamSpec
from cornerstone.data.plan import Plan
from cornerstone.data.source import MASKED
from cornerstone.data.stream import Stream, UnitMaker, unit_of
from cornerstone.errors import CornerstoneError

STEPS, EVERY, BATCH = 27, 18, 7
"""A unit holds 3 steps (27 / 8, or 18 / 8, rounded up): evaluations after 18 steps, in between units, and at the end."""


@dataclass
class Seen:
    """What all workers together saw, a list a step, in the order of the workers."""

    rows: dict[int, list[int]] = field(default_factory=dict)
    drawn: dict[int, list[tuple]] = field(default_factory=dict)
    judged: dict[int, list[tuple[int, int]]] = field(default_factory=dict)


def run(spec: StreamSpec, workers: int, start: int = 0) -> Seen:
    """The loop's order of asking, on every worker."""
    layout, seen = Layout(spec, workers), Seen()
    streams = [Stream.local(layout, worker, start) for worker in range(workers)]
    for step in range(start, spec.steps):
        for stream in streams:
            batch = stream.batch(step)
            assert batch.step == step
            kept = [place for place, row in enumerate(batch.row.tolist()) if row != MASKED]
            seen.rows.setdefault(step, []).extend(batch.row[kept].tolist())
            seen.drawn.setdefault(step, []).extend(
                (
                    batch.epoch[place].item(),
                    batch.raw_ids[place, : batch.raw_length[place]].tolist(),
                    batch.long_ids[place, : batch.long_length[place]].tolist(),
                    batch.image[place].flatten().tolist(),
                )
                for place in kept
            )
        if spec.evaluates_after(step):
            for stream in streams:
                for place, batch in stream.evaluation(step):
                    seen.judged.setdefault(step, []).extend((place, row) for row in batch.row.tolist())
    return seen


@pytest.fixture(scope="module")
def spec(pairs_folder, wordpiece, tmp_path_factory, small_data) -> StreamSpec:
    """27 steps of 7 rows out of 50, two evaluation sets of 50 and 11 rows."""
    other = small_data.write(tmp_path_factory.mktemp("eval"), map(small_data.pair, range(60, 71)))
    tokenizer, transform = wordpiece.read_text(), Transform(8, crop_scale=(0.5, 1.0))
    train = pair_source(pairs_folder, tokenizer, transform, seed=4)
    return StreamSpec(
        train=train,
        plan=Plan(train.parts, BATCH, seed=4),
        steps=STEPS,
        evaluations=(
            pair_evaluation(pairs_folder, tokenizer, transform, LONG),
            pair_evaluation(other, tokenizer, transform, RAW),
        ),
        every=EVERY,
    )


@pytest.fixture(scope="module")
def alone(spec) -> Seen:
    """What one worker sees of the whole run."""
    return run(spec, 1)


def test_one_worker_sees_the_plan(spec, alone):
    assert alone.rows == {step: spec.plan.batch(step)[0].tolist() for step in range(STEPS)}
    assert {step: [epoch for epoch, *_ in drawn] for step, drawn in alone.drawn.items()} == {
        step: spec.plan.batch(step)[1].tolist() for step in range(STEPS)
    }


@pytest.mark.parametrize("workers", [2, 3])
def test_rows_and_draws_are_the_same_for_every_number_of_workers(spec, alone, workers):
    assert Layout(spec, workers).steps_per_unit == 3
    seen = run(spec, workers)
    assert seen.rows == alone.rows
    assert seen.drawn == alone.drawn


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("start", [1, 5, EVERY - 1, EVERY, 25])
def test_a_run_that_goes_on_sees_what_it_would_have_seen(spec, alone, workers, start):
    seen = run(spec, workers, start)
    assert seen.rows == {step: rows for step, rows in alone.rows.items() if step >= start}
    assert seen.drawn == {step: drawn for step, drawn in alone.drawn.items() if step >= start}
    assert list(seen.judged) == [step for step in (EVERY - 1, STEPS - 1) if step >= start]


@pytest.mark.parametrize("every", [4, 7, 10, 20])
def test_evaluations_need_not_fall_on_a_units_edge(spec, alone, every):
    """20 steps between evaluations make units of 3 steps, 10 and 7 of 2 and 1: some are cut short."""
    spec = replace(spec, every=every)
    due = sorted({*range(every - 1, STEPS, every), STEPS - 1})
    for workers in (1, 2, 3):
        seen = run(spec, workers)
        assert seen.drawn == alone.drawn
        assert list(seen.judged) == due


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_an_evaluation_covers_every_row_of_every_set_once(spec, workers):
    every_row = Counter({(0, row): 1 for row in range(50)} | {(1, row): 1 for row in range(11)})
    judged = run(spec, workers).judged
    assert list(judged) == [EVERY - 1, STEPS - 1]
    for rows in judged.values():
        assert Counter(rows) == every_row


def test_texts_of_an_evaluation_are_those_of_its_view(spec):
    layout = Layout(replace(spec, steps=1, every=0), 1)
    stream = Stream.local(layout, 0, 0)
    stream.batch(0)
    counts = Counter()
    for place, batch in stream.evaluation(0):
        counts[place] += len(batch.text_row)
    assert counts == {0: 150, 1: 11}


def test_another_seed_is_another_order_with_other_draws(spec, alone):
    assert run(replace(spec, plan=replace(spec.plan, seed=5)), 1).rows != alone.rows
    other = run(replace(spec, train=replace(spec.train, draws=replace(spec.train.draws, seed=5))), 1)
    assert other.rows == alone.rows
    assert other.drawn != alone.drawn


def test_a_row_is_drawn_anew_in_its_next_epoch(alone):
    by_row = {}
    for step, rows in alone.rows.items():
        for row, drawn in zip(rows, alone.drawn[step], strict=True):
            by_row.setdefault(row, []).append(drawn)
    twice = [seen for seen in by_row.values() if len({epoch for epoch, *_ in seen}) > 1]
    assert len(twice) > 40
    for part in (2, 3):  # the long text, the crop
        assert sum(seen[0][part] != seen[1][part] for seen in twice) > 20


def test_a_worker_without_a_row_gets_masked_places(spec):
    """7 rows over 4 workers are 2 each, 1 for the last; over 6 workers the last two have none."""
    for worker, valid in ((3, 1), (4, 0), (5, 0)):
        batch = Stream.local(Layout(spec, 6 if worker > 3 else 4), worker, 0).batch(0)
        assert batch.valid.tolist() == [True] * valid + [False] * (2 - valid)
        assert batch.bad == ()


def test_no_step_is_left(spec):
    """A run that was cut off after its last checkpoint has an empty stream, which is still a stream."""
    for workers in (1, 2):
        layout = Layout(spec, workers)
        assert layout.executions(STEPS) == [(STEPS, STEPS)]
        (units,) = layout.rounds(STEPS, STEPS)
        assert len(units) == workers
        assert UnitMaker(layout).make(units[0]).num_rows == 0


@dataclass(frozen=True)
class Sized:
    """A source of which only the size is asked."""

    rows: int
    row_bytes: int
    parts: tuple = ()


@settings(deadline=None, max_examples=200)
@given(
    steps=st.integers(1, 300),
    every=st.integers(0, 90),
    workers=st.integers(1, 7),
    start=st.integers(0, 299),
    batch=st.integers(2, 50),
    sizes=st.lists(st.tuples(st.integers(1, 200), st.sampled_from([10, 1 << 20, 5 << 20])), max_size=2),
    row_bytes=st.sampled_from([10, 1 << 20, 3 << 20, 100 << 20]),
)
def test_units_of_any_run(spec, steps, every, workers, start, batch, sizes, row_bytes):
    plan = replace(spec.plan, batch_size=batch)
    spec = StreamSpec(Sized(50, row_bytes), plan, steps, tuple(Sized(*size) for size in sizes), every)
    layout, start = Layout(spec, workers), min(start, steps - 1)
    executions = layout.executions(start)
    assert [first for first, _ in executions] == [start, *(stop for _, stop in executions[:-1])]
    units = [unit for execution in executions for units in layout.rounds(*execution) for unit in units]
    assert [unit.worker for unit in units] == list(range(workers)) * (len(units) // workers)
    mine = [unit for unit in units if unit.worker == workers - 1]
    trained = [
        (step, place)
        for unit in mine
        if unit.evaluation is None
        for step in range(unit.step, unit.stop)
        for place in range(unit.first, unit.first + unit.rows)
    ]
    assert trained == [(step, place) for step in range(start, steps) for place in range(layout.share)]
    assert all(unit.stop - unit.step <= layout.steps_per_unit for unit in mine)
    done = start - 1
    for unit in mine:  # an evaluation stands behind the last step that it judges, before the next one
        if unit.evaluation is None:
            done = unit.stop - 1
        else:
            assert unit.step == done
            assert spec.evaluates_after(done)
    judged = [unit.step for unit in mine if unit.evaluation is not None]
    assert sorted(set(judged)) == [step for step in range(start, steps) if spec.evaluates_after(step)]
    assert len(judged) == len(set(judged)) * len(list(layout.evaluation_rounds(0)))
    due = len(set(judged))
    for index, (rows, _) in enumerate(sizes):
        seen = [unit for unit in units if unit.evaluation == index]
        places = Counter(place for unit in seen for place in range(unit.first, unit.first + unit.rows))
        assert places == dict.fromkeys(range(rows), due) or not due


@pytest.mark.parametrize(
    ("row_bytes", "workers", "parts"),
    [(10, 1, 1), (1 << 20, 1, 4), (1 << 20, 2, 1), (2 << 20, 2, 4), (40 << 20, 1, 50)],
)
def test_a_large_share_travels_in_parts(spec, row_bytes, workers, parts):
    """16 MiB a unit, up to two units whole: several decode actors work on the first batch, and blocks stay small."""
    layout = Layout(replace(spec, train=Sized(50, row_bytes), plan=replace(spec.plan, batch_size=50)), workers)
    assert len(layout.parts) == parts
    assert sum(rows for _, rows in layout.parts) == layout.share
    assert max(rows for _, rows in layout.parts) * row_bytes <= max(2 * layout.unit_bytes, row_bytes)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_share_in_parts_is_the_share_in_one(spec, alone, workers, monkeypatch):
    from cornerstone.data import layout as module

    monkeypatch.setattr(module, "UNIT_ROWS", 1)
    assert len(Layout(spec, workers).parts) > 1
    seen = run(spec, workers)
    assert seen.rows == alone.rows
    assert seen.drawn == alone.drawn
    assert {step: Counter(rows) for step, rows in seen.judged.items()} == {
        step: Counter(rows) for step, rows in alone.judged.items()
    }


def test_a_block_says_which_unit_it_holds(spec):
    layout = Layout(spec, 2)
    for units in layout.rounds(0, STEPS):
        for unit in units:
            block = UnitMaker(layout).make(unit)
            assert unit_of(block) == unit
            assert block.num_rows == unit.rows * (unit.stop - unit.step)


def test_a_block_of_another_step_is_refused(spec):
    stream = Stream.local(Layout(spec, 2), 0, 6)
    with pytest.raises(CornerstoneError, match=r"expected training rows of step 5 .*, got training rows of step 6"):
        stream.batch(5)


def test_evaluation_rows_are_no_training_rows(spec):
    layout = Layout(spec, 1)
    stream = Stream.local(layout, 0, EVERY - 1)
    stream.batch(EVERY - 1)
    with pytest.raises(
        CornerstoneError, match=f"expected training rows of step {EVERY} .*, got rows of evaluation set 0 of step"
    ):
        stream.batch(EVERY)
    early = Stream.local(layout, 0, 0)
    with pytest.raises(
        CornerstoneError, match="expected rows of set 0 from row 0 on after step 0, got training rows of step 0"
    ):
        next(early.evaluation(0))


def test_rows_of_another_worker_are_refused(spec):
    layout = Layout(spec, 2)
    blocks = [
        UnitMaker(layout).make(units[turn]) for turn, units in enumerate(layout.rounds(0, spec.steps)) if turn < 2
    ]
    stream = Stream(layout, iter(blocks))
    with pytest.raises(CornerstoneError, match=r"expected rows of worker 0, got .* of worker 1"):
        [stream.batch(step) for step in range(spec.steps)]


def test_a_block_of_an_evaluation_that_comes_twice_is_refused(spec):
    layout = Layout(spec, 1)
    first = UnitMaker(layout).make(next(layout.evaluation_rounds(0))[0])
    with pytest.raises(CornerstoneError, match=r"expected rows of set \d+ from row \d+ on after step 0, got rows of"):
        list(Stream(layout, iter((first, first))).evaluation(0))


def test_a_stream_that_ends_early_says_so(spec):
    with pytest.raises(CornerstoneError, match="ended before the run did"):
        Stream(Layout(spec, 1), iter(())).batch(0)


def test_a_batch_is_ready_for_a_device(spec):
    batch = Stream.local(Layout(spec, 1), 0, 0).batch(0)
    assert batch.image.dtype == torch.uint8
    assert batch.image.shape == (BATCH, 3, 8, 8)
