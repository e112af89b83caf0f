from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from cornerstone.data.batch import IMAGE, ROW, Bad, RowBatch
from cornerstone.data.source import MASKED
from cornerstone.errors import RunStopped
from cornerstone.tracking.run_store import read_quarantine
from cornerstone.training import observers
from cornerstone.training.loop import Clock
from cornerstone.training.observers import CollapseWarning, ProgressReporter, Quarantine, StepMetrics
from cornerstone.training.report import StepReport


@pytest.fixture
def now(monkeypatch):
    """The time that observers see, moved by hand."""
    time = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(observers.time, "perf_counter", lambda: time.seconds)
    monkeypatch.setattr(observers.time, "monotonic", lambda: time.seconds)
    return time


def report(long=2.0, short=1.0, *, grad_norm=0.5, learning_rate=1e-3, skipped=0, **reports) -> StepReport:
    parts = {"long": torch.tensor(long), "short": torch.tensor(short)}
    found = {name: torch.tensor(value) for name, value in reports.items()}
    return StepReport(parts, found, torch.tensor(grad_norm), learning_rate, skipped)


class Rows:
    """The members of a batch that observers read: its number of rows, of images of documents, and what is bad."""

    def __init__(self, rows, bad=(), images=None):
        self.bad, self._counted = tuple(bad), {ROW: rows} if images is None else {ROW: rows, IMAGE: images}

    def counted(self):
        return self._counted


def bad_row(row, reason="empty"):
    return Bad(row, ROW, reason)


def bad_image(row, place=0, reason="truncated"):
    return Bad(row, f"{IMAGE} {place}", reason)


class Run:
    """Steps of a second, half of which the step waits for data."""

    def __init__(self, now, every=4, steps=10):
        self.lines, self.now, self.clock = [], now, Clock()
        self.clock.seconds = {"data": 0.0, "evaluation": 0.0}
        self.metrics = StepMetrics(lambda step, found: self.lines.append((step, dict(found))), every, 20, steps)

    def step(self, step, **reported):
        self.now.seconds += 1.0
        self.clock.seconds["data"] += 0.5
        self.metrics.after_step(step, Rows(10), report(**reported), self.clock)

    def evaluate(self, step, seconds):
        self.now.seconds += seconds
        self.clock.seconds["evaluation"] += seconds
        self.metrics.after_evaluation(step, {"eval/dci/i2t_r1": 50.0}, self.clock)


def test_lines_are_means_since_the_last_one_under_their_agreed_names(now):
    run = Run(now)
    for step in range(10):
        run.step(step, long=float(step), grad_norm=2.0 * step, learning_rate=step / 10, logit_scale=10.0 + step)
    assert [step for step, _ in run.lines] == [4, 8, 10]  # every fourth step, and the last
    _, second = run.lines[1]
    assert second == {
        "train/loss": 1 + (4 + 5 + 6 + 7) / 4,
        "train/loss_long": (4 + 5 + 6 + 7) / 4,
        "train/loss_short": 1.0,
        "train/grad_norm": 2 * (4 + 5 + 6 + 7) / 4,
        "train/logit_scale": 10 + (4 + 5 + 6 + 7) / 4,  # a report is logged and is no part of the loss
        "train/learning_rate": 0.7,  # the last step's
        "train/data_wait_share": 0.5,
        "train/samples_per_second": 20.0,
        "train/seconds_per_step": 1.0,
    }
    assert run.lines[2][1]["train/loss"] == 1 + (8 + 9) / 2


def test_skipped_steps_are_counted_and_their_norms_left_out(now):
    run = Run(now)
    norms = [1.0, float("inf"), 3.0, float("nan"), 5.0, 5.0, 5.0, 5.0]
    for step, norm in enumerate(norms):
        run.step(step, grad_norm=norm, skipped=(step >= 1) + (step >= 3))
    first, second = (line for _, line in run.lines)
    assert (first["train/skipped_steps"], first["train/grad_norm"]) == (2.0, 2.0)
    assert (second["train/skipped_steps"], second["train/grad_norm"]) == (2.0, 5.0)
    assert first["train/loss"] == 3.0


def test_too_many_skipped_steps_stop_the_run(now):
    run = Run(now, every=4, steps=40)
    run.metrics = StepMetrics(lambda step, found: run.lines.append((step, dict(found))), 4, 20, 40, skipped_limit=3)
    for step in range(3):
        run.step(step, grad_norm=float("nan"), skipped=step + 1)
    run.step(3, skipped=3)
    for step in range(4, 7):
        run.step(step, skipped=5)
    with pytest.raises(RunStopped, match=r"5 of 8 steps .* more than 3 \(--recipe.optimization.skipped-step-limit\)"):
        run.step(7, skipped=5)
    assert [line["train/skipped_steps"] for _, line in run.lines] == [3.0, 5.0]  # the last line is written first


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
def test_a_loss_that_is_not_finite_stops_the_run_with_its_first_step(now, bad):
    run = Run(now)
    for step in range(5):
        run.step(step)
    run.step(5, long=bad)
    run.step(6, long=bad)
    with pytest.raises(RunStopped, match=r"not finite at step 5.*--recipe.optimization.learning-rate"):
        run.step(7)
    assert [step for step, _ in run.lines] == [4]


def quarantine(folder, limit=0.05, every=1, known=None):
    return Quarantine(folder / "runs" / "quarantine-0.jsonl", limit, every, known)


def observe(watch, step, batch):
    watch.after_step(step, batch, report(), Clock())


def entries(folder):
    return [json.loads(line) for line in (folder / "runs" / "quarantine-0.jsonl").read_text().splitlines()]


def test_bad_rows_are_written_once_with_their_reason(tmp_path):
    watch = quarantine(tmp_path)
    observe(watch, 0, Rows(10, [bad_row(7, "truncated"), bad_row(9, "no text")]))
    observe(watch, 1, Rows(10))
    observe(watch, 2, Rows(10, [bad_row(7, "truncated"), bad_row(8, "empty: 0 bytes")]))
    assert entries(tmp_path) == [
        {"row": 7, "what": "row", "step": 0, "reason": "truncated"},
        {"row": 9, "what": "row", "step": 0, "reason": "no text"},
        {"row": 8, "what": "row", "step": 2, "reason": "empty: 0 bytes"},
    ]
    assert watch.bad == {ROW: 4, IMAGE: 0}


def test_bad_images_of_documents_are_no_bad_rows(tmp_path):
    watch = quarantine(tmp_path)
    observe(watch, 0, Rows(10, [bad_image(3, 0), bad_image(3, 2), bad_row(3, "no text")], images=40))
    observe(watch, 1, Rows(10, [bad_image(3, 2), bad_image(4, 2)], images=40))
    assert [(entry["row"], entry["what"]) for entry in entries(tmp_path)] == [
        (3, "image 0"),
        (3, "image 2"),
        (3, "row"),
        (4, "image 2"),
    ]
    assert watch.bad == {ROW: 1, IMAGE: 4}


def test_what_was_quarantined_before_a_restart_is_not_written_again(tmp_path):
    observe(quarantine(tmp_path), 5, Rows(10, [bad_row(7), bad_image(8, 1)], images=30))
    again = [bad_row(7), bad_image(8, 1), bad_image(8, 2)]
    observe(quarantine(tmp_path), 5, Rows(10, again, images=30))
    assert [(entry["row"], entry["what"]) for entry in entries(tmp_path)] == [(7, ROW), (8, "image 1"), (8, "image 2")]


def test_what_another_worker_quarantined_before_a_restart_is_not_written_again(tmp_path):
    """The rows of a step are divided differently if the run is resumed with another number of workers."""
    watch = quarantine(tmp_path, known=[(7, ROW)])
    observe(watch, 5, Rows(10, [bad_row(7)]))
    assert not (tmp_path / "runs").exists()
    observe(watch, 6, Rows(10, [bad_row(8)]))
    assert [entry["row"] for entry in entries(tmp_path)] == [8]
    assert watch.bad[ROW] == 2


def test_a_line_that_a_crash_cut_short_spoils_no_other(tmp_path):
    observe(quarantine(tmp_path), 0, Rows(10, [bad_row(7), bad_row(8)]))
    path = tmp_path / "runs" / "quarantine-0.jsonl"
    path.write_text(path.read_text()[:-10])
    observe(quarantine(tmp_path), 0, Rows(10, [bad_row(7), bad_row(8)]))
    kept = [entry["row"] for entry in read_quarantine(path)]
    assert kept == [7, 8]


def test_a_run_without_bad_rows_leaves_no_file(tmp_path):
    observe(quarantine(tmp_path), 0, Rows(300))
    assert list(tmp_path.iterdir()) == []


def test_too_many_bad_rows_stop_the_run_with_their_count(tmp_path):
    watch = quarantine(tmp_path, limit=0.05)
    for step in range(4):
        observe(watch, step, Rows(40, [bad_row(40 * step + i) for i in range(3)]))
    with pytest.raises(RunStopped, match=r"15 of the 200 rows .* more than 5.0%.*quarantine-0.jsonl.*bad-row-limit"):
        observe(watch, 4, Rows(40, [bad_row(160 + i) for i in range(3)]))


def test_too_many_bad_images_stop_the_run_though_every_row_is_good(tmp_path):
    watch = quarantine(tmp_path, limit=0.05)
    observe(watch, 0, Rows(100, [bad_image(i) for i in range(5)], images=100))  # fewer than 200: not judged yet
    with pytest.raises(RunStopped, match=r"11 of the 200 images read could not be used, more than 5.0%"):
        observe(watch, 1, Rows(100, [bad_image(100 + i) for i in range(6)], images=100))
    assert watch.bad[ROW] == 0


def test_too_many_bad_rows_stop_the_run_though_their_share_of_the_images_is_small(tmp_path):
    watch = quarantine(tmp_path, limit=0.05)
    with pytest.raises(RunStopped, match=r"11 of the 200 rows"):
        observe(watch, 0, Rows(200, [bad_row(i) for i in range(11)], images=10_000))


def test_bad_images_do_not_count_as_bad_rows(tmp_path):
    watch = quarantine(tmp_path, limit=0.05)
    for step in range(10):
        observe(watch, step, Rows(40, [bad_image(40 * step + i) for i in range(10)], images=400))  # 2.5% of the images


def test_a_share_at_the_limit_is_allowed_and_few_rows_are_not_judged(tmp_path):
    allowed = quarantine(tmp_path, limit=0.05)
    for step in range(30):
        observe(allowed, step, Rows(40, [bad_row(2 * step), bad_row(2 * step + 1)]))
    early = quarantine(tmp_path, limit=0.05)
    observe(early, 0, Rows(199, [bad_row(i) for i in range(150)]))
    with pytest.raises(RunStopped, match="150 of the 200 rows"):
        observe(early, 1, Rows(1))


def test_masked_places_are_not_rows_that_were_read(tmp_path):
    """40 places of which 30 are masked: after 20 steps 200 rows were read, and not 800."""
    watch = quarantine(tmp_path, limit=0.05)

    def batch(step, bad=()):
        rows = torch.full((40,), MASKED)
        rows[:10] = torch.arange(10 * step, 10 * step + 10)
        return RowBatch(step, rows, rows != MASKED, tuple(bad))

    for step in range(19):
        observe(watch, step, batch(step, [bad_row(10 * step)]))
    with pytest.raises(RunStopped, match="20 of the 200 rows"):
        observe(watch, 19, batch(19, [bad_row(190)]))


def test_workers_compare_their_counts_every_few_steps(tmp_path):
    watch = quarantine(tmp_path, limit=0.0, every=10)
    for step in range(9):
        observe(watch, step, Rows(100, [bad_row(step)]))
    with pytest.raises(RunStopped, match="10 of the 1000 rows"):
        observe(watch, 9, Rows(100, [bad_row(9)]))


def test_progress_is_sent_at_most_once_a_second_and_at_the_end(now):
    sent = []
    progress, clock = ProgressReporter(sent.append, steps=40, advice="buy"), Clock()
    clock.seconds = {"data": 3.0}  # the first batch
    for step in range(10, 40):  # a run that goes on from step 10
        now.seconds += 0.25
        progress.after_step(step, Rows(10), report(), clock)
    assert [status["step"] for status in sent] == [11, 15, 19, 23, 27, 31, 35, 39, 40]
    assert all((status["steps"], status["loss"], status["state"]) == (40, 3.0, "training") for status in sent)
    assert [status["left"] for status in sent[1:]] == pytest.approx(
        [0.25 * (40 - status["step"]) for status in sent[1:]]
    )
    assert [status["pace"] for status in sent[1:]] == pytest.approx([0.25] * 8)
    progress.after_evaluation(39, {"eval/dci/i2t_r1": 20.0}, Clock())
    assert sent[-1] == {"state": "evaluated after step 40", "metrics": {"eval/dci/i2t_r1": 20.0}}


def test_with_several_workers_the_mean_of_all_is_shown(now):
    sent, run = [], Run(now, every=2)
    progress = ProgressReporter(sent.append, 10, "", mean_loss=lambda: run.metrics.line.get("train/loss"))
    for step in range(4):
        run.step(step, long=float(step))
        progress.after_step(step, Rows(10), report(long=99.0), run.clock)
    assert [status.get("loss") for status in sent] == [None, 1.5, 1.5, 3.5]


def test_the_time_to_the_first_block_is_sent_and_written_once(now):
    class Started:
        seconds_to_first_block = None

    stream, sent, written = Started(), [], []
    progress = ProgressReporter(sent.append, steps=6, advice="", stream=stream)
    meter = StepMetrics(lambda step, metrics: written.append(metrics), every=2, rows=10, steps=6, stream=stream)
    for step in range(6):
        now.seconds += 1.0
        clock = Clock()
        clock.seconds = {"data": 0.0}
        stream.seconds_to_first_block = 3.25
        for observer in (progress, meter):
            observer.after_step(step, Rows(10), report(), clock)
    assert sent[0]["first_block"] == 3.25
    assert [metrics.get("train/seconds_to_first_block") for metrics in written] == [3.25, None, None]


def test_advice_is_sent_once_if_the_steps_wait_for_data(now):
    def statuses_of(waited, steps):
        sent, clock = [], Clock()
        clock.seconds = {"data": 7.0}
        progress = ProgressReporter(sent.append, steps, advice="buy a larger machine.")
        for step in range(steps):
            progress.after_step(step, Rows(10), report(), clock)
            now.seconds += 1.0
            clock.seconds["data"] += waited
        return sent

    sent = statuses_of(0.25, 30)
    assert [status["waits"] for status in sent if "waits" in status][1:] == [0.25] * 29
    advice = [status for status in sent if "notice" in status]
    assert advice == [{"notice": "the steps wait for data 25% of the time: buy a larger machine."}]
    assert not any("notice" in status for status in statuses_of(0.25, 10) + statuses_of(0.19, 30))


def test_a_collapse_is_warned_about_once_for_each_set():
    sent = []
    warning = CollapseWarning(sent.append)
    good = {"eval/good/effective_rank": 9.0, "eval/good/image_variance": 0.5, "eval/good/generation": 1.2}
    warning.after_evaluation(9, good, Clock())
    assert sent == []
    warning.after_evaluation(19, {**good, "eval/bad/effective_rank": 1.2, "eval/bad/image_variance": 0.3}, Clock())
    warning.after_evaluation(29, {**good, "eval/bad/effective_rank": 1.1, "eval/bad/image_variance": 0.3}, Clock())
    assert [notice["notice"][:90] for notice in sent] == [
        "eval/bad after step 20: the image features have collapsed (effective rank 1.2, variance 0."
    ]
    warning.after_evaluation(39, {"eval/still/effective_rank": 5.0, "eval/still/image_variance": 0.0}, Clock())
    assert len(sent) == 2
