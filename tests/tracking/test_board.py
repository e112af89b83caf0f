"""What a terminal shows of a sweep, as a state: statuses in, phases, the best row and the time that is left out."""

from __future__ import annotations

import math

import pytest

from cornerstone.tracking.board import Board, Phase, Primary, duration, makespan

PRIMARY = Primary("eval/dci/i2t_r1", "dci i→t R@1")


@pytest.fixture
def board():
    board = Board("ablate 2026", PRIMARY, at_a_time=2)
    for number in range(4):
        board.add(f"run{number}", f"{number}, seed 0", row=str(number), steps=100)
    return board


def train(board, run, now, **status):
    board.update({run: {"state": "training", "steps": 100} | status}, now)


def done(board, run, now, seconds=60.0, **metrics):
    named = {f"eval/dci/{name}": value for name, value in metrics.items()}
    board.update({run: {"state": "done", "seconds": seconds, "metrics": named}}, now)


def test_a_trial_goes_from_waiting_over_its_steps_to_its_end(board):
    trial = board.trials["run0"]
    assert (trial.phase, trial.share) == (Phase.WAITS, 0.0)
    board.update({"run0": {"state": "starting"}, "somebody else's": {"state": "starting"}}, 10.0)
    assert (trial.phase, trial.began) == (Phase.RUNS, 10.0)
    train(board, "run0", 20.0, step=25, loss=3.5, pace=0.4, left=30.0)
    assert (trial.step, trial.loss, trial.pace, trial.share, trial.left(20.0)) == (25, 3.5, 0.4, 0.25, 30.0)
    assert board.share == 0.25 / 4
    train(board, "run0", 24.0, step=25, loss=3.5, pace=0.4, left=30.0)  # read again: nothing new
    assert trial.left(24.0) == 26.0
    assert trial.left(99.0) == 0.0
    done(board, "run0", 70.0, i2t_r1=21.0)
    assert (trial.phase, trial.seconds, trial.share) == (Phase.DONE, 60.0, 1.0)
    assert board.trials["run1"].phase is Phase.WAITS


def test_a_failed_trial_keeps_its_error(board):
    board.update({"run0": {"state": "failed", "error": "ArithmeticError: no\nway", "seconds": 3.0}}, 5.0)
    trial = board.trials["run0"]
    assert (trial.phase, trial.error) == (Phase.FAILED, "ArithmeticError: no\nway")
    assert board.best() is None


def test_a_status_that_comes_late_does_not_start_an_ended_trial_again(board):
    train(board, "run0", 1.0, step=3, steps=9)
    done(board, "run0", 2.0)
    train(board, "run0", 3.0, step=9, steps=9)
    assert board.trials["run0"].has_ended


def test_restarts_are_counted_from_the_first_start_that_is_seen(board):
    """A run that a continued sweep resumes was started before: that is no failure of this start."""
    board.update({"run0": {"state": "building the model", "restarts": 3}}, 1.0)
    train(board, "run0", 2.0, restarts=3, step=40, left=60.0, loss=1.0, pace=1.0)
    trial = board.trials["run0"]
    assert trial.restarts == 0
    board.update({"run0": {"state": "building the model", "restarts": 4, "step": 40, "left": 60.0}}, 9.0)
    assert (trial.restarts, trial.step, trial.left(9.0), trial.loss) == (1, 0, None, None)


def test_the_best_row_is_that_of_the_highest_mean_over_its_seeds():
    board = Board(primary=PRIMARY)
    assert board.best() is None
    values = {"a": [20.0, 30.0], "b": [26.0], "c": [math.nan], "d": [26.0], "e": []}
    for row, found in values.items():
        for seed, value in enumerate(found or [None]):
            board.add(f"{row}{seed}", f"{row}, seed {seed}", row=row)
            board.end(f"{row}{seed}", {} if value is None else {PRIMARY.metric: value}, 1.0)
    assert board.best() == ("b", 26.0, 1)
    board.end("a0", {PRIMARY.metric: 30.0})
    assert board.best() == ("a", 30.0, 2)
    board.primary = None
    assert board.best() is None


def test_the_sweeps_time_is_that_of_what_runs_and_of_what_waits_side_by_side(board):
    assert board.seconds_left(0.0) is None  # nothing is known yet
    board.update({"run0": {"state": "starting"}, "run1": {"state": "starting"}}, 0.0)
    assert board.seconds_left(5.0) is None
    train(board, "run0", 20.0, step=10, left=80.0)  # 100 s in all
    train(board, "run1", 20.0, step=5, left=180.0)  # 200 s in all
    # 150 s a trial: the third begins at 80, the fourth at 180.
    assert board.seconds_left(20.0) == pytest.approx(330.0)
    done(board, "run0", 100.0, seconds=100.0)  # what was measured replaces what was expected
    board.update({"run2": {"state": "starting"}}, 100.0)
    # run1 until 200, run2 until 200, then run3.
    assert board.seconds_left(100.0) == pytest.approx(100.0 + 100.0)
    for run in ("run1", "run2", "run3"):
        done(board, run, 200.0)
    assert board.seconds_left(200.0) == 0.0


def test_trials_of_more_steps_and_those_that_follow_others_count_too(board):
    board.at_a_time = 1
    done(board, "run0", 100.0, seconds=50.0)
    board.trials["run1"].steps = 400
    assert board.seconds_left(100.0) == pytest.approx(200.0 + 50.0 + 50.0)
    board.later = 2
    assert board.total == 6
    assert board.seconds_left(100.0) == pytest.approx(300.0 + 2 * 0.5 * (100 + 400 + 100 + 100) / 4)


def test_trials_of_an_earlier_start_are_not_run_again(board):
    board.end("run0", {PRIMARY.metric: 21.0}, 40.0)
    trial = board.trials["run0"]
    assert (trial.phase, trial.earlier) == (Phase.DONE, True)
    assert board.best() == ("0", 21.0, 1)
    board.add("run0", "0, seed 0")
    assert board.trials["run0"] is trial


def test_a_snapshot_does_not_change(board):
    train(board, "run0", 1.0, step=10)
    before = board.snapshot()
    train(board, "run0", 2.0, step=20)
    board.add("more", "4, seed 0")
    assert before.trials["run0"].step == 10
    assert len(before.trials) == 4
    assert board.snapshot().trials["run0"].step == 20


@pytest.mark.parametrize(
    ("running", "waiting", "at_a_time", "expected"),
    [
        ([], [], 1, 0.0),
        ([5.0], [], 1, 5.0),
        ([5.0, 1.0], [10.0, 10.0, 10.0], 2, 21.0),
        ([5.0, 1.0], [10.0], 4, 10.0),
        ([5.0, 1.0, 1.0], [10.0], 1, 11.0),
    ],
)
def test_makespan(running, waiting, at_a_time, expected):
    assert makespan(running, waiting, at_a_time) == expected


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (89.0, "89 s"), (90.0, "2 min"), (5399.0, "90 min"), (5400.0, "1.5 h")]
)
def test_duration(seconds, said):
    assert duration(seconds) == said
