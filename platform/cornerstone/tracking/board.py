"""What the trials of a sweep do, as a terminal shows it: a plain state, which statuses change. No Ray, no terminal."""

from __future__ import annotations

import copy
import heapq
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, NamedTuple

WORKERS, BUILDING = "starting its workers", "building the model"
TRAINING, DONE, FAILED = "training", "done", "failed"
"""States that mean something; others are texts to show."""


class Phase(Enum):
    """Where a trial stands."""

    WAITS = "waits"
    RUNS = "runs"
    DONE = "done"
    FAILED = "failed"


class Primary(NamedTuple):
    """The metric that the trials are compared by (`eval/dci/i2t_r1`), its label and its unit. Higher is better."""

    metric: str
    label: str
    unit: str = "%"

    def of(self, metrics: Mapping[str, float]) -> float:
        """Its value; NaN if it was not measured."""
        return metrics.get(self.metric, math.nan)

    def said(self, value: float) -> str:
        """`dci i→t R@1 21.88 %`."""
        return f"{self.label} {value:.2f} {self.unit}".rstrip()


class Best(NamedTuple):
    """The best row so far: the mean of the primary metric over its seeds that have ended."""

    row: str
    value: float
    seeds: int


@dataclass
class Trial:
    """A trial, and the last that is known of it. Times are seconds of one clock."""

    name: str
    row: str = ""
    steps: int = 0
    phase: Phase = Phase.WAITS
    state: str = ""
    since: float = 0.0
    """When it came into this state."""
    step: int = 0
    pace: float | None = None
    """Seconds a step."""
    loss: float | None = None
    waits: float = 0.0
    """The share of the time in which the steps wait for data."""
    first_block: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    error: str = ""
    seconds: float | None = None
    """How long it ran, as soon as it has ended."""
    restarts: int = 0
    """How often its workers were started again since it is watched."""
    notices: list[str] = field(default_factory=list)
    earlier: bool = False
    """Whether it had finished before the sweep was continued."""
    began: float = 0.0
    ends: float | None = None
    """When its last step is expected to end."""
    _restarts_at_first: int | None = None

    @property
    def has_ended(self) -> bool:
        """Whether it has a result."""
        return self.phase in (Phase.DONE, Phase.FAILED)

    @property
    def share(self) -> float:
        """The share of its steps that are done."""
        return 1.0 if self.has_ended else self.step / self.steps if self.steps else 0.0

    def left(self, now: float) -> float | None:
        """Seconds until its last step; None if it is not known."""
        return None if self.ends is None else max(self.ends - now, 0.0)

    def update(self, status: Mapping[str, Any], now: float) -> None:
        """Take up a status (`progress.ProgressSender`); the same one again changes nothing."""
        self.notices = list(status.get("notices", ()))
        self.metrics = dict(status.get("metrics", self.metrics))
        if (restarts := status.get("restarts")) is not None:
            self._restarts_at_first = restarts if self._restarts_at_first is None else self._restarts_at_first
            self.restarts = restarts - self._restarts_at_first
        state = status.get("state", "")
        if not state or (self.has_ended and state not in (DONE, FAILED)):  # a worker's last status may come late
            return
        if self.phase is Phase.WAITS:
            self.began = now
        if changed := state != self.state:
            self.state, self.since = state, now
        if state in (DONE, FAILED):
            self.phase, self.error = (Phase.DONE, "") if state == DONE else (Phase.FAILED, str(status.get("error", "")))
            self.seconds = status.get("seconds", now - self.began)
            self.ends = None
            return
        self.phase = Phase.RUNS
        if state == TRAINING:
            self._train(status, now, changed)
        elif not self.state.startswith("evaluated"):  # it begins, maybe once more
            self.step, self.pace, self.loss, self.ends = 0, None, None, None

    def _train(self, status: Mapping[str, Any], now: float, changed: bool) -> None:
        moved = status.get("step", 0) != self.step
        self.step, self.steps = status.get("step", 0), status.get("steps", self.steps)
        self.loss, self.waits = status.get("loss"), status.get("waits", 0.0)
        self.pace, self.first_block = status.get("pace"), status.get("first_block")
        left = status.get("left")
        if left is None:
            self.ends = None
        elif moved or changed or self.ends is None:
            self.ends = now + left


@dataclass
class Board:
    """The trials of a sweep in the order in which they became known, by the UUIDs of their runs."""

    title: str = ""
    primary: Primary | None = None
    trials: dict[str, Trial] = field(default_factory=dict)
    later: int = 0
    """Trials that become known when others have ended, such as those that start from another one's model."""
    at_a_time: int = 1
    """How many trials run side by side if enough are left."""
    waits_for: str = ""
    """Why trials wait: `3 trials wait for ..`; "" if none does."""
    doing: str = ""
    """What is done beside the trials, such as preparing the next ones' data."""

    def add(self, run: str, name: str, *, row: str = "", steps: int = 0) -> None:
        """A trial that is going to run."""
        self.trials.setdefault(run, Trial(name, row or name, steps))

    def end(self, run: str, metrics: Mapping[str, float], seconds: float = 0.0, error: str = "") -> None:
        """A trial has ended, without having been watched: in an earlier start, or before it could begin."""
        trial = self.trials[run]
        trial.phase, trial.error = (Phase.FAILED, error) if error else (Phase.DONE, "")
        trial.state, trial.metrics, trial.seconds = trial.phase.value, dict(metrics), seconds or None
        trial.earlier = not error

    def refuse(self, name: str, error: str) -> None:
        """A trial that cannot be prepared."""
        run = f"not started: {name}"
        self.add(run, name)
        self.end(run, {}, error=error)

    def update(self, statuses: Mapping[str, Mapping[str, Any]], now: float) -> None:
        """Take up the statuses of trials, by run."""
        for run, status in statuses.items():
            if run in self.trials:
                self.trials[run].update(status, now)

    def snapshot(self) -> Board:
        """A board that does not change: a view may be drawn in one thread while statuses arrive in another."""
        return replace(self, trials={run: copy.copy(trial) for run, trial in list(self.trials.items())})

    def of(self, *phases: Phase) -> list[Trial]:
        """The trials in one of these phases."""
        return [trial for trial in self.trials.values() if trial.phase in phases]

    @property
    def total(self) -> int:
        """How many trials there are, with those that are not known yet."""
        return len(self.trials) + self.later

    @property
    def share(self) -> float:
        """The share of all steps that are done, each trial counted the same."""
        return sum(trial.share for trial in self.trials.values()) / self.total if self.total else 0.0

    def best(self) -> Best | None:
        """The row with the highest mean of the primary metric; the first of equal ones. None before there is a number."""
        if self.primary is None:
            return None
        values: dict[str, list[float]] = {}
        for trial in self.of(Phase.DONE):
            if not math.isnan(value := self.primary.of(trial.metrics)):
                values.setdefault(trial.row, []).append(value)
        means = [Best(row, statistics.fmean(found), len(found)) for row, found in values.items()]
        return max(means, key=lambda best: best.value, default=None)

    def seconds_left(self, now: float) -> float | None:
        """Seconds until the last trial ends, from the time that trials took, or will take; None before one can tell.

        A trial that waits is taken to need as much time a step as those that have ended.
        """
        running, waiting = self.of(Phase.RUNS), self.of(Phase.WAITS)
        if not running and not waiting and not self.later:
            return 0.0
        per_step = _mean(self._seconds_per_step(now))
        steps = [trial.steps for trial in self.trials.values() if trial.steps]
        if per_step is None or not steps:
            return None
        usual = statistics.fmean(steps)
        still = [
            max(per_step * (trial.steps or usual) - (now - trial.began), 0.0) if left is None else left
            for trial in running
            for left in [trial.left(now)]
        ]
        needed = [per_step * n for n in (*(trial.steps or usual for trial in waiting), *[usual] * self.later)]
        return makespan(still, needed, self.at_a_time)

    def _seconds_per_step(self, now: float) -> Iterable[float]:
        """Of the trials that have ended, the time that they took from start to end; of running ones what it will be."""
        ended = [trial for trial in self.of(Phase.DONE) if trial.seconds and trial.steps]
        if ended:
            return [trial.seconds / trial.steps for trial in ended if trial.seconds]
        return [
            (now - trial.began + left) / trial.steps
            for trial in self.of(Phase.RUNS)
            if trial.steps and (left := trial.left(now)) is not None
        ]


def makespan(running: Sequence[float], waiting: Iterable[float], at_a_time: int) -> float:
    """Seconds until the last trial ends: each one that waits starts, in order, where the first of the others ends.

    `running` are the seconds that running trials still need, `waiting` those that the others need from start to end.
    """
    ends = [*running, *[0.0] * (at_a_time - len(running))]
    heapq.heapify(ends)
    for seconds in waiting:
        heapq.heapreplace(ends, ends[0] + seconds)
    return max(ends, default=0.0)


def duration(seconds: float) -> str:
    """`75 s`, `12 min`, `1.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.fmean(found) if found else None
