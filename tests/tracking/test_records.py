from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest

from cornerstone.tracking.address import Address
from cornerstone.tracking.journal import Line
from cornerstone.tracking.mlflow_records import LIMIT, LONGEST_PARAM, PARAMS_LIMIT, Records, metric_sender, translated

DATA = {"name": "cc3m", "digest": "abcd", "uri": '/data/with "quotes"', "rows": 50}


@pytest.fixture(scope="module")
def uri(tmp_path_factory) -> str:
    """A new SQLite file: making its tables takes a second or two."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def records(uri, said):
    records = Records("ablate", uri, said.append)
    yield records
    assert said == []  # no call failed
    assert records.problem == ""


@pytest.fixture(scope="module")
def client(uri):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


@pytest.fixture(scope="module")
def parent(records) -> str:
    return records.start("ablate s1", {"cornerstone.sweep": "s1", "cornerstone.parent_of": "s1"})


def test_a_trial_is_the_sweeps_child(records, parent, client):
    child = records.start("2, seed 0", {"cornerstone.sweep": "s1", "cornerstone.run": "r1"}, parent)
    run = client.get_run(child)
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.tags["cornerstone.sweep"] == "s1"
    assert run.info.run_name == "2, seed 0"
    assert run.info.status == "RUNNING"
    assert "mlflow.parentRunId" not in client.get_run(parent).data.tags
    experiment = client.get_experiment(run.info.experiment_id)
    assert experiment.name == "ablate"
    records.finish(child, "KILLED")
    assert client.get_run(child).info.status == "KILLED"


def test_a_run_is_found_by_its_tag(uri, records, said):
    run = records.start("x", {"cornerstone.run": "r2"})
    assert records.find("cornerstone.run", "r2") == run
    assert records.find("cornerstone.run", "r3") is None
    assert Records("ablate", uri, said.append).find("cornerstone.run", "r2") == run  # the experiment is found, too
    assert Records("other", uri, said.append).find("cornerstone.run", "r2") is None


def test_params_recipe_and_data_describe_a_run(records, client):
    run = records.start("x", {})
    records.describe(run, params={"optimization.steps": 8, "long": "x" * 7000}, recipe={"name": "smoke"}, data=DATA)
    found = client.get_run(run)
    assert found.data.params["optimization.steps"] == "8"
    assert found.data.params["long"] == "x" * (LONGEST_PARAM - 1) + "…"
    (data,) = found.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("cc3m", "abcd")
    assert json.loads(data.dataset.source) == {"uri": DATA["uri"]}
    assert json.loads(data.dataset.profile) == {"num_rows": 50}
    assert [(tag.key, tag.value) for tag in data.tags] == [("mlflow.data.context", "training")]
    assert json.loads(Path(client.download_artifacts(run, "recipe.json")).read_text()) == {"name": "smoke"}


def test_no_record_holds_the_password_of_a_storage_uri(records, client):
    home = "s3://KEY:correct-horse@bucket/home"
    nested = {"data": {"folders": [f"{home}/cc3m"]}}
    run = records.start("x", {"cornerstone.data": home})
    records.describe(run, params={"data.folders": [home]}, recipe=nested, data={**DATA, "uri": home})
    records.tag(run, {"cornerstone.model": home})
    records.json(run, nested, "evaluation.json")
    records.tag_experiment("cornerstone.home", home)
    files = [Path(client.download_artifacts(run, name)).read_text() for name in ("recipe.json", "evaluation.json")]
    experiment = client.get_experiment_by_name("ablate").tags["cornerstone.home"]
    texts = [str(client.get_run(run).to_dictionary()), *files, experiment]
    assert [text.count("correct-horse") for text in texts] == [0] * 4
    assert all("s3://KEY:***@bucket/home" in text for text in texts)
    assert json.loads(files[0]) == {"data": {"folders": ["s3://KEY:***@bucket/home/cc3m"]}}


def test_params_are_bounded_and_the_first_ones_are_kept(records, client):
    run = records.start("x", {})
    params = {"point": "2", **{f"field{i}": i for i in range(2 * PARAMS_LIMIT)}}
    records.describe(run, params=params, recipe=params, data=DATA)
    found = client.get_run(run).data.params
    assert len(found) == PARAMS_LIMIT
    assert (found["point"], found["field0"]) == ("2", "0")
    whole = json.loads(Path(client.download_artifacts(run, "recipe.json")).read_text())
    assert len(whole) == len(params)


def test_a_tag_of_the_experiment(records, client):
    records.tag_experiment("mlflow.sharedViewState.s1", "{}")
    assert client.get_experiment_by_name("ablate").tags["mlflow.sharedViewState.s1"] == "{}"
    records.tag_experiment("mlflow.sharedViewState.s1", '{"a":1}')
    assert client.get_experiment_by_name("ablate").tags["mlflow.sharedViewState.s1"] == '{"a":1}'


def test_artifacts_lie_beside_the_database(records, client, uri, tmp_path):
    run = records.start("x", {})
    table = tmp_path / "table.md"
    table.write_text("| a |")
    records.artifact(run, table)
    assert [file.path for file in client.list_artifacts(run)] == ["table.md"]
    folder = Path(uri.removeprefix("sqlite:///")).parent
    assert [path.read_text() for path in folder.rglob("table.md")] == ["| a |"]


def test_tags(records, client):
    run = records.start("x", {})
    records.tag(run, {"cornerstone.model": "/m", "cornerstone.error": ""})
    assert client.get_run(run).data.tags["cornerstone.model"] == "/m"


def test_a_journals_lines_become_metrics_with_their_steps_and_times(records, client, uri):
    run = records.start("x", {})
    lines = [Line(1_000 + step, step, {"train/loss": step / 4, "train/mfu": 0.5}) for step in range(LIMIT // 2 + 7)]
    metric_sender(uri, run)(lines)
    history = client.get_metric_history(run, "train/loss")
    found = sorted((metric.step, metric.timestamp, metric.value) for metric in history)
    assert found == [(step, 1_000 + step, step / 4) for step in range(LIMIT // 2 + 7)]


def history(client, run, name):
    return [(metric.step, metric.value) for metric in client.get_metric_history(run, name)]


def test_a_line_that_is_sent_again_is_recorded_once(records, client, uri):
    """The journal sends lines again if it does not know whether the server has them."""
    run = records.start("x", {})
    lines = [Line(1_000, 4, {"train/loss": 0.5}), Line(1_001, 8, {"train/loss": 0.25})]
    metric_sender(uri, run)(lines)
    metric_sender(uri, run)([*lines, Line(1_002, 12, {"train/loss": 0.125})])
    assert history(client, run, "train/loss") == [(4, 0.5), (8, 0.25), (12, 0.125)]


REFUSED = "eval/dci/refused"


@pytest.fixture
def refusing(monkeypatch):
    """A server that refuses a name, whatever it is translated to."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    log_batch = MlflowClient.log_batch

    def refuse(self, run_id, metrics=(), **rest):
        if any(metric.key == REFUSED for metric in metrics):
            raise MlflowException("no such name", error_code=INVALID_PARAMETER_VALUE)
        return log_batch(self, run_id, metrics=metrics, **rest)

    monkeypatch.setattr(MlflowClient, "log_batch", refuse)


def test_a_refused_name_loses_no_other_metric(records, client, uri, refusing):
    run, said = records.start("x", {}), []
    send = metric_sender(uri, run, said.append)
    for step in (4, 8):
        send([Line(1_000 + step, step, {"train/loss": 0.5, REFUSED: 50.0, "eval/dci/i2t_r1": 49.5})])
    assert history(client, run, "train/loss") == [(4, 0.5), (8, 0.5)]
    assert history(client, run, "eval/dci/i2t_r1") == [(4, 49.5), (8, 49.5)]
    assert len(said) == 1  # not at every line
    assert said[0].startswith(f"MLflow refuses the metric {REFUSED!r}, which only the journal records: ")


def test_a_line_whose_names_are_all_refused_does_not_hold_up_the_journal(records, client, uri, refusing):
    run, said = records.start("x", {}), []
    send = metric_sender(uri, run, said.append)
    send([Line(1_000, 4, {REFUSED: 50.0})])
    send([Line(1_001, 8, {"train/loss": 0.5})])
    assert history(client, run, "train/loss") == [(8, 0.5)]
    assert len(said) == 1


NAMES = {
    "eval/dci/i2t_r1": "eval/dci/i2t_r1",
    "eval/a,b/i2t_r1": "eval/a_b/i2t_r1",
    "final/dci/top1/0, long loss × 3": "final/dci/top1/0_ long loss _ 3",
    "eval/Übung (v2)/top1": "eval/Übung _v2_/top1",
    "eval//top1": "eval/_/top1",
    "eval/../top1": "eval/_/top1",
    "/eval/a": "_/eval/a",
}


def test_names_that_mlflow_refuses_are_translated(records, client, uri):
    long = "eval/" + "x" * 300 + "/top1"
    run = records.start("x", {})
    metric_sender(uri, run)([Line(1_000, 4, dict.fromkeys([*NAMES, long], 1.0))])
    assert set(client.get_run(run).data.metrics) == {*NAMES.values(), translated(long)}
    assert {name: translated(name) for name in NAMES} == NAMES
    assert len(translated(long)) == 250
    assert translated(long) != translated(long.replace("top1", "top5"))


def test_a_run_that_is_refused_is_an_error_and_no_fault_of_the_names(records, client, uri):
    run, said = records.start("x", {}), []
    client.delete_run(run)
    send = metric_sender(uri, run, said.append)
    with pytest.raises(Exception, match="must be in the 'active' state"):
        send([Line(1_000, 4, {"train/loss": 0.5})])
    client.restore_run(run)
    send([Line(1_000, 4, {"train/loss": 0.5})])
    assert history(client, run, "train/loss") == [(4, 0.5)]
    assert said == []


def test_a_server_that_cannot_be_reached_is_reported_once_and_stops_nothing(tmp_path):
    said = []
    records = Records("ablate", "http://127.0.0.1:9", said.append)
    run = records.start("x", {})
    assert run is None
    assert records.find("cornerstone.run", "r") is None
    records.describe(run, params={}, recipe={}, data=DATA)
    records.tag(run, {"a": "b"})
    records.artifact(run, tmp_path)
    records.finish(run)
    assert len(said) == 1
    assert "http://127.0.0.1:9" in said[0]
    assert "Training goes on" in said[0]
    assert records.problem


def test_a_refusal_is_no_absence_and_ends_nothing(uri):
    said = []
    records = Records("ablate", uri, said.append)
    records.tag("0" * 32, {"a": "b"})
    assert len(said) == 1
    assert "refused a record" in said[0]
    assert "cannot be reached" not in said[0]
    assert records.start("x", {}) is not None


def test_a_server_that_comes_back_is_used_again(uri, monkeypatch):
    said = []
    records = Records("ablate", "http://127.0.0.1:9", said.append)
    records.address = Address.of(uri)
    assert records.start("x", {}) is None  # not at once: a server that does not answer would cost seconds a call
    monkeypatch.setattr(records, "_silent_until", 0.0)
    assert records.start("x", {}) is not None
    assert len(said) == 1


def test_a_deleted_experiment_is_named_with_the_command_that_restores_it(uri, client, monkeypatch):
    said = []
    found = Records("to-delete", uri, said.append).experiment_id
    client.delete_experiment(found)
    records = Records("to-delete", uri, said.append)
    assert records.start("x", {}) is None
    (line,) = said
    assert "'to-delete' is deleted" in line
    assert "cannot be reached" not in line
    command = line.split("\n")[1].strip()
    assert command.startswith(f"MLFLOW_TRACKING_URI={uri} ")
    assert command.endswith(f"mlflow experiments restore --experiment-id {found}")
    client.restore_experiment(found)
    monkeypatch.setattr(records, "_silent_until", 0.0)
    assert records.start("x", {}) is not None


def test_a_run_goes_on_under_its_own_id(records, client):
    run = records.start("x", {})
    records.finish(run, "KILLED")
    records.go_on(run)
    assert client.get_run(run).info.status == "RUNNING"
    records.metrics(run, {"final/dci/i2t_r1": 28.8})
    records.note(run, "| a |")
    found = client.get_run(run)
    assert (found.data.metrics["final/dci/i2t_r1"], found.data.tags["mlflow.note.content"]) == (28.8, "| a |")


STARTS = """
import sys
from cornerstone.tracking.mlflow_records import Records
import cornerstone.tracking.mlflow_records, mlflow
print("ready", flush=True)
sys.stdin.readline()
said = []
print(Records("train", sys.argv[1], said.append).start("x", {}), said, flush=True)
"""


@pytest.mark.timeout(120)
@pytest.mark.slow
def test_programs_that_start_at_the_same_moment_all_record(tmp_path):
    """On a new file, whose tables each of them would make."""
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    started = [
        subprocess.Popen([sys.executable, "-c", STARTS, uri], stdin=PIPE, stdout=PIPE, text=True) for _ in range(4)
    ]
    assert [process.stdout.readline() for process in started] == ["ready\n"] * 4
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    found = [process.communicate(timeout=100)[0].split() for process in started]
    assert len({run for run, *_ in found}) == 4
    assert all(len(run) == 32 and said == ["[]"] for run, *said in found), found


def test_calls_time_out_in_seconds():
    """MLflow's own defaults are 120 seconds and 7 retries."""
    Records("ablate", "http://127.0.0.1:9", lambda text: None)
    assert int(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]) <= 10
    assert int(os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]) <= 2
