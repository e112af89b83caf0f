"""What the driver's terminal shows of a run: lines now and then, each notice once."""

from __future__ import annotations

import io
import threading
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from cornerstone.tracking import progress
from cornerstone.tracking.progress import ProgressActor, ProgressPrinter

NAME = "[1/1] 2 corners"


@pytest.fixture
def printed(monkeypatch):
    """Prints a status of one run after so many seconds, and returns all lines so far."""
    clock = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.seconds)
    stream = io.StringIO()
    printer = ProgressPrinter(None, [("run", "2 corners")], Console(file=stream, width=200))

    def show(seconds=0.0, **status):
        clock.seconds += seconds
        printer._print("run", NAME, {"state": "training"} | status)
        return stream.getvalue().splitlines()

    return show


def test_the_first_line_has_the_time_to_the_first_block_and_later_ones_the_wait(printed):
    status = {"step": 1, "steps": 220, "loss": 4.21, "waits": 0.0, "left": None, "first_block": 3.84}
    printed(state="starting its workers")
    assert printed(**status)[1:] == [f"{NAME}: step 1 of 220, loss 4.210 (first block after 3.8 s)"]
    assert len(printed(5, **{**status, "step": 9})) == 2  # not every status is a line
    lines = printed(11, **{**status, "step": 30, "waits": 0.31, "left": 75.0})
    assert lines[2:] == [f"{NAME}: step 30 of 220, loss 4.210, 31% waiting for data, 75 s left"]
    assert "waiting" not in printed(16, **{**status, "step": 60, "waits": 0.04, "left": 8000.0})[-1]


def test_a_new_state_is_printed_at_once(printed):
    printed(step=1, steps=9, loss=1.0)
    assert printed(1, state="evaluated after step 9")[-1] == f"{NAME}: evaluated after step 9"
    assert len(printed(100, state="evaluated after step 9")) == 2


def test_each_notice_is_printed_once(printed):
    advice, refusal = "the steps wait for data 40% of the time: give more actors.", "MLflow refuses the metric 'a b'"
    printed(notices=[advice], step=3, steps=9, loss=1.0)
    lines = printed(20, notices=[advice, refusal], step=5, steps=9, loss=1.0)
    assert lines.count(f"{NAME}: {advice}") == 1
    assert lines.count(f"{NAME}: {refusal}") == 1


def test_the_actor_merges_statuses_and_keeps_every_notice():
    actor = ProgressActor.__ray_metadata__.modified_class()  # the plain class: no cluster is needed
    actor.update("a", {"state": "training", "step": 1})
    actor.update("a", {"notice": "first"})
    actor.update("a", {"step": 2, "notice": "second"})
    actor.update("b", {"state": "starting its workers"})
    found = actor.read()
    assert (found["a"]["state"], found["a"]["step"], found["a"]["notices"]) == ("training", 2, ["first", "second"])
    assert found["b"]["notices"] == []


def test_no_thread_uses_ray_behind_the_block(monkeypatch):
    """Ray is shut down next: a slow reading, as on a busy machine, must have ended."""
    read, reading = threading.Event(), []

    def slow(reference, timeout):
        reading.append(True)
        read.set()
        time.sleep(0.3)
        reading.append(False)
        return {}

    monkeypatch.setattr(progress.ray, "get", slow)
    monkeypatch.setattr(progress, "READ_SECONDS", 0.01)
    actor = SimpleNamespace(read=SimpleNamespace(remote=lambda: None))
    with ProgressPrinter(actor, [("run", "a")], Console(file=io.StringIO())) as printer:
        assert read.wait(5)
    assert not printer._thread.is_alive()
    assert reading == [True, False] * 2  # the last statuses are read too
