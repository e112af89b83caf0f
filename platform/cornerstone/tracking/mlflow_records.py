"""What goes to MLflow: one parent run per sweep and one child run per trial, opened by explicit ids.

The driver creates runs and finishes them; rank 0 of a trial sends metrics to the run whose id it was given. No failed call
stops an experiment: the first failure is reported once, with the place of the local record.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock

from cornerstone.errors import CornerstoneError, first_line
from cornerstone.hashing import digest
from cornerstone.runtime.home import home
from cornerstone.secrets import redacted, redacted_values
from cornerstone.tracking.address import VARIABLE, Address, tracking_address
from cornerstone.tracking.journal import Line, Sender
from cornerstone.tracking.mlflow_client import is_unreachable, open_client
from cornerstone.tracking.mlflow_models import RegisteredModel, register
from cornerstone.tracking.mlflow_pages import command_path

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")
LIMIT, PARAMS_LIMIT = 1000, 100  # metrics of one log_batch call, and params of one run
LONGEST_NAME, LONGEST_NOTE, LONGEST_PARAM = 250, 8000, 500
ATTEMPTS = 5  # at a call of which SQLite says that the file is locked
OPEN_PATIENCE = 120.0  # seconds for other programs that are opening the same SQLite file
RETRY_AFTER = 30.0  # seconds without calls after the server was not reached
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")  # error codes of a request that no retry will make valid
NO_REGISTRY = ("FEATURE_DISABLED", "ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED")
"""Error codes of stores that have no models."""
logger = logging.getLogger(__name__)


def translated(name: str) -> str:
    """The name under which MLflow records a metric or a param.

    MLflow allows letters, digits, `_`, `-`, `.`, `:`, blanks and `/`, and at most 250 characters. Any other character becomes
    `_`, and so does an empty part of a path, `.` and `..`; of a longer name the end is replaced by a digest.
    """
    parts = [re.sub(r"[^\w.\- :]", "_", part) for part in name.split("/")]
    found = "/".join("_" if part.strip() in ("", ".", "..") else part for part in parts)
    return found if len(found) <= LONGEST_NAME else f"{found[: LONGEST_NAME - 9]}-{digest(name)[:8]}"


def metric_sender(address: Address | str, run_id: str, say: Callable[[str], None] = logger.warning) -> Sender:
    """A function for the journal's thread that sends lines to a run.

    Names are `translated`. A metric whose name the server refuses all the same is left out and reported once; the others of
    its lines are recorded. A line that is sent again is recorded once: MLflow's SQL store ignores a metric with the same name,
    step, time and value.
    """
    client = open_client(Address.of(address))
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
            say(f"MLflow refuses the metric {name!r}, which only the journal records: {first_line(why)}")

    def send(lines: Sequence[Line]) -> None:
        metrics = [Metric(translated(k), v, line.time_ms, line.step) for line in lines for k, v in line.metrics.items()]
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


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_PARAM else f"{text[: LONGEST_PARAM - 1]}…"


class Deleted(Exception):
    """The experiment of that name is deleted."""


def log_file(address: Address, run_id: str, path: Path) -> None:
    """Log a file to a run that somebody named. CornerstoneError if there is no such run, or no server."""
    try:
        open_client(address).log_artifact(run_id, str(path))
    except Exception as error:  # whatever a store or its client raises
        raise CornerstoneError(
            f"MLflow at {address} did not take {path.name} for the run {run_id!r} ({first_line(error)}). Check {VARIABLE} and "
            f"the run's id; the file itself is written."
        ) from error


class Records:
    """The driver's calls to MLflow. `problem` is the first failure, empty if there was none.

    A call that fails is not repeated, but the next one tries again, after an unreachable server only `RETRY_AFTER` seconds
    later: its calls wait for a time-out.
    """

    def __init__(
        self, experiment: str, address: Address | str | None = None, say: Callable[[str], None] = print
    ) -> None:
        self.address = tracking_address() if address is None else Address.of(address)
        self.experiment, self.problem = experiment, ""
        self._say, self._said = say, set[str]()
        self._opened: MlflowClient | None = None
        self._experiment_id: str | None = None
        self._silent_until = 0.0
        self._try(lambda: self._mlflow)

    @property
    def uri(self) -> str:
        """The address, without its password."""
        return str(self.address)

    @property
    def experiment_id(self) -> str | None:
        """MLflow's id of the experiment; None as long as there is none."""
        return self._experiment_id

    @property
    def _mlflow(self) -> MlflowClient:
        """The client. The first use, or the first one that succeeds, opens the store and the experiment."""
        if self._opened is None:
            database = self.address.database
            if database is not None:
                database.parent.mkdir(parents=True, exist_ok=True)
            # Programs that make the tables of the same new file at the same time fail.
            lock = nullcontext() if database is None else FileLock(f"{database}.lock", timeout=OPEN_PATIENCE)
            with lock:
                client = open_client(self.address)
                self._experiment_id = self._find_experiment(client)
            self._opened = client
        return self._opened

    def _find_experiment(self, client: MlflowClient) -> str:
        from mlflow.entities import LifecycleStage
        from mlflow.exceptions import MlflowException

        database, artifacts = self.address.database, None
        if database is not None:
            artifacts = (database.parent / "mlartifacts" / self.experiment).as_uri()
        found = client.get_experiment_by_name(self.experiment)
        if found is None:
            try:
                return str(client.create_experiment(self.experiment, artifacts, tags=EXPERIMENT_TAGS))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = client.get_experiment_by_name(self.experiment)  # another program was faster
                if found is None:
                    raise
        if found.lifecycle_stage != LifecycleStage.ACTIVE:
            raise Deleted(found.experiment_id)
        return str(found.experiment_id)

    def _try(self, call: Callable[[], T]) -> T | None:
        if time.monotonic() < self._silent_until:
            return None
        for attempt in range(ATTEMPTS):
            try:
                return call()
            except Exception as error:  # records never stop an experiment
                if "database is locked" in str(error) and attempt + 1 < ATTEMPTS:
                    time.sleep(0.2 * 2**attempt)
                    continue
                self._note(error)
                return None
        return None

    def _note(self, error: Exception) -> None:
        """Say what failed, each kind once."""
        reason = f"{type(error).__name__}: {first_line(error)}"
        if isinstance(error, Deleted):
            environment = f"MLFLOW_TRACKING_URI={shlex.quote(self.uri)} "
            restore = f"{environment}{command_path('mlflow')} experiments restore --experiment-id {error}"
            kind = f"The MLflow experiment {self.experiment!r} is deleted. Restore it with:\n  {restore}\n"
            reason = f"the experiment {self.experiment!r} is deleted"
            self._silent_until = time.monotonic() + RETRY_AFTER
        elif is_unreachable(error):
            kind = f"MLflow at {self.uri} cannot be reached ({reason[:200]}). Check {VARIABLE}. "
            self._silent_until = time.monotonic() + RETRY_AFTER
        else:
            kind = f"MLflow at {self.uri} refused a record ({reason[:200]}). "
        self.problem = self.problem or reason
        self._say_once(f"{kind}Training goes on, and the journals under {home().join('runs')} record all metrics.")

    def _say_once(self, text: str) -> None:
        if (said := text.partition("(")[0]) not in self._said:
            self._said.add(said)
            self._say(redacted(text))

    def start(self, name: str, tags: Mapping[str, str], parent: str | None = None) -> str | None:
        """Create a run, not active in this process; returns its id, or None if MLflow does not record it."""
        all_tags = {**redacted_values(tags), **({"mlflow.parentRunId": parent} if parent else {})}

        def create() -> str:
            client = self._mlflow
            return str(client.create_run(str(self._experiment_id), tags=all_tags, run_name=name).info.run_id)

        return self._try(create)

    def find(self, tag: str, value: str) -> str | None:
        """The id of the experiment's run with that tag, which a continued sweep goes on writing to; None if there is none."""
        query = f"tags.`{tag}` = '{value}'"

        def search() -> Any:
            client = self._mlflow
            return client.search_runs([str(self._experiment_id)], query, max_results=1)

        found = self._try(search)
        return found[0].info.run_id if found else None

    def go_on(self, run_id: str | None) -> None:
        """Say that a run that was closed goes on."""
        if run_id is not None:
            self._try(lambda: self._mlflow.update_run(run_id, status="RUNNING"))

    def describe(
        self, run_id: str | None, *, params: Mapping[str, Any], recipe: Mapping[str, Any], data: Mapping[str, Any]
    ) -> None:
        """Log params, the whole recipe as an artifact, and the data set as an input with its digest.

        Of more than `PARAMS_LIMIT` params the first ones are logged, and of a long one the first `LONGEST_PARAM` characters.
        """
        if run_id is None:
            return
        self._try(lambda: self._log_params(run_id, params))
        self._try(lambda: self._mlflow.log_dict(run_id, redacted_values(recipe), "recipe.json"))
        self._try(lambda: self._log_data(run_id, data))

    def _log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        texts = {translated(name): redacted(str(value)) for name, value in list(params.items())[:PARAMS_LIMIT]}
        self._mlflow.log_batch(run_id, params=[Param(name, _shortened(text)) for name, text in texts.items()])

    def _log_data(self, run_id: str, data: Mapping[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source, profile = json.dumps({"uri": redacted(data["uri"])}), json.dumps({"num_rows": data["rows"]})
        dataset = Dataset(data["name"], data["digest"], "local", source, profile=profile)
        self._mlflow.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

    def tag(self, run_id: str | None, tags: Mapping[str, str]) -> None:
        """Set tags."""
        if run_id is not None:
            for key, value in tags.items():
                self._try(lambda k=key, v=value: self._mlflow.set_tag(run_id, k, redacted(v)))  # type: ignore[misc]

    def metrics(self, run_id: str | None, metrics: Mapping[str, float]) -> None:
        """Log numbers at step 0."""
        if run_id is not None and metrics:
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            found = [Metric(translated(name), value, now, 0) for name, value in metrics.items()]
            for start in range(0, len(found), LIMIT):
                self._try(lambda s=start: self._mlflow.log_batch(run_id, metrics=found[s : s + LIMIT]))  # type: ignore[misc]

    def tag_experiment(self, key: str, value: str) -> None:
        """Set a tag of the experiment itself."""
        self._try(lambda: self._mlflow.set_experiment_tag(str(self._experiment_id), key, redacted(value)))

    def note(self, run_id: str | None, markdown: str) -> None:
        """The description on the run's page, cut at the length that MLflow allows."""
        self.tag(run_id, {"mlflow.note.content": markdown[:LONGEST_NOTE]})

    def json(self, run_id: str | None, content: Mapping[str, Any], name: str) -> None:
        """Log JSON values as a file; nothing if there are none."""
        if run_id is not None and content:
            self._try(lambda: self._mlflow.log_dict(run_id, redacted_values(content), name))

    def artifact(self, run_id: str | None, path: Path) -> None:
        """Upload a file."""
        if run_id is not None:
            self._try(lambda: self._mlflow.log_artifact(run_id, str(path)))

    def register(self, model: RegisteredModel) -> str | None:
        """Register a model, with the alias `best`; returns its version. That a store has no registry is said once."""
        from mlflow.exceptions import MlflowException

        def call() -> str | None:
            try:
                texts = {"location": model.location, "tags": model.tags, "files": model.files}
                return register(self._mlflow, str(self._experiment_id), replace(model, **redacted_values(texts)))
            except MlflowException as error:
                if error.error_code not in NO_REGISTRY:
                    raise
                self._say_once(f"MLflow at {self.uri} has no model registry: the best model is not registered.")
                return None

        return self._try(call)

    def finish(self, run_id: str | None, status: str = "FINISHED") -> None:
        """End a run: FINISHED, FAILED or KILLED."""
        if run_id is not None:
            self._try(lambda: self._mlflow.set_terminated(run_id, status))
