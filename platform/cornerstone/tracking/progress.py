"""Progress of a sweep's trials in the driver's terminal: a line per trial now and then, each notice once."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import ray
from rich.console import Console

LINE_EVERY = 15.0  # seconds between lines about the same trial
READ_SECONDS = 5.0
"""Most that a reading of the statuses waits."""
WAIT_SHARE = 0.05  # share of the time that steps wait for data, from which a line mentions it


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

    Keys of a status: `notice` (a text that is printed once), `state`, and, with the state "training", `step`, `steps`, `loss`,
    `waits`, `left`, `first_block`.
    """

    def __init__(self, actor: Any, run: str) -> None:
        self._actor, self._run = actor, run

    def __call__(self, status: dict[str, Any]) -> None:
        """Send a status, or a part of it."""
        self._actor.update.remote(self._run, status)


class ProgressPrinter:
    """Reads the actor every second in a thread, and prints what changed.

    At the end of the block the thread has ended, after READ_SECONDS for each of two readings at most.
    """

    def __init__(self, actor: Any, runs: Sequence[tuple[str, str]], console: Console) -> None:
        """`runs` are the trials' UUIDs and names, in the order of the table."""
        self._actor, self._runs, self._console = actor, list(runs), console
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True, name="progress")
        self._printed: dict[str, tuple[str, float]] = {}  # the state of each trial's last line, and when it was printed
        self._lines: dict[str, str] = {}
        self._notices: set[tuple[str, str]] = set()
        self._with_first_block: set[str] = set()

    def __enter__(self) -> ProgressPrinter:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()  # Ray is shut down next, and a thread that uses it then brings down the whole process

    def _follow(self) -> None:
        while not self._stop.wait(1.0):
            self._read()
        self._read()  # the last statuses, a trial's failure among them

    def _read(self) -> None:
        try:
            statuses = ray.get(self._actor.read.remote(), timeout=READ_SECONDS)
        except Exception:  # without its progress lines a sweep goes on
            return
        for place, (run, name) in enumerate(self._runs):
            if run in statuses:
                self._print(run, f"[{place + 1}/{len(self._runs)}] {name}", statuses[run])

    def _print(self, run: str, name: str, status: dict[str, Any]) -> None:
        for notice in status.get("notices", []):
            if (run, notice) not in self._notices:
                self._notices.add((run, notice))
                self._console.print(f"{name}: {notice}", highlight=False, markup=False, soft_wrap=True)
        if "state" not in status:
            return
        state, now = str(status["state"]), time.monotonic()
        last_state, last_time = self._printed.get(run, ("", 0.0))
        if state == last_state and (state != "training" or now - last_time < LINE_EVERY):
            return
        self._printed[run] = (state, now)
        text = self._training(run, status) if state == "training" and "step" in status else state
        if text != self._lines.get(run):
            self._lines[run] = text
            self._console.print(f"{name}: {text}", highlight=False, markup=False, soft_wrap=True)

    def _training(self, run: str, status: dict[str, Any]) -> str:
        text = f"step {status['step']:,} of {status['steps']:,}"
        text += f", loss {status['loss']:.3f}" if "loss" in status else ""
        text += f", {status['waits']:.0%} waiting for data" if status.get("waits", 0) >= WAIT_SHARE else ""
        text += f", {_duration(status['left'])} left" if status.get("left") else ""
        if status.get("first_block") is not None and run not in self._with_first_block:
            self._with_first_block.add(run)
            text += f" (first block after {status['first_block']:.1f} s)"
        return text


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
