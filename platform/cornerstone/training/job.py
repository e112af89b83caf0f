"""A job: a prepared recipe, a placement and an identity. It is all that is sent to the workers."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from cornerstone.data.layout import Layout
from cornerstone.data.storage import Location
from cornerstone.recipes.placement import Placement
from cornerstone.recipes.recipe import Recipe
from cornerstone.runtime.home import home
from cornerstone.tracking.address import Address
from cornerstone.tracking.run_store import RunStore, run_folder
from cornerstone.training.prepared import Prepared

_CHECKPOINT = "step-"


def checkpoint_name(steps: int) -> str:
    """Name of the checkpoint folder after `steps` steps."""
    return f"{_CHECKPOINT}{steps:09d}"


def steps_done(name: str) -> int:
    """The number of steps done, from the name of a checkpoint's folder."""
    return int(name.removeprefix(_CHECKPOINT))


@dataclass(frozen=True)
class Identity:
    """What identifies a run: a UUID that this project makes, and the id of the MLflow run that was opened for it.

    `sweep` and `point` are names for people, on boards.
    """

    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    home: str = field(default_factory=lambda: home().uri)
    tracking: Address = field(default_factory=lambda: Address(""))
    mlflow_run: str | None = None
    sweep: str = ""
    point: str = ""

    @property
    def folder(self) -> Location:
        """What the run leaves: `model/` and the files of its store."""
        return run_folder(self.home, self.run)

    @property
    def checkpoints(self) -> Location:
        """Where Ray Train keeps this run's checkpoints."""
        return Location(self.home).join("checkpoints")


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

    def store(self, rank: int, say: Callable[[str], None]) -> RunStore:
        """Open the run's store as the worker of this rank."""
        return RunStore(self.identity.run, self.identity.home, rank, say)

    def layout(self, workers: int) -> Layout:
        """How the stream is cut for `workers` workers: the world size of Ray Train, which can differ from the placement's."""
        return Layout(self.prepared.stream(), workers)

    def recorded(self, tracking: Address | str, mlflow_run: str | None) -> Job:
        """The same job, with the MLflow run that was opened for it."""
        return replace(self, identity=replace(self.identity, tracking=Address.of(tracking), mlflow_run=mlflow_run))
