"""The sweeps that a tracking server or store knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from cornerstone.errors import CornerstoneError, first_line, nearest
from cornerstone.tracking.address import VARIABLE, Address
from cornerstone.tracking.mlflow_client import open_client
from cornerstone.tracking.mlflow_view import TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

T = TypeVar("T")
SWEEPS = "tags.`cornerstone.parent` = 'true'"
MOST = 500
"""Sweeps among which the nearest name is looked up."""


@dataclass(frozen=True)
class RecordedSweep:
    """A sweep, its experiment's name and id, and the id of its own run."""

    name: str
    experiment: str
    experiment_id: str
    parent: str
    has_view: bool
    """Whether MLflow has the view of its trials, which older versions did not make."""


def find_sweep(address: Address, name: str = "") -> RecordedSweep | None:
    """The sweep of that name; without a name the newest one, or None if there is none.

    Raises CornerstoneError if there is no store yet, if it cannot be read, or if it has no sweep of that name.
    """
    if not name:
        return next(iter(_recorded_sweeps(address, SWEEPS, most=1)), None)
    has_quotes = bool(set(name) & set("'\"`"))  # MLflow's queries have no way to write them
    query = f"tags.`cornerstone.parent_of` = '{name}'"
    if not has_quotes and (found := _recorded_sweeps(address, query, most=1)):
        return found[0]
    known = [one.name for one in _recorded_sweeps(address, SWEEPS, MOST)]
    hint = nearest(name, known) if known else ". There are no sweeps yet."
    raise CornerstoneError(f"MLflow at {address} has no sweep {name!r}{hint}")


def _recorded_sweeps(address: Address, query: str, most: int) -> list[RecordedSweep]:
    """The newest first."""
    database = address.database
    if database is not None and not database.exists():
        raise CornerstoneError(
            f"There are no records of MLflow yet: {database} does not exist. Run an experiment first, or name the store by "
            f"{VARIABLE}, or the home that has one by CORNERSTONE_HOME (`make demo` uses .cornerstone in the project)."
        )

    def search(client: MlflowClient) -> list[RecordedSweep]:
        experiments = {one.experiment_id: one for one in client.search_experiments()}
        runs = client.search_runs(list(experiments), query, max_results=most, order_by=["start_time DESC"])
        return [_recorded(run, experiments[run.info.experiment_id]) for run in runs]

    return _read(address, search)


def _read(address: Address, question: Callable[[MlflowClient], T]) -> T:
    try:
        return question(open_client(address))
    except Exception as error:  # whatever a store or its client raises
        raise CornerstoneError(
            f"MLflow at {address} cannot be read ({first_line(error)}). Check {VARIABLE}."
        ) from error


def _recorded(run: Run, experiment: Experiment) -> RecordedSweep:
    name = run.data.tags["cornerstone.sweep"]
    has_view = f"{TAG}{name}" in experiment.tags
    return RecordedSweep(name, experiment.name, experiment.experiment_id, run.info.run_id, has_view)


def any_experiment(address: Address) -> tuple[str, int | None]:
    """The id of an experiment, with or without sweeps, and when it was made (in ms), by which a store is recognised.

    Raises CornerstoneError if the store cannot be read.
    """
    from mlflow.entities import ViewType

    found = _read(address, lambda client: client.search_experiments(ViewType.ALL, max_results=1)[0])
    return found.experiment_id, found.creation_time
