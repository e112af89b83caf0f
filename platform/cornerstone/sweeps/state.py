"""What a sweep leaves on disk: which trials it has, and the result of each as soon as it is there.

A continued sweep reads this, keeps what is finished, and launches the rest under the same identities: a trial that was
interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError, did_you_mean
from cornerstone.runtime.home import home


@dataclass(frozen=True)
class TrialRecord:
    """One trial: a point at a seed, its run's UUID, and what identifies its numbers."""

    point: str
    seed: int
    run: str
    recipe_hash: str
    eval_hash: str


@dataclass(frozen=True)
class TrialResult:
    """What became of a trial. `error` is empty where it finished."""

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

    @property
    def finished(self) -> bool:
        """Whether it has its numbers."""
        return not self.error


def new_sweep_id() -> str:
    """A name that sorts by time and that nobody else has: 20260131-142501-3f9a."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"


@dataclass(frozen=True)
class SweepState:
    """The sweep's folder under the home."""

    sweep: str
    folder: Location

    @staticmethod
    def of(sweep: str) -> SweepState:
        """The state of a sweep by its name."""
        return SweepState(sweep, home().join("sweeps", sweep))

    def write(self, experiment: str, trials: Sequence[TrialRecord]) -> None:
        """Record which trials there are, before the first one starts."""
        described = {"experiment": experiment, "trials": [asdict(t) for t in trials]}
        self.folder.join("sweep.json").write_text(json.dumps(described, indent=1) + "\n")

    def read(self, experiment: str) -> list[TrialRecord]:
        """The trials of an earlier start; CornerstoneError where there was none, or of another experiment."""
        path = self.folder.join("sweep.json")
        if not path.exists():
            known = home().join("sweeps").list()
            hint = did_you_mean(self.sweep, known) if known else ". There is none yet."
            raise CornerstoneError(f"No sweep {self.sweep!r} under {home().join('sweeps')}{hint}")
        described: dict[str, Any] = json.loads(path.read_text())
        if described["experiment"] != experiment:
            raise CornerstoneError(f"Sweep {self.sweep} is of {described['experiment']!r}, not of {experiment!r}.")
        return [TrialRecord(**trial) for trial in described["trials"]]

    def save(self, result: TrialResult) -> None:
        """Keep a trial's result."""
        self.folder.join("trials", f"{result.run}.json").write_text(json.dumps(asdict(result), indent=1) + "\n")

    def result(self, run: str) -> TrialResult | None:
        """The result of a trial, where it has one."""
        path = self.folder.join("trials", f"{run}.json")
        return TrialResult(**json.loads(path.read_text())) if path.exists() else None
