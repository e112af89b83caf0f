"""Progress of trials in the driver's terminal: workers send it, an actor holds it, a thread of the driver shows it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.live import Live
from rich.text import Text

from cornerstone.tracking.board import DONE, FAILED, Board
from cornerstone.tracking.captured_output import CapturedErrors
from cornerstone.tracking.live_view import LiveView
from cornerstone.tracking.progress_lines import ProgressLines

LOOK_EVERY = 1.0  # seconds
READ_SECONDS = 5.0  # most that a reading of the statuses waits
PATIENCE = 1.0  # seconds that a signal handler waits for a view that is being drawn
SHOW_CURSOR = "\x1b[?25h"


@ray.remote(num_cpus=0)
class ProgressActor:
    """Holds every trial's latest status: workers send it, the driver reads it."""

    def __init__(self) -> None:
        self.statuses: dict[str, dict[str, Any]] = {}

    def update(self, run: str, status: dict[str, Any]) -> None:
        """Merge a trial's status into its last one; notices are kept, in their order."""
        last = self.statuses.get(run, {})
        notices = [*last.get("notices", []), *([status["notice"]] if "notice" in status else [])]
        self.statuses[run] = {**last, **status, "notices": notices}

    def read(self) -> dict[str, dict[str, Any]]:
        """Every trial's status, by its run's UUID."""
        return self.statuses


class ProgressSender:
    """Sends a trial's status to the actor; a call never waits.

    Keys of a status: `notice` (a text that is printed once), `state` (`board.BUILDING` and so on, or a text), `metrics`,
    `restarts` (how often the run was started before), and, with the state "training", `step`, `steps`, `loss`, `pace` (seconds
    a step), `waits`, `left`, `first_block`; with the states "done" and "failed" `seconds` and `error`.
    """

    def __init__(self, actor: Any, run: str) -> None:
        self._actor, self._run = actor, run

    def __call__(self, status: dict[str, Any]) -> None:
        """Send a status, or a part of it."""
        self._actor.update.remote(self._run, status)

    def ended(self, seconds: float, metrics: Mapping[str, float], error: str = "") -> None:
        """Send that the trial has ended."""
        self({"state": FAILED if error else DONE, "seconds": seconds, "metrics": dict(metrics), "error": error})


class Progress:
    """Shows a board within a `with` block: a live view in a terminal, a line for each event elsewhere.

    What others print through the console, or write to the standard error, appears above the view. At the end of the block
    the thread that reads the statuses has ended, after READ_SECONDS for each of two readings at most.
    """

    def __init__(self, board: Board, console: Console) -> None:
        self.board, self.is_live = board, _is_terminal(console)
        self._console, self._lines = console, ProgressLines(board)
        self._actor: Any = None
        self._lock, self._stop = threading.RLock(), threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True, name="progress")
        self._view = ExitStack()
        self._live: Live | None = None
        self._errors: CapturedErrors | None = None

    @property
    def actor(self) -> Any:
        """What holds the statuses; it is started by the first use, since that needs Ray."""
        if self._actor is None:  # on the driver's node: others may be lost, or kept from shrinking
            here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
            self._actor = ProgressActor.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
        return self._actor

    def sender(self, run: str) -> ProgressSender:
        """What sends the statuses of a trial, from any process."""
        return ProgressSender(self.actor, run)

    def __enter__(self) -> Progress:
        try:
            if self.is_live:
                self._open_view()
            self._thread.start()
        except BaseException:  # also Ctrl-C: nobody else would give the standard error back
            self._view.close()
            raise
        return self

    def _open_view(self) -> None:
        self._errors = self._view.enter_context(CapturedErrors())
        live = Live(
            LiveView(self.board, time.monotonic),
            console=self._console,
            auto_refresh=False,
            redirect_stderr=False,  # a terminal's is captured, and a file's belongs in the file
        )
        self._live = self._view.enter_context(live)

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()  # Ray is shut down next, and a thread that uses it then brings down the whole process
        with self._lock:
            self._close()

    def say_last(self, text: str) -> None:
        """End the view, then print. For signal handlers: the process may be killed right after it."""
        self._stop.set()
        if self._lock.acquire(timeout=PATIENCE):
            try:
                self._close()
            finally:
                self._lock.release()
            self._print(text)
        else:  # this thread was interrupted while it held what the view's thread waits for: write without the lock and rich
            os.write(self._console.file.fileno(), f"{SHOW_CURSOR * self.is_live}\n{text}\n".encode())

    def _close(self) -> None:
        if self._live is not None:
            self._show()
            self._live = None
            self._view.close()
            self._show_errors()

    def _follow(self) -> None:
        while not self._stop.wait(LOOK_EVERY):
            self._look()
        if not self.is_live or self._live is not None:
            self._look()  # the last statuses, a trial's failure among them

    def _look(self) -> None:
        try:
            statuses = ray.get(self._actor.read.remote(), timeout=READ_SECONDS) if self._actor is not None else {}
        except Exception:  # without its progress a sweep goes on
            statuses = {}
        with self._lock:
            self.board.update(statuses, time.monotonic())
            self._show()

    def _show(self) -> None:
        """Print what is new, and draw the view again."""
        for line in self._lines.notices():
            self._print(line)
        if not self.is_live:
            for line in self._lines.new(time.monotonic()):
                self._print(line)
        elif self._live is not None:
            for line in self._lines.failures():
                self._print(line)
            self._show_errors()
            self._live.refresh()

    def _show_errors(self) -> None:
        """Print what was written to the standard error."""
        for line in self._errors.new() if self._errors is not None else ():
            self._console.print(Text.from_ansi(line), soft_wrap=True)

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def _is_terminal(console: Console) -> bool:
    """Whether a view can be drawn again and again in the same place."""
    return console.is_terminal and console.is_interactive and not console.is_dumb_terminal and console.file.isatty()
