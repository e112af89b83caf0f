from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from cornerstone.errors import RunStopped
from cornerstone.training import observers
from cornerstone.training.loop import Clock
from cornerstone.training.observers import Progress, Quarantine, StepMetrics


@pytest.fixture
def now(monkeypatch):
    """The time that observers see, moved by hand."""
    time = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(observers.time, "perf_counter", lambda: time.seconds)
    monkeypatch.setattr(observers.time, "monotonic", lambda: time.seconds)
    return time


def parts(long=2.0, short=1.0):
    return {"long": torch.tensor(long), "short": torch.tensor(short)}


class Rows:
    """As much of a batch as observers read."""

    def __init__(self, rows, bad=()):
        self.rows, self.bad = rows, tuple(bad)

    def __len__(self):
        return self.rows


class Run:
    """Steps of a second, half of which the step waits for data."""

    def __init__(self, now, every=4, steps=10):
        self.lines, self.now, self.clock = [], now, Clock()
        self.clock.seconds = {"data": 0.0, "evaluation": 0.0}
        self.metrics = StepMetrics(lambda step, found: self.lines.append((step, dict(found))), every, 20, steps)

    def step(self, step, **losses):
        self.now.seconds += 1.0
        self.clock.seconds["data"] += 0.5
        self.metrics.after_step(step, Rows(10), parts(**losses), self.clock)

    def evaluate(self, step, seconds):
        self.now.seconds += seconds
        self.clock.seconds["evaluation"] += seconds
        self.metrics.after_evaluation(step, {"eval/dci/i2t_r1": 50.0}, self.clock)


def test_lines_are_means_since_the_last_one_under_their_agreed_names(now):
    run = Run(now)
    for step in range(10):
        run.step(step, long=float(step), short=1.0)
    assert [step for step, _ in run.lines] == [4, 8, 10]  # every fourth step, and the last
    _, second = run.lines[1]
    assert second == {
        "train/loss": 1 + (4 + 5 + 6 + 7) / 4,
        "train/loss_long": (4 + 5 + 6 + 7) / 4,
        "train/loss_short": 1.0,
        "train/data_wait_share": 0.5,
        "train/samples_per_second": 20.0,
        "train/seconds_per_step": 1.0,
    }
    assert run.lines[2][1]["train/loss"] == 1 + (8 + 9) / 2


def test_an_evaluation_is_recorded_and_takes_no_time_from_training(now):
    run = Run(now)
    for step in range(8):
        run.step(step)
        if step in (1, 4):  # in the middle of a line's steps
            run.evaluate(step, seconds=100.0)
    assert [step for step, _ in run.lines] == [2, 4, 5, 8]
    assert run.lines[0][1] == {"eval/dci/i2t_r1": 50.0}
    for _, line in (run.lines[1], run.lines[3]):
        assert line["train/samples_per_second"] == pytest.approx(20.0)
        assert line["train/data_wait_share"] == pytest.approx(0.5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_no_number_stops_with_its_first_step(now, bad):
    run = Run(now)
    for step in range(5):
        run.step(step)
    run.step(5, long=bad)
    run.step(6, long=bad)
    with pytest.raises(RunStopped, match=r"not finite at step 5.*--recipe.optimization.learning-rate"):
        run.step(7)
    assert [step for step, _ in run.lines] == [4]


def quarantine(folder, limit=0.05, every=1):
    return Quarantine(folder / "runs" / "quarantine-0.jsonl", limit, every)


def test_bad_rows_are_written_down_once_with_their_reason(tmp_path):
    watch = quarantine(tmp_path)
    watch.after_step(0, Rows(10, [(7, "truncated"), (9, "no text")]), {}, Clock())
    watch.after_step(1, Rows(10), {}, Clock())
    watch.after_step(2, Rows(10, [(7, "truncated"), (8, "empty: 0 bytes")]), {}, Clock())
    lines = [json.loads(line) for line in (tmp_path / "runs" / "quarantine-0.jsonl").read_text().splitlines()]
    assert lines == [
        {"row": 7, "step": 0, "reason": "truncated"},
        {"row": 9, "step": 0, "reason": "no text"},
        {"row": 8, "step": 2, "reason": "empty: 0 bytes"},
    ]
    assert watch.bad == 4


def test_a_run_without_bad_rows_leaves_no_file(tmp_path):
    quarantine(tmp_path).after_step(0, Rows(300), {}, Clock())
    assert list(tmp_path.iterdir()) == []


def test_too_many_bad_rows_stop_the_run_with_their_count(tmp_path):
    watch = quarantine(tmp_path, limit=0.05)
    for step in range(4):
        watch.after_step(step, Rows(40, [(40 * step + i, "empty") for i in range(3)]), {}, Clock())
    with pytest.raises(RunStopped, match=r"15 of the 200 rows .* more than 5.0%.*quarantine-0.jsonl.*bad-row-limit"):
        watch.after_step(4, Rows(40, [(160 + i, "empty") for i in range(3)]), {}, Clock())


def test_a_share_at_the_limit_is_allowed_and_few_rows_are_not_judged(tmp_path):
    allowed = quarantine(tmp_path, limit=0.05)
    for step in range(30):
        allowed.after_step(step, Rows(40, [(2 * step, "x"), (2 * step + 1, "x")]), {}, Clock())
    early = quarantine(tmp_path, limit=0.05)
    early.after_step(0, Rows(199, [(i, "x") for i in range(150)]), {}, Clock())
    with pytest.raises(RunStopped, match="150 of the 200 rows"):
        early.after_step(1, Rows(1), {}, Clock())


def test_workers_compare_their_counts_only_now_and_then(tmp_path):
    watch = quarantine(tmp_path, limit=0.0, every=10)
    for step in range(9):
        watch.after_step(step, Rows(100, [(step, "x")]), {}, Clock())
    with pytest.raises(RunStopped, match="10 of the 1000 rows"):
        watch.after_step(9, Rows(100, [(9, "x")]), {}, Clock())


def test_progress_is_told_at_most_once_a_second_and_at_the_end(now):
    told = []
    progress, clock = Progress(told.append, steps=40, advice="buy"), Clock()
    clock.seconds = {"data": 3.0}  # the first batch
    for step in range(10, 40):  # a run that goes on from step 10
        now.seconds += 0.25
        progress.after_step(step, Rows(10), parts(), clock)
    assert [word["step"] for word in told] == [11, 15, 19, 23, 27, 31, 35, 39, 40]
    assert all((word["steps"], word["loss"], word["state"]) == (40, 3.0, "training") for word in told)
    assert [word["left"] for word in told[1:]] == pytest.approx([0.25 * (40 - word["step"]) for word in told[1:]])
    progress.after_evaluation(39, {}, Clock())
    assert told[-1] == {"state": "evaluated after step 40"}


def test_the_time_to_the_first_batch_is_told_and_written_once(now):
    class Started:
        seconds_to_first_block = None

    stream, told, written = Started(), [], []
    progress = Progress(told.append, steps=6, advice="", stream=stream)
    meter = StepMetrics(lambda step, metrics: written.append(metrics), every=2, rows=10, steps=6, stream=stream)
    for step in range(6):
        now.seconds += 1.0
        clock = Clock()
        clock.seconds = {"data": 0.0}
        stream.seconds_to_first_block = 3.25
        for observer in (progress, meter):
            observer.after_step(step, Rows(10), parts(), clock)
    assert told[0]["first_batch"] == 3.25
    assert [metrics.get("train/seconds_to_first_block") for metrics in written] == [3.25, None, None]


def test_who_waits_for_data_is_told_what_to_change_once(now):
    def told_by(waited, steps):
        told, clock = [], Clock()
        clock.seconds = {"data": 7.0}
        progress = Progress(told.append, steps, advice="buy a larger machine.")
        for step in range(steps):
            progress.after_step(step, Rows(10), parts(), clock)
            now.seconds += 1.0
            clock.seconds["data"] += waited
        return told

    told = told_by(0.25, 30)
    assert [word["waits"] for word in told if "waits" in word][1:] == [0.25] * 29
    advice = [word for word in told if "advice" in word]
    assert advice == [{"advice": "the steps wait for data 25% of the time: buy a larger machine."}]
    assert not any("advice" in word for word in told_by(0.25, 10) + told_by(0.19, 30))
