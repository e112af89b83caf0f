from __future__ import annotations

import time
from itertools import pairwise
from types import SimpleNamespace

import pytest
import ray

from cornerstone.training import live_metrics
from cornerstone.training.job import Identity
from cornerstone.training.live_metrics import EXPORT_EVERY, LABELS, LONGEST_LABEL, LiveMetrics, gauge_names, run_labels
from cornerstone.training.loop import Clock

RUN = Identity(run="0123456789abcdef", home="/nowhere", sweep="20260131-142501-3f9a", point="2 corners")


@pytest.fixture
def exported(monkeypatch):
    """What was set: by gauge and phase."""
    values = {}

    class Gauge:
        def __init__(self, name, description, tag_keys):
            assert description
            self.name, self.keys = name, tag_keys

        def set(self, value, tags):
            assert set(tags) == set(self.keys), "Ray refuses a label that is missing, and one that was not declared"
            if value is not None:
                values[(self.name.removeprefix("cornerstone_"), tags.get("phase", ""))] = value

    monkeypatch.setattr(live_metrics, "Gauge", Gauge)
    return values


@pytest.fixture
def now(monkeypatch):
    at = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(live_metrics.time, "monotonic", lambda: at.seconds)
    return at


def observer(rank=0, line=None, quarantined=0, steps=10):
    return LiveMetrics(
        run_labels(RUN, rank),
        steps=steps,
        epochs=2.5,
        restarts=3,
        line=lambda: line or {},
        quarantined=lambda: quarantined,
    )


def clock(**seconds):
    made = Clock()
    made.seconds = seconds
    return made


LINE = {
    "train/loss": 2.0,
    "train/grad_norm": 0.5,
    "train/samples_per_second": 64.0,
    "train/seconds_per_step": 0.25,
    "train/logit_scale": 10.0,
}


def test_rank_0_exports_every_gauge(exported, now):
    live = observer(line=LINE, quarantined=7)
    now.seconds += 4.0
    live.after_step(3, None, None, clock(data=1.0, step=2.0))
    assert exported == {
        ("loss", ""): 2.0,
        ("grad_norm", ""): 0.5,
        ("samples_per_second", ""): 64.0,
        ("seconds_per_step", ""): 0.25,
        ("time_share", "data"): 0.25,
        ("time_share", "step"): 0.5,
        ("time_share", "evaluation"): 0.0,
        ("time_share", "checkpoint"): 0.0,
        ("progress", ""): 0.4,
        ("epochs", ""): 1.0,
        ("restarts", ""): 3,
        ("quarantined", ""): 7,
    }
    assert {f"cornerstone_{name}" for name, _ in exported} == set(gauge_names())


def test_other_ranks_export_what_is_their_own(exported, now):
    live = observer(rank=1, line=LINE, quarantined=2)
    now.seconds += 4.0
    live.after_step(3, None, None, clock(data=1.0, step=2.0))
    assert {name for name, _ in exported} == {"time_share", "quarantined"}


def test_shares_are_of_the_time_since_the_last_export(exported, now):
    live = observer()
    now.seconds += 4.0
    live.after_step(0, None, None, clock(data=3.0))
    now.seconds += 10.0
    live.after_evaluation(0, {}, clock(data=4.0, evaluation=8.0))
    assert exported["time_share", "data"] == 0.1
    assert exported["time_share", "evaluation"] == 0.8


def test_it_exports_at_its_interval_and_at_the_last_step(exported, now):
    live, steps = observer(steps=200), []
    for step in range(200):
        now.seconds += 0.1
        exported.clear()
        live.after_step(step, None, None, clock())
        if exported:
            steps.append(step)
    assert 9 <= len(steps) <= 11
    assert steps[-1] == 199
    assert all(0.1 * (after - before) >= EXPORT_EVERY - 0.11 for before, after in pairwise(steps[:-1]))


def test_before_the_first_line_there_is_no_loss(exported, now):
    live = observer()
    now.seconds += 4.0
    live.after_step(0, None, None, clock())
    assert ("loss", "") not in exported
    assert exported["progress", ""] == 0.1


def test_labels_are_bounded():
    labels = run_labels(Identity(run="0123456789abcdef", home="/nowhere", sweep="s", point="p" * 1000), 3)
    assert set(labels) == set(LABELS)
    assert labels == {"sweep": "s", "point": "p" * (LONGEST_LABEL - 1) + "…", "run": "01234567", "rank": "3"}
    assert run_labels(RUN, 0)["point"] == "2 corners"


def test_without_ray_it_does_nothing():
    """The real gauges: no error, and no cost worth naming."""
    assert not ray.is_initialized()
    live = observer(line=LINE)
    begun = time.perf_counter()
    for _ in range(100):
        live.after_evaluation(3, {}, clock(data=1.0))
    assert (time.perf_counter() - begun) / 100 < 0.005
    assert not ray.is_initialized()
