"""What goes to MLflow: one parent run per sweep and one child run per trial, opened by explicit ids.

The driver creates runs and finishes them; rank 0 of a trial sends metrics to the run whose id it was given. No failed call
stops an experiment: the first failure is reported once, with the place of the local record.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cornerstone.runtime.home import home
from cornerstone.tracking.journal import Line, Sender

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")
LIMIT, PARAMS_LIMIT = 1000, 100  # metrics and params of one log_batch call
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")  # error codes of a request that no retry will make valid
logger = logging.getLogger(__name__)


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or a SQLite file under the home (under `~/.cornerstone` if the home is a storage URI)."""
    configured = os.environ.get("MLFLOW_TRACKING_URI")
    if configured:
        return configured
    root = Path(home().uri) if home().is_local else Path.home() / ".cornerstone"
    root.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{root}/mlflow.db"


def _client(uri: str) -> MlflowClient:
    # MLflow's defaults, 120 s and 7 retries, would block the caller for minutes if the server hangs.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def metric_sender(uri: str, run_id: str, say: Callable[[str], None] = logger.warning) -> Sender:
    """A function for the journal's thread that sends lines to a run.

    A metric whose name the server refuses is left out and reported once; the others of its lines are recorded. A line that is
    sent again is recorded once: MLflow's SQL store ignores a metric with the same name, step, time and value.
    """
    client = _client(uri)
    from mlflow.entities import LifecycleStage, Metric
    from mlflow.exceptions import MlflowException

    refused: set[str] = set()

    def log_by_name(metrics: Sequence[Metric], error: MlflowException) -> None:
        """Log each name apart. If the server refuses the run (a deleted one) and not the names, raise `error`."""
        found = {}
        for name in {metric.key: None for metric in metrics}:
            try:
                client.log_batch(run_id, metrics=[metric for metric in metrics if metric.key == name])
            except MlflowException as refusal:
                if refusal.error_code not in REFUSALS:
                    raise
                found[name] = refusal
        if client.get_run(run_id).info.lifecycle_stage != LifecycleStage.ACTIVE:
            raise error
        refused.update(found)
        for name, why in found.items():
            say(f"MLflow refuses the metric {name!r}, which only the journal records: {_first_line(why)}")

    def send(lines: Sequence[Line]) -> None:
        metrics = [Metric(k, v, line.time_ms, line.step) for line in lines for k, v in line.metrics.items()]
        metrics = [metric for metric in metrics if metric.key not in refused]
        for start in range(0, len(metrics), LIMIT):
            batch = metrics[start : start + LIMIT]
            try:
                client.log_batch(run_id, metrics=batch)
            except MlflowException as error:
                if error.error_code not in REFUSALS:
                    raise
                log_by_name(batch, error)

    return send


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


class Records:
    """The driver's calls to MLflow. `problem` is the first failure, empty if there was none."""

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
                self.problem = f"{type(error).__name__}: {_first_line(error)}"
                self._say(
                    f"MLflow at {self.uri} cannot be reached ({self.problem[:200]}). Training goes on, and the journals under "
                    f"{home().join('runs')} record all metrics. Check MLFLOW_TRACKING_URI."
                )
            return None

    def start(self, name: str, tags: Mapping[str, str], parent: str | None = None) -> str | None:
        """Create a run, not active in this process; returns its id, or None if MLflow cannot be reached."""
        if self.experiment_id is None:
            return None
        experiment = self.experiment_id
        all_tags = {**tags, "mlflow.source.type": "JOB"}
        if parent:
            all_tags["mlflow.parentRunId"] = parent
        return self._try(lambda: self._mlflow.create_run(experiment, tags=all_tags, run_name=name).info.run_id)

    def find(self, tag: str, value: str) -> str | None:
        """The id of the experiment's run with that tag, which a continued sweep goes on writing to; None if there is none."""
        if self.experiment_id is None:
            return None
        query = f"tags.`{tag}` = '{value}'"
        found = self._try(lambda: self._mlflow.search_runs([str(self.experiment_id)], query, max_results=1))
        return found[0].info.run_id if found else None

    def describe(
        self, run_id: str | None, *, params: Mapping[str, Any], recipe: Mapping[str, Any], data: Mapping[str, Any]
    ) -> None:
        """Log params, the recipe as an artifact, and the data set as an input with its digest."""
        if run_id is None:
            return
        self._try(lambda: self._log_params(run_id, params))
        self._try(lambda: self._mlflow.log_dict(run_id, dict(recipe), "recipe.json"))
        self._try(lambda: self._log_data(run_id, data))

    def _log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        all_params = [Param(name, str(value)[:6000]) for name, value in params.items()]
        for start in range(0, len(all_params), PARAMS_LIMIT):
            self._mlflow.log_batch(run_id, params=all_params[start : start + PARAMS_LIMIT])

    def _log_data(self, run_id: str, data: Mapping[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source, profile = json.dumps({"uri": data["uri"]}), json.dumps({"num_rows": data["rows"]})
        dataset = Dataset(data["name"], data["digest"], "local", source, profile=profile)
        self._mlflow.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

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
