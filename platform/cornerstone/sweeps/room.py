"""Starting trials as the cluster has room for them, which an autoscaler may add and take away."""

from __future__ import annotations

import time
from typing import Any

from ray.tune.search import Searcher

from cornerstone.recipes.placement import Placement
from cornerstone.runtime import autoscaler, capacity
from cornerstone.runtime.cluster import POLL_EVERY
from cornerstone.tracking.board import Board

MOST_ASKED = 64
"""Trials that the autoscaler is asked to make room for at a time."""


def trials_at_a_time(placement: Placement) -> int:
    """How many trials fit on the nodes that are there: at least 1, or as many as the placement names."""
    return placement.concurrent_trials or max(1, capacity.trials_held(placement, capacity.nodes()))


class AsRoomAllows(Searcher):
    """Gives Ray Tune the trials `{"index": 0}`, `{"index": 1}` .. in order, each as soon as the cluster holds one more.

    `concurrent_trials` of the placement is the most at a time; 0 for no limit. Beside an autoscaler, trials that wait are
    asked for, and nothing is asked for as soon as none waits. Without one, the number of trials that the nodes hold is the
    number that runs, and at least one. The board shows why trials wait.
    """

    def __init__(self, trials: int, placement: Placement, board: Board) -> None:
        super().__init__()
        self._trials, self._placement, self._board = trials, placement, board
        self._running: set[str] = set()
        self._started = 0
        self._grows = autoscaler.present()
        self._request = autoscaler.Request(placement)
        self._looked = self._waited_since = float("-inf")

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial; None as long as there is no room for it, and after the last one."""
        if self._started == self._trials or not self._may_start():
            return None
        self._running.add(trial_id)
        self._started += 1
        self._board.waits_for = ""
        return {"index": self._started - 1}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The trial ended, in whatever way."""
        self._running.discard(trial_id)
        self._looked = float("-inf")

    def close(self) -> None:
        """The sweep ended, or was stopped: the cluster may shrink."""
        self._board.waits_for = ""
        self._request.withdraw()

    def _may_start(self) -> bool:
        running, most = len(self._running), self._placement.concurrent_trials or self._trials
        if running >= most:
            self._say_waiting(f"for one of {most} to end (--placement.concurrent-trials {most})")
            return False
        if not self._grows:
            if running < trials_at_a_time(self._placement):
                return True
            each = " each" * (self._trials - self._started > 1)
            self._say_waiting(f"for {self._placement.needs}{each}; the cluster has {_has()}")
            return False
        now = time.monotonic()
        if now - self._looked < POLL_EVERY:  # Tune asks many times a second
            return False
        self._looked = now
        if running < capacity.trials_held(self._placement, capacity.nodes()):
            self._request.withdraw(autoscaler.SETTLE)
            self._looked = self._waited_since = float("-inf")
            return True
        if not running and self._has_waited(now):
            return True  # Ray Train says what is missing
        self._wait(min(most, self._trials - self._started + running) - running)
        return False

    def _wait(self, trials: int) -> None:
        """Ask for room for so many trials more."""
        if self._request.holds_room():
            self._request.withdraw(autoscaler.SETTLE)
        self._request.ask(min(trials, MOST_ASKED))
        self._say_waiting(
            f"for the autoscaler to add room, each for {self._placement.arithmetic()} (the cluster has {_has()}; "
            f"{len(self._running)} run; asked for {min(trials, MOST_ASKED)} more)"
        )

    def _say_waiting(self, for_what: str) -> None:
        waiting = self._trials - self._started
        self._board.waits_for = f"{waiting} trial{'s wait' if waiting > 1 else ' waits'} {for_what}"

    def _has_waited(self, now: float) -> bool:
        if self._waited_since == float("-inf"):
            self._waited_since = now
        return now - self._waited_since > self._placement.wait_limit

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a sweep that is continued knows by its own records which trials are left."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see `save`."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing, see `save`."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune stores its arguments; an autoscaler request cannot be pickled."""
        return {"_trials": self._trials}


def _has() -> str:
    return capacity.in_words(capacity.nodes())
