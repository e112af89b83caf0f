"""A job's run in MLflow, without Ray: how it is opened, found again and closed."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from cornerstone.evaluation.tasks import TASKS, EvaluationSet
from cornerstone.recipes import Placement, preset
from cornerstone.runtime.git import git_state
from cornerstone.tracking.mlflow_records import Records
from cornerstone.training.job import Identity, Job, checkpoint_name, steps_done
from cornerstone.training.launch import Outcome
from cornerstone.training.mlflow_run import close_run, flat, open_run, reason


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Records:
    said: list[str] = []
    records = Records("ablate", f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db", said.append)
    yield records
    assert said == []


@pytest.fixture
def client(records):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=records.uri)


OUTCOME = Outcome(
    {"eval/dci/i2t_r1": 28.8}, "/m", "/c/2", "/c/1", intervals={"eval/dci/i2t_r1": (20.0, 40.0)}, queries={}
)


def mlflow_file(client, job, name):
    with tempfile.TemporaryDirectory() as folder:
        return json.loads(Path(client.download_artifacts(job.identity.mlflow_run, name, folder)).read_text())


def new_job(run: str) -> Job:
    data = {"name": "cc3m", "digest": "abcd", "uri": "/data/cc3m", "rows": 50}
    prepared = SimpleNamespace(
        recipe=preset("smoke").with_seed(3),
        recipe_hash="1234",
        eval_hash="5678",
        content={"data": "abcd"},
        described=lambda: data,
        sets=(EvaluationSet("dci", TASKS["retrieval"], "/dci", 9, (), "ef01", split="split=test"),),
    )
    return Job(prepared, Placement(), Identity(run=run, home="/nowhere"))


def test_a_run_has_the_agreed_tags_and_every_field_of_the_recipe(records, client):
    job = open_run(records, new_job("r1"), "2 corners, seed 3", {"cornerstone.sweep": "s1", "cornerstone.point": "2"})
    assert str(job.identity.tracking) == records.uri
    found = client.get_run(job.identity.mlflow_run)
    tags = {name.removeprefix("cornerstone."): value for name, value in found.data.tags.items()}
    assert (tags["sweep"], tags["point"], tags["run"], tags["seed"]) == ("s1", "2", "r1", "3")
    assert (tags["recipe_hash"], tags["eval_hash"], tags["data_hash"]) == ("1234", "5678", "abcd")
    assert tags["git_commit"] == git_state().short
    assert found.data.params["optimization.steps"] == str(preset("smoke").optimization.steps)
    assert found.info.run_name == "2 corners, seed 3"


def test_a_job_that_is_started_again_goes_on_with_its_run(records, client):
    first = open_run(records, new_job("r2"), "x", {})
    close_run(records, first, None)
    assert open_run(records, new_job("r2"), "x", {}).identity == first.identity
    assert client.get_run(first.identity.mlflow_run).info.status == "RUNNING"
    assert open_run(records, new_job("r3"), "x", {}).identity.mlflow_run != first.identity.mlflow_run


@pytest.mark.parametrize(
    ("outcome", "error", "status", "tag"),
    [
        (OUTCOME, "", "FINISHED", ("best_checkpoint", "/c/1")),
        (None, "out of memory", "FAILED", ("error", "out of memory")),
        (None, "", "KILLED", ("seed", "3")),
    ],
)
def test_a_run_is_closed_with_its_outcome(records, client, outcome, error, status, tag):
    job = open_run(records, new_job(f"r-{status}"), "x", {})
    close_run(records, job, outcome, error)
    found = client.get_run(job.identity.mlflow_run)
    assert found.info.status == status
    assert found.data.tags[f"cornerstone.{tag[0]}"] == tag[1]
    assert found.data.metrics == ({"final/dci/i2t_r1": 28.8} if outcome else {})
    files = {one.path for one in client.list_artifacts(job.identity.mlflow_run)}
    assert ("evaluation.json" in files) == (outcome is not None)
    if outcome:
        of = mlflow_file(client, job, "evaluation.json")["eval/dci/i2t_r1"]
        assert (of["value"], of["low"], of["high"]) == (28.8, 20.0, 40.0)
        assert (of["data"], of["split"]) == ("ef01", "split=test")


def test_without_mlflow_a_job_runs_all_the_same(tmp_path):
    unreachable = Records("ablate", "http://127.0.0.1:9", lambda text: None)
    job = open_run(unreachable, new_job("r1"), "x", {})
    assert job.identity.mlflow_run is None
    close_run(unreachable, job, None, "error")


def test_the_reason_is_the_innermost_error():
    raised = RuntimeError("ray::train failed\n  File x.py\nValueError: shapes differ\n\nSee the logs.")
    assert reason(raised) == "ValueError: shapes differ"
    assert reason(RuntimeError("cornerstone.errors.CornerstoneError: No data set at /x")) == "No data set at /x"
    assert reason(ValueError()) == "ValueError"


def test_nested_fields_become_flat_params():
    assert flat({"a": {"b": 1, "c": {"d": (2,)}}, "e": None}) == {"a.b": 1, "a.c.d": (2,), "e": None}


def test_the_name_of_a_checkpoint_has_its_step():
    assert checkpoint_name(220) == "step-000000220"
    assert steps_done(checkpoint_name(220)) == 220
