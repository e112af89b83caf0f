"""What a person sees of a run: lines now and then, advice once."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from cornerstone.tracking import progress
from cornerstone.tracking.progress import Watcher


@pytest.fixture
def watcher(monkeypatch):
    """A watcher of one run whose clock the test turns, and what it has printed."""
    clock = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.seconds)
    stream = io.StringIO()
    made = Watcher(None, [("run", "2 corners")], Console(file=stream, width=200))

    def say(seconds=0.0, **word):
        clock.seconds += seconds
        made._say("run", "[1/1] 2 corners", {"state": "training"} | word)
        return stream.getvalue().splitlines()

    return say


def test_the_first_line_tells_the_time_to_the_first_batch_and_later_ones_the_wait(watcher):
    word = {"step": 1, "steps": 220, "loss": 4.21, "waits": 0.0, "left": None, "first_batch": 3.84}
    watcher(state="starting its workers")
    assert watcher(**word)[1:] == ["[1/1] 2 corners: step 1 of 220, loss 4.210 (first batch after 3.8 s)"]
    assert len(watcher(5, **{**word, "step": 9})) == 2  # not every word is a line
    told = watcher(11, **{**word, "step": 30, "waits": 0.31, "left": 75.0})
    assert told[2:] == ["[1/1] 2 corners: step 30 of 220, loss 4.210, 31% waiting for data, 75 s left"]
    assert "waiting" not in watcher(16, **{**word, "step": 60, "waits": 0.04, "left": 8000.0})[-1]


def test_advice_is_given_once(watcher):
    advice = {"advice": "the steps wait for data 40% of the time: give more actors."}
    watcher(**advice, step=3, steps=9, loss=1.0)
    lines = watcher(20, **advice, step=5, steps=9, loss=1.0)
    assert [line for line in lines if "give more actors" in line] == [f"[1/1] 2 corners: {advice['advice']}"]
