"""What a log shows of a sweep: a line for each event, few for the steps, each notice once."""

from __future__ import annotations

import pytest

from cornerstone.tracking.board import Board, Primary
from cornerstone.tracking.progress_lines import ProgressLines

NAME = "[1/1] 2 corners"


class Log:
    """A board of some trials, and the lines that come of it."""

    def __init__(self, *names):
        self.board, self.now = Board("sweep", Primary("eval/dci/i2t_r1", "dci i→t R@1")), 1000.0
        for name in names:
            self.board.add(name, name, steps=220)
        self.lines = ProgressLines(self.board)

    def __call__(self, after=0.0, run="2 corners", **status):
        self.now += after
        self.board.update({run: {"state": "training", "steps": 220} | status}, self.now)
        self.noticed = list(self.lines.notices())  # in the order in which a view asks
        return list(self.lines.new(self.now))


@pytest.fixture
def log():
    return Log("2 corners")


def test_the_first_line_has_the_time_to_the_first_block_and_later_ones_the_wait(log):
    status = {"step": 1, "loss": 4.21, "waits": 0.0, "left": None, "first_block": 3.84}
    assert log(state="starting") == [f"{NAME}: starting"]
    assert log(state="starting its workers") == []
    assert log(state="building the model") == []
    assert log(**status) == [f"{NAME}: step 1 of 220, loss 4.210 (first block after 3.8 s)"]
    assert log(5, **{**status, "step": 9}) == []
    lines = log(31, **{**status, "step": 30, "waits": 0.31, "left": 75.0})
    assert lines == [f"{NAME}: step 30 of 220, loss 4.210, 31% waiting for data, 75 s left"]
    assert "waiting" not in log(61, **{**status, "step": 60, "waits": 0.04, "left": 8000.0})[0]


def test_there_is_a_line_for_every_tenth_but_not_more_than_two_a_minute(log):
    lines = [line for step in range(1, 221) for line in log(10, step=step, loss=1.0)]  # 37 minutes
    assert [line.split(" of ")[0] for line in lines] == [
        f"{NAME}: step {step}" for step in (1, 22, 44, 66, 88, 110, 132, 154, 176, 198, 220)
    ]
    fast = Log("2 corners")
    assert len([line for step in range(1, 221) for line in fast(0.5, step=step)]) == 4  # 110 s
    slow = Log("2 corners")
    assert len([line for step in range(1, 11) for line in slow(300, step=step)]) == 5  # every ten minutes


def test_a_new_state_is_printed_at_once(log):
    log(step=1, loss=1.0)
    measured = {"eval/dci/i2t_r1": 21.876}
    assert log(1, state="evaluated after step 9", metrics=measured) == [
        f"{NAME}: evaluated after step 9, dci i→t R@1 21.88 %"
    ]
    assert log(100, state="evaluated after step 9", metrics=measured) == []
    assert log(1, state="done", seconds=61.7, metrics=measured) == [f"{NAME}: done in 62 s, dci i→t R@1 21.88 %"]
    assert log(100, state="done", seconds=61.7, metrics=measured) == []


def test_what_was_not_measured_or_is_no_number_is_not_hidden(log):
    assert log(state="done", seconds=1.0, metrics={"eval/dci/i2t_r1": float("nan")}) == [
        f"{NAME}: done in 1 s, dci i→t R@1 nan %"
    ]
    assert Log("2 corners")(state="done", seconds=1.0) == [f"{NAME}: done in 1 s"]


def test_a_failure_is_printed_in_full(log):
    assert log(state="failed", error="ArithmeticError: no way on\nfrom step 1", seconds=2.0) == [
        f"{NAME}: FAILED: ArithmeticError: no way on\nfrom step 1"
    ]
    other = Log("2 corners")
    other.board.update({"2 corners": {"state": "failed", "error": "no", "seconds": 2.0}}, 0.0)
    assert list(other.lines.failures()) == [f"{NAME}: FAILED: no"]
    assert list(other.lines.failures()) == []


def test_a_restart_is_said(log):
    log(state="starting")
    log(state="building the model", restarts=0)
    log(restarts=0, step=30, loss=1.0)
    assert log(1, state="building the model", restarts=1) == [f"{NAME}: its workers started again (restart 1)"]
    assert log(31, restarts=1, step=23, loss=1.0) == [f"{NAME}: step 23 of 220, loss 1.000"]


def test_each_notice_is_given_once(log):
    advice, refusal = "the steps wait for data 40% of the time: give more actors.", "MLflow refuses the metric 'a b'"
    log(notices=[advice], step=3)
    assert log.noticed == [f"{NAME}: {advice}"]
    log(20, notices=[advice, refusal], step=5)
    assert log.noticed == [f"{NAME}: {refusal}"]


def test_trials_that_an_earlier_start_finished_have_one_line_together():
    log = Log("0", "2", "4")
    for run in ("0", "2"):
        log.board.end(run, {"eval/dci/i2t_r1": 20.0}, 30.0)
    assert log(run="4", state="starting") == ["2 of 3 trials had finished before this start", "[3/3] 4: starting"]
    assert log(run="4", state="starting") == []
    log.board.refuse("4 → transfer, seed 0", "no tower")
    assert log(run="4", state="starting") == ["[4/4] 4 → transfer, seed 0: FAILED: no tower"]


def test_what_trials_wait_for_is_said_now_and_then():
    log = Log("0", "2")
    log.board.waits_for = "1 trial waits for 2 CPUs"
    assert log(run="0", state="starting") == ["[1/2] 0: starting", "1 trial waits for 2 CPUs"]
    log.board.waits_for = "1 trial waits for 3 CPUs"
    assert log(30, run="0", state="starting") == []
    assert log(31, run="0", state="starting") == ["1 trial waits for 3 CPUs"]
    assert log(300, run="0", state="starting") == []
