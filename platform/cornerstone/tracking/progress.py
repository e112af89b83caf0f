"""What a person sees while a sweep runs: a line now and then from every trial."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import ray
from rich.console import Console

LINE_EVERY = 15.0  # seconds between lines about the same trial in a log
WORTH_SAYING = 0.05  # share of the time that steps wait for data


@ray.remote(num_cpus=0)
class Board:
    """Holds the latest word of every trial; workers write, the driver reads."""

    def __init__(self) -> None:
        self.words: dict[str, dict[str, Any]] = {}

    def tell(self, run: str, word: dict[str, Any]) -> None:
        """A trial's news."""
        self.words[run] = {**self.words.get(run, {}), **word}

    def read(self) -> dict[str, dict[str, Any]]:
        """Everybody's latest."""
        return self.words


class Teller:
    """What a trial is given to report with; calling it never waits."""

    def __init__(self, board: Any, run: str) -> None:
        self._board, self._run = board, run

    def __call__(self, word: dict[str, Any]) -> None:
        """Send news to the board."""
        self._board.tell.remote(self._run, word)


class Watcher:
    """Follows the board in a thread and prints what changes."""

    def __init__(self, board: Any, runs: Sequence[tuple[str, str]], console: Console) -> None:
        """`runs` are the trials' UUIDs and names, in the order of the table."""
        self._board, self._runs, self._console = board, list(runs), console
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True, name="progress")
        self._said: dict[str, tuple[str, float]] = {}
        self._lines: dict[str, str] = {}
        self._advised: set[str] = set()
        self._begun: set[str] = set()

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(5)

    def _follow(self) -> None:
        while not self._stop.wait(1.0):
            self._look()
        self._look()  # what came last, a trial's failure among it

    def _look(self) -> None:
        try:
            words = ray.get(self._board.read.remote(), timeout=5)
        except Exception:  # the board is a convenience: its loss must not disturb a sweep
            return
        for place, (run, name) in enumerate(self._runs):
            if run in words:
                self._say(run, f"[{place + 1}/{len(self._runs)}] {name}", words[run])

    def _say(self, run: str, name: str, word: dict[str, Any]) -> None:
        if "advice" in word and run not in self._advised:
            self._advised.add(run)
            self._console.print(f"{name}: {word['advice']}", highlight=False, markup=False, soft_wrap=True)
        state, now = str(word.get("state", "training")), time.monotonic()
        last_state, last_time = self._said.get(run, ("", 0.0))
        if state == last_state and (state != "training" or now - last_time < LINE_EVERY):
            return
        self._said[run] = (state, now)
        if state == "training" and "step" in word:
            text = f"step {word['step']:,} of {word['steps']:,}"
            text += f", loss {word['loss']:.3f}" if "loss" in word else ""
            text += f", {word['waits']:.0%} waiting for data" if word.get("waits", 0) >= WORTH_SAYING else ""
            text += f", {_duration(word['left'])} left" if word.get("left") else ""
            if word.get("first_batch") is not None and run not in self._begun:
                self._begun.add(run)
                text += f" (first batch after {word['first_batch']:.1f} s)"
        else:
            text = state
        if text != self._lines.get(run):
            self._lines[run] = text
            self._console.print(f"{name}: {text}", highlight=False, markup=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
