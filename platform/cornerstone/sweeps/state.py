"""A sweep's files: which trials it has, which candidates it chose, and the result of each trial as soon as it ends.

A sweep that is continued reads them, keeps the finished trials, and starts the others under the same identities, so that
an interrupted trial resumes from its last checkpoint.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError, nearest
from cornerstone.runtime.home import home

STOPPED = "stopped before it had a result"


@dataclass(frozen=True)
class TrialRecord:
    """One trial: its row's name, the seed's number, its run's UUID, and the hashes and the seed that identify its numbers."""

    point: str
    seed: int
    run: str
    recipe_hash: str
    eval_hash: str
    recipe_seed: int = 0
    """The seed of its recipe: the experiment's own seed plus the number."""

    @property
    def identity(self) -> tuple[str, str, int]:
        """What a continued trial must have in common with its first start."""
        return self.recipe_hash, self.eval_hash, self.recipe_seed


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended. `error` is empty if it finished. Files of older versions lack the fields from `queries` on."""

    point: str
    seed: int
    run: str
    metrics: dict[str, float] = field(default_factory=dict)
    model: str = ""
    checkpoint: str = ""
    best_checkpoint: str = ""
    seconds: float = 0.0
    error: str = ""
    unsent: int = 0
    queries: dict[str, int] = field(default_factory=dict)
    """The number of queries that each metric was measured on."""
    chance: dict[str, float] = field(default_factory=dict)
    """What a random choice would reach, in percent."""
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """The 95 % interval of each metric over its queries, drawn by image or group."""

    @property
    def finished(self) -> bool:
        """Whether it has its metrics."""
        return not self.error

    @property
    def stopped(self) -> bool:
        """Whether it neither finished nor failed by itself: it was interrupted, or its process was killed."""
        return self.error == STOPPED


def new_sweep_id() -> str:
    """A unique name that sorts by time: 20260131-142501-3f9a."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"


@dataclass(frozen=True)
class SweepState:
    """The sweep's folder under `CORNERSTONE_HOME`."""

    sweep: str
    folder: Location

    @staticmethod
    def of(sweep: str) -> SweepState:
        """The state of a sweep by its name."""
        return SweepState(sweep, home().join("sweeps", sweep))

    def write(self, experiment: str, trials: Sequence[TrialRecord], choices: Mapping[str, str] | None = None) -> None:
        """Record the trials before they start, and the chosen candidate of each point that has chosen one."""
        described = {"experiment": experiment, "trials": [asdict(t) for t in trials], "choices": dict(choices or {})}
        self.folder.join("sweep.json").write_text(json.dumps(described, indent=1) + "\n")

    def read(self, experiment: str) -> list[TrialRecord]:
        """The trials of an earlier start; CornerstoneError if there was none, or if it ran another experiment."""
        return [TrialRecord(**trial) for trial in self._described(experiment)["trials"]]

    def choices(self, experiment: str) -> dict[str, str]:
        """The candidates that an earlier start chose, by point."""
        return dict(self._described(experiment).get("choices", {}))

    def _described(self, experiment: str) -> dict[str, Any]:
        path = self.folder.join("sweep.json")
        if not path.exists():
            known = home().join("sweeps").list()
            hint = nearest(self.sweep, known) if known else ". There are no sweeps yet."
            raise CornerstoneError(f"No sweep {self.sweep!r} under {home().join('sweeps')}{hint}")
        described: dict[str, Any] = json.loads(path.read_text())
        if described["experiment"] != experiment:
            raise CornerstoneError(f"Sweep {self.sweep} belongs to {described['experiment']!r}, not to {experiment!r}.")
        return described

    def save(self, result: TrialResult) -> None:
        """Write a trial's result."""
        self.folder.join("trials", f"{result.run}.json").write_text(json.dumps(asdict(result), indent=1) + "\n")

    def forget(self, run: str) -> None:
        """Remove a trial's result."""
        path = self.folder.join("trials", f"{run}.json")
        if path.exists():
            path.remove()

    def result(self, run: str) -> TrialResult | None:
        """The result of a trial, if it has one."""
        path = self.folder.join("trials", f"{run}.json")
        return TrialResult(**json.loads(path.read_text())) if path.exists() else None
