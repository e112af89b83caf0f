"""The view of a sweep in a terminal: every line fits, the height is bounded, and what matters most is what stays."""

from __future__ import annotations

import io
import math

import pytest
from rich.cells import cell_len
from rich.console import Console

from cornerstone.tracking.board import Board, Primary
from cornerstone.tracking.live_view import LiveView, rendered

PRIMARY = Primary("eval/dci/i2t_r1", "dci i→t R@1")
NOW = 100.0


def board(trials=0, running=0, failed=0, finished=0, name="{}, seed 0", **fields):
    """A board of which so many trials run (halfway), have failed and have finished, in this order."""
    made = Board("ablate_loss 20260131-142501-3f9a", PRIMARY, at_a_time=max(running, 1), **fields)
    for number in range(trials):
        run = f"run{number}"
        made.add(run, name.format(number), row=str(number), steps=220)
        if number < running:
            made.update({run: {"state": "starting"}}, 0.0)
            status = {"step": 110, "steps": 220, "loss": 3.21, "pace": 0.25, "left": 27.5 + number}
            made.update({run: {"state": "training"} | status}, NOW)
        elif number < running + failed:
            made.update({run: {"state": "failed", "error": f"out of memory {number}\ntraceback", "seconds": 9.0}}, 9.0)
        elif number < running + failed + finished:
            metrics = {PRIMARY.metric: 20.0 + number / 10}
            made.update({run: {"state": "done", "seconds": 62.0, "metrics": metrics}}, 62.0)
    return made


def drawn(shown, width=90, height=24, color=False):
    """The view as it is drawn: the lines, and with `color` the codes of the terminal."""
    stream = io.StringIO()
    console = Console(file=stream, width=width, height=height + 1, force_terminal=color, color_system=None)
    console.print(LiveView(shown, lambda: NOW))
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    assert len(lines) <= height
    assert len(rendered(shown, NOW, width, height)) == len(lines)  # nothing wraps
    assert all(cell_len(line) <= width for line in lines)
    return lines


def test_each_trial_has_a_line_in_the_order_of_the_sweep():
    shown = board(5, running=1, failed=1, finished=2)
    shown.waits_for = "1 trial waits for 2 CPUs; the cluster has 1 node with 2 CPUs"
    head, _, best, *rows, waiting = drawn(shown)
    assert head.startswith("ablate_loss 20260131-142501-3f9a  ")
    assert head.endswith("  2 of 5 trials done, 1 failed, 90 s left")
    assert best == "best so far: 3, dci i→t R@1 20.30 %"
    assert rows == [
        "0, seed 0  step 110 of 220  0.25 s/step  loss 3.210  28 s left",
        "1, seed 0  failed: out of memory 1",
        "2, seed 0  done, dci i→t R@1 20.20 %, 62 s",
        "3, seed 0  done, dci i→t R@1 20.30 %, 62 s",
    ]
    assert waiting == shown.waits_for


def test_in_a_narrow_terminal_the_least_important_columns_give_way():
    shown = board(3, running=1, finished=1, name="{}, long loss × 3, seed 0")
    lines = drawn(shown, width=40)
    assert all(len(line) <= 40 for line in lines)
    assert lines[0] == "1 of 3 trials done, 90 s left"
    (running,) = [line for line in lines if line.startswith("0,")]
    assert running.endswith("…  step 110 of 220  28 s left")
    (ended,) = [line for line in lines if line.startswith("1,")]
    assert "done, dci i→t R@1 2" in ended
    for width in range(1, 40):
        assert all(len(line) <= width for line in drawn(shown, width=width))


@pytest.mark.parametrize("height", [1, 2, 3, 4, 5, 6, 8, 12, 24, 50])
@pytest.mark.parametrize(("running", "failed", "finished"), [(64, 20, 100), (0, 0, 200), (3, 1, 150), (200, 0, 0)])
def test_of_many_trials_those_that_run_are_shown_and_the_others_counted(height, running, failed, finished):
    shown = board(200, running, failed, finished, later=7)
    lines = drawn(shown, height=height)
    text = "\n".join(lines)
    assert f"{finished} of 207 trials done" in lines[0]
    if height < 12:
        return
    assert text.count(" left\n") + text.endswith(" left") > min(running, 3)
    if running > height:
        assert f"{running - sum('step 110' in line for line in lines)} more run" in text
    if failed > height:
        assert "failed" in text
    shown_done = sum("done, " in line and "trials done" not in line for line in lines)
    if finished:
        assert f"{finished - shown_done}{' more' if shown_done else ''} finished, dci i→t R@1 " in text
    assert "7 more start when others have ended" in text


def test_the_count_of_the_finished_says_what_they_reached():
    lines = drawn(board(200, running=2, finished=150), height=12)
    *_, last, count, waiting = lines
    assert last == "151, seed 0  done, dci i→t R@1 35.10 %, 62 s"
    assert count == "145 more finished, dci i→t R@1 20.20 to 34.60 %"
    assert waiting == "48 trials not started yet"


def test_a_single_run_has_neither_a_best_nor_a_count():
    shown = board(1, running=1)
    assert drawn(shown)[0].split("  ")[0] == shown.title
    assert drawn(shown)[0].endswith("  28 s left")
    assert not any("best" in line or "trials" in line for line in drawn(shown))


def test_before_there_is_a_metric_and_where_it_is_no_number():
    shown = board(3, running=2)
    assert not any("best" in line for line in drawn(shown))
    shown.update({"run0": {"state": "done", "seconds": 5.0, "metrics": {PRIMARY.metric: math.nan}}}, NOW)
    shown.update({"run1": {"state": "done", "seconds": 5.0, "metrics": {"eval/other/top1": 3.0}}}, NOW)
    lines = drawn(shown)
    assert not any("best" in line for line in lines)
    assert "0, seed 0  done, dci i→t R@1 nan %, 5 s" in lines
    assert "1, seed 0  done, 5 s" in lines


def test_a_trial_that_trains_shows_what_was_measured_last_if_there_is_room():
    shown = board(1, running=1)
    shown.trials["run0"].metrics[PRIMARY.metric] = 12.5
    row = "0, seed 0  step 110 of 220  0.25 s/step  loss 3.210  28 s left"
    assert drawn(shown, width=100)[-1] == f"{row}  dci i→t R@1 12.50 %"
    assert drawn(shown, width=80)[-1] == row
    shown.trials["run0"].name = "0, long loss × 3, equal, seed 0"
    assert drawn(shown, width=100)[-1] == row.replace(
        "0, seed 0", "0, long loss × 3, equal, seed 0"
    )  # the name comes first


def test_a_state_that_lasts_says_for_how_long():
    shown = board(2)
    shown.update({"run0": {"state": "starting its workers"}, "run1": {"state": "evaluated after step 9"}}, NOW - 62.0)
    shown.update({"run0": {"state": "starting its workers"}, "run1": {"state": "building the model"}}, NOW - 2.0)
    lines = drawn(shown)
    assert "0, seed 0  starting its workers, for 62 s so far" in lines
    assert "1, seed 0  building the model" in lines


def test_names_with_brackets_are_no_markup():
    shown = board(2, running=1, failed=1, name="[bold]{}[/] [red]x[/red]")
    shown.update({"run1": {"state": "failed", "error": "[/] is no tag", "seconds": 1.0}}, NOW)
    lines = drawn(shown)
    assert any(line.startswith("[bold]0[/] [red]x[/red]  step 110") for line in lines)
    assert "[bold]1[/] [red]x[/red]  failed: [/] is no tag" in lines


def test_trials_of_earlier_starts_follow_ups_and_restarts():
    shown = board(3, finished=1)
    shown.end("run1", {PRIMARY.metric: 25.0}, 50.0)
    shown.add("next", "1 → transfer, seed 0", row="1 → transfer", steps=220)
    shown.update({"run2": {"state": "building the model", "restarts": 0}}, 0.0)
    shown.update({"run2": {"state": "training", "restarts": 1, "step": 10, "steps": 220, "loss": 1.0}}, NOW)
    shown.later, shown.doing = 1, "preparing 2 → transfer, seed 0"
    lines = drawn(shown)
    assert "1, seed 0  done, dci i→t R@1 25.00 %, 50 s" in lines
    assert any(line.startswith("2, seed 0  restart 1: step 10 of 220") for line in lines)
    assert lines[-3:] == [
        "preparing 2 → transfer, seed 0",
        "1 trial not started yet",
        "1 more starts when others have ended",
    ]


def test_a_terminal_without_unicode_gets_ascii():
    shown = board(2, running=1)
    console = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), width=80, height=24)
    console.print(LiveView(shown, lambda: NOW))  # would raise UnicodeEncodeError
