"""The sweeps that a tracking server or store knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cornerstone.errors import CornerstoneError, did_you_mean
from cornerstone.tracking.address import VARIABLE, Address
from cornerstone.tracking.mlflow_client import first_line, open_client
from cornerstone.tracking.mlflow_view import TAG

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Run

MOST = 500


@dataclass(frozen=True)
class RecordedSweep:
    """A sweep, its experiment's name and id, and the id of its own run."""

    name: str
    experiment: str
    experiment_id: str
    parent: str
    has_view: bool
    """Whether MLflow has the view of its trials, which older versions did not make."""


def recorded_sweeps(address: Address) -> list[RecordedSweep]:
    """The last ones, the newest first.

    Raises CornerstoneError if there is no store yet, or if it cannot be read.
    """
    database = address.database
    if database is not None and not database.exists():
        raise CornerstoneError(
            f"There are no records of MLflow yet: {database} does not exist. Run an experiment first, or name the store by "
            f"{VARIABLE}, or the home that has one by CORNERSTONE_HOME (`make demo` uses .cornerstone in the project)."
        )
    try:
        client = open_client(address)
        experiments = {one.experiment_id: one for one in client.search_experiments()}
        runs = client.search_runs(
            list(experiments), "tags.`cornerstone.parent` = 'true'", max_results=MOST, order_by=["start_time DESC"]
        )
    except Exception as error:  # whatever a store or its client raises
        raise CornerstoneError(
            f"MLflow at {address} cannot be read ({first_line(error)}). Check {VARIABLE}."
        ) from error
    return [_recorded(run, experiments[run.info.experiment_id]) for run in runs]


def _recorded(run: Run, experiment: Experiment) -> RecordedSweep:
    name = run.data.tags["cornerstone.sweep"]
    has_view = f"{TAG}{name}" in experiment.tags
    return RecordedSweep(name, experiment.name, experiment.experiment_id, run.info.run_id, has_view)


def chosen(sweeps: list[RecordedSweep], name: str, address: Address) -> RecordedSweep | None:
    """The sweep of that name; without a name the newest one, or None. CornerstoneError if there is no such sweep."""
    if not name:
        return sweeps[0] if sweeps else None
    found = next((one for one in sweeps if one.name == name), None)
    if found is None:
        hint = did_you_mean(name, (one.name for one in sweeps)) if sweeps else ". There are no sweeps yet."
        raise CornerstoneError(f"MLflow at {address} has no sweep {name!r}{hint}")
    return found
