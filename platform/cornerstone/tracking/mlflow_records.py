"""What goes to MLflow: a parent run a sweep, a child a trial, opened by ids that this project makes itself.

The driver creates runs and finishes them; a trial's first worker sends metrics to the run whose id it was given. Every
call may fail without harm: the first failure is said once, with where the local record lies.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cornerstone.runtime.home import home
from cornerstone.tracking.journal import Line, Sender

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")
LIMIT = 1000  # metrics of one log_batch call


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or a SQLite file under the home (in the user's folder where the home is a remote store)."""
    configured = os.environ.get("MLFLOW_TRACKING_URI")
    if configured:
        return configured
    root = Path(home().uri) if home().is_local else Path.home() / ".cornerstone"
    root.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{root}/mlflow.db"


def _client(uri: str) -> MlflowClient:
    # A server that hangs must not hold anybody for minutes: MLflow's defaults are 120 s and 7 retries.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def metric_sender(uri: str, run_id: str) -> Sender:
    """A function for the journal's thread that sends lines to a run."""
    client = _client(uri)
    from mlflow.entities import Metric

    def send(lines: Sequence[Line]) -> None:
        metrics = [Metric(k, v, line.time_ms, line.step) for line in lines for k, v in line.metrics.items()]
        for start in range(0, len(metrics), LIMIT):
            client.log_batch(run_id, metrics=metrics[start : start + LIMIT])

    return send


class Records:
    """The driver's side. `problem` says why nothing is recorded, where nothing is."""

    def __init__(self, experiment: str, uri: str | None = None, say: Callable[[str], None] = print) -> None:
        self.uri, self.experiment, self.problem = uri or tracking_uri(), experiment, ""
        self._say = say
        self._opened: MlflowClient | None = None
        self.experiment_id = self._try(self._open)

    def _open(self) -> str:
        self._opened = _client(self.uri)
        found = self._opened.get_experiment_by_name(self.experiment)
        if found is not None:
            return str(found.experiment_id)
        artifacts = None
        if self.uri.startswith("sqlite:///"):
            artifacts = (Path(self.uri.removeprefix("sqlite:///")).parent / "mlartifacts" / self.experiment).as_uri()
        return str(self._opened.create_experiment(self.experiment, artifact_location=artifacts))

    @property
    def _mlflow(self) -> MlflowClient:
        if self._opened is None:
            raise ConnectionError(self.problem or "the tracking server was not reached")
        return self._opened

    def _try(self, call: Callable[[], T]) -> T | None:
        try:
            return call()
        except Exception as error:  # records never stop an experiment
            if not self.problem:
                self.problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                self._say(
                    f"MLflow at {self.uri} cannot be reached ({self.problem[:200]}). Training goes on; metrics are kept in the "
                    f"journals under {home().join('runs')}. Check MLFLOW_TRACKING_URI."
                )
            return None

    def start(self, name: str, tags: Mapping[str, str], parent: str | None = None) -> str | None:
        """Create a run (not active in this process); its id, or None where MLflow cannot be reached."""
        if self.experiment_id is None:
            return None
        experiment = self.experiment_id
        all_tags = {**tags, "mlflow.source.type": "JOB"}
        if parent:
            all_tags["mlflow.parentRunId"] = parent
        return self._try(lambda: self._mlflow.create_run(experiment, tags=all_tags, run_name=name).info.run_id)

    def find(self, tag: str, value: str) -> str | None:
        """The id of the experiment's run with that tag: what a continued sweep goes on writing to."""
        if self.experiment_id is None:
            return None
        query = f"tags.`{tag}` = '{value}'"
        found = self._try(lambda: self._mlflow.search_runs([str(self.experiment_id)], query, max_results=1))
        return found[0].info.run_id if found else None

    def describe(
        self, run_id: str | None, *, params: Mapping[str, Any], recipe: Mapping[str, Any], data: Mapping[str, Any]
    ) -> None:
        """Params, the recipe as an artifact, and the data set as a logged input with its digest."""
        if run_id is None:
            return
        self._try(lambda: self._describe(run_id, params, recipe, data))

    def _describe(
        self, run_id: str, params: Mapping[str, Any], recipe: Mapping[str, Any], data: Mapping[str, Any]
    ) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        self._mlflow.log_batch(run_id, params=[Param(k, str(v)[:6000]) for k, v in params.items()])
        self._mlflow.log_dict(run_id, dict(recipe), "recipe.json")
        source, profile = json.dumps({"uri": data["uri"]}), json.dumps({"num_rows": data["rows"]})
        dataset = Dataset(data["name"], data["digest"], "local", source, profile=profile)
        self._mlflow.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

    def metrics(self, run_id: str | None, metrics: Mapping[str, float], step: int = 0) -> None:
        """Final numbers of a run."""
        if run_id is not None:
            line = Line(int(time.time() * 1000), step, metrics)
            self._try(lambda: metric_sender(self.uri, run_id)([line]))

    def tag(self, run_id: str | None, tags: Mapping[str, str]) -> None:
        """Set tags."""
        if run_id is not None:
            for key, value in tags.items():
                self._try(lambda k=key, v=value: self._mlflow.set_tag(run_id, k, v))  # type: ignore[misc]

    def artifact(self, run_id: str | None, path: Path) -> None:
        """Upload a file."""
        if run_id is not None:
            self._try(lambda: self._mlflow.log_artifact(run_id, str(path)))

    def finish(self, run_id: str | None, status: str = "FINISHED") -> None:
        """End a run: FINISHED, FAILED or KILLED."""
        if run_id is not None:
            self._try(lambda: self._mlflow.set_terminated(run_id, status))
