"""A job: one recipe on one placement under one identity. It is all that travels to the workers."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path

from cornerstone.data.layout import Layout
from cornerstone.data.storage import Location
from cornerstone.recipes.placement import Placement
from cornerstone.recipes.recipe import Recipe
from cornerstone.runtime.home import home
from cornerstone.training.prepare import Prepared

_CHECKPOINT = "step-"


def checkpoint_name(steps: int) -> str:
    """The folder of the checkpoint after so many steps."""
    return f"{_CHECKPOINT}{steps:09d}"


def steps_done(name: str) -> int:
    """Steps done by the checkpoint in a folder of this name."""
    return int(name.removeprefix(_CHECKPOINT))


@dataclass(frozen=True)
class Identity:
    """Who a run is: a UUID of our own, known before any server answers, and the MLflow run that was opened for it."""

    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    home: str = field(default_factory=lambda: home().uri)
    tracking_uri: str = ""
    mlflow_run: str | None = None

    @property
    def folder(self) -> Location:
        """What the run leaves: model, journal, quarantine."""
        return Location(self.home).join("runs", self.run)

    @property
    def checkpoints(self) -> Location:
        """Where Ray Train keeps this run's checkpoints."""
        return Location(self.home).join("checkpoints")

    @property
    def local_folder(self) -> Path:
        """The run's folder where it is on a local disk; else one on this worker's own disk."""
        folder = self.folder
        return Path(folder.uri) if folder.is_local else Path.home() / ".cornerstone" / "runs" / self.run


@dataclass(frozen=True)
class Job:
    """What a worker needs to train."""

    prepared: Prepared
    placement: Placement
    identity: Identity

    @property
    def recipe(self) -> Recipe:
        """The recipe."""
        return self.prepared.recipe

    def layout(self) -> Layout:
        """The stream's cut for this placement."""
        return Layout(self.prepared.stream(), self.placement.workers)

    def recorded(self, tracking_uri: str, mlflow_run: str | None) -> Job:
        """The same job, with the MLflow run that was opened for it."""
        return replace(self, identity=replace(self.identity, tracking_uri=tracking_uri, mlflow_run=mlflow_run))
