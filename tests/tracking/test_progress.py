"""Progress in the driver's terminal: the actor's statuses, the view in a pseudo-terminal, and lines elsewhere."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import contextmanager, suppress

import pytest
from rich.console import Console

from cornerstone.tracking import progress
from cornerstone.tracking.board import Board
from cornerstone.tracking.progress import Progress, ProgressActor

CODES = re.compile(r"\x1b\[([?0-9;]*)([a-zA-Z])")


class Actor:
    """A stand-in for the actor: its statuses are read without Ray."""

    def __init__(self):
        self.statuses = {}
        self.read = self

    def remote(self):
        return self.statuses


@pytest.fixture
def actor(monkeypatch):
    monkeypatch.setattr(progress.ray, "get", lambda found, timeout: found)
    monkeypatch.setattr(progress, "LOOK_EVERY", 0.01)
    return Actor()


def board(*names):
    made = Board("sweep")
    for name in names:
        made.add(name, name, steps=9)
    return made


def until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_the_actor_merges_statuses_and_keeps_every_notice():
    actor = ProgressActor.__ray_metadata__.modified_class()  # the plain class: no cluster is needed
    actor.update("a", {"state": "training", "step": 1})
    actor.update("a", {"notice": "first"})
    actor.update("a", {"step": 2, "notice": "second"})
    actor.update("b", {"state": "building the model"})
    found = actor.read()
    assert (found["a"]["state"], found["a"]["step"], found["a"]["notices"]) == ("training", 2, ["first", "second"])
    assert found["b"]["notices"] == []


def test_without_a_terminal_there_are_lines_and_no_control_characters(actor):
    stream = io.StringIO()
    shown = Progress(board("a [b]", "c"), Console(file=stream, width=200))
    shown._actor = actor
    with shown:
        actor.statuses["a [b]"] = {"state": "training", "step": 3, "steps": 9, "loss": 1.0, "notices": ["slow"]}
        until(lambda: "step 3" in stream.getvalue())
        actor.statuses["a [b]"] = {"state": "failed", "error": "no way", "seconds": 1.0, "notices": ["slow"]}
    assert stream.getvalue().splitlines() == [
        "[1/2] a [b]: slow",
        "[1/2] a [b]: step 3 of 9, loss 1.000",
        "[1/2] a [b]: FAILED: no way",  # what came last, too
    ]


def test_a_forced_colour_does_not_make_a_file_a_terminal(actor, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    with Progress(board("a"), Console(file=stream)) as shown:
        assert not shown.is_live
    assert "\x1b" not in stream.getvalue()


VIEW = """
    import faulthandler, logging, os, signal, sys, time, warnings
    handler = logging.StreamHandler()  # it holds the stream itself
    logging.getLogger("early").addHandler(handler)
    from functools import partial
    from rich.console import Console
    from cornerstone.runtime.cluster import stoppable
    from cornerstone.tracking import progress
    from cornerstone.tracking.board import Board

    class Actor:
        statuses = {}
        @property
        def read(self): return self
        def remote(self): return self.statuses

    progress.ray.get = lambda found, timeout: found
    progress.LOOK_EVERY, progress.PATIENCE = 0.02, 30.0
    board, console = Board("my sweep"), Console()
    for name in ("first [b]", "second"):
        board.add(name, name, steps=9)
    shown = progress.Progress(board, console)
    shown._actor = Actor()

    def training(step):
        Actor.statuses["first [b]"] = {"state": "training", "step": step, "steps": 9, "loss": 1.0}
        while board.trials["first [b]"].step != step:
            time.sleep(0.02)

    with stoppable("continue with: this", shown.say_last), shown:
        training(1)
        SCRIPT
    console.print("the table")
"""


def in_terminal(script, lines=24, columns=80, seconds=120.0, errors=None):
    """The output of a program in a pseudo-terminal, and its exit status; after `READY` it gets an interrupt.

    `errors` is a file for its standard error, which otherwise goes to the terminal too. A program that has not ended after
    `seconds` is killed, and fails the test.
    """
    inside = textwrap.indent(textwrap.dedent(script).strip(), "    ").strip()
    program = textwrap.dedent(VIEW).replace("SCRIPT", inside)
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "LINES": str(lines), "COLUMNS": str(columns)}
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=theirs,
        stdout=theirs,
        stderr=errors or theirs,
        env=environment,
        close_fds=True,
    )
    os.close(theirs)
    output, interrupted, end = b"", False, time.monotonic() + seconds
    try:
        while chunk := read(ours, end - time.monotonic(), output):
            output += chunk
            if b"READY" in output and not interrupted:
                interrupted = True
                process.send_signal(signal.SIGINT)
        return output.decode().replace("\r\n", "\n"), process.wait(10)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read(terminal, seconds, before):
    """What comes next from a pseudo-terminal, nothing if the other side is closed. Fails the test if nothing comes in time."""
    ready, _, _ = select.select([terminal], [], [], max(seconds, 0.0))
    assert ready, f"the program has not ended; its output:\n{before.decode(errors='replace')}"
    with suppress(OSError):  # EIO: the other side is closed
        return os.read(terminal, 65536)
    return b""


def screen(output):
    """What is to be seen in the end: an emulation of the few codes that a view uses."""
    lines, row, column = [""], 0, 0
    for part in re.split(r"(\x1b\[[?0-9;]*[a-zA-Z]|\n|\r)", output):
        if part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row - len(lines) + 1)
        elif part == "\r":
            column = 0
        elif code := CODES.fullmatch(part):
            number, kind = code.groups()
            if kind == "A":
                row -= int(number or 1)
            elif kind == "K":
                lines[row] = "" if number == "2" else lines[row][:column]
        else:
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in lines if line.strip()]


def test_in_a_terminal_lines_of_others_stay_above_the_view():
    output, status = in_terminal(
        """
        warnings.warn("a warning of Python")
        logging.getLogger("early").warning("a handler that was there before")
        os.write(2, b"a library in C++\\n")
        print("a print")
        console.print("a notice", markup=False)
        training(4)
        os.write(2, b"without an end")
        Actor.statuses["second"] = {"state": "failed", "error": "no way\\non", "seconds": 1.0}
        """
    )
    assert status == 0, output
    seen = screen(output)
    view = seen.index(next(line for line in seen if line.startswith("my sweep")))
    above = "\n".join(seen[:view])
    for text in ("a warning of Python", "a handler that was there before", "a library in C++", "a print", "a notice"):
        assert text in above
    assert "[2/2] second: FAILED: no way\non" in above
    assert seen[view].endswith("0 of 2 trials done, 1 failed")
    assert "first [b]  step 4 of 9  loss 1.000" in seen
    assert "second     failed: no way" in seen
    assert sum(line.startswith("my sweep") for line in seen) == 1
    assert seen[-2:] == ["without an end", "the table"]
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")


def test_an_interrupt_leaves_the_view_and_a_cursor_and_says_how_to_continue():
    output, status = in_terminal(r'os.write(2, b"READY\n"); time.sleep(20)')  # `print` would hold the view's lock
    assert status == 130
    assert screen(output)[-1] == "Stopped. continue with: this"
    assert any(line.startswith("first [b]  step 1 of 9") for line in screen(output))
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")
    assert output.index("Stopped.") > output.rindex("\x1b[?25h")  # the cursor is there before anything can be killed


def test_a_program_that_hangs_in_a_terminal_fails_the_test_and_is_killed(monkeypatch):
    start, started = subprocess.Popen, []
    monkeypatch.setattr(
        subprocess, "Popen", lambda *given, **named: started.append(start(*given, **named)) or started[0]
    )
    with pytest.raises(AssertionError, match="the program has not ended; its output:"):
        in_terminal("time.sleep(600)", seconds=0.3)
    assert started[0].returncode == -signal.SIGKILL


def test_a_standard_error_that_goes_to_a_file_stays_there(tmp_path):
    with (tmp_path / "errors.log").open("w") as errors:
        output, status = in_terminal('print("to the file", file=sys.stderr)', errors=errors)
    assert status == 0, output
    assert "to the file" in (tmp_path / "errors.log").read_text()
    assert "to the file" not in output


def test_the_view_is_never_higher_than_the_terminal():
    output, status = in_terminal(
        """
        for number in range(40):
            board.add(str(number), str(number), steps=9)
            board.trials[str(number)].update({"state": "starting"}, 0.0)
        training(2)
        training(3)
        """,
        lines=10,
    )
    assert status == 0, output
    seen = screen(output)
    assert sum("my sweep" in line for line in seen) == 1
    assert len(seen) == 9 + 1  # the view, which leaves a line for the cursor, and the table


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
    monkeypatch.setattr(progress, "LOOK_EVERY", 0.01)
    shown = Progress(board("a"), Console(file=io.StringIO()))
    shown._actor = Actor()
    with shown:
        assert read.wait(5)
    assert not shown._thread.is_alive()
    assert len(reading) >= 4  # the last statuses are read too
    assert reading == [True, False] * (len(reading) // 2)


def test_a_view_that_cannot_be_made_gives_the_standard_error_back(monkeypatch):
    closed = []
    shown = Progress(board("a"), Console(file=io.StringIO()))
    monkeypatch.setattr(shown, "is_live", True)
    monkeypatch.setattr(progress, "CapturedErrors", lambda: noting_its_end(closed))
    monkeypatch.setattr(progress, "Live", lambda *given, **named: 1 / 0)
    with pytest.raises(ZeroDivisionError), shown:
        pass
    assert closed == ["closed"]


@contextmanager
def noting_its_end(closed):
    """A stand-in for the captured standard error that notes its end."""
    try:
        yield
    finally:
        closed.append("closed")
