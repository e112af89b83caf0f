"""One job file for each experiment, as `kubectl apply` and `cornerstone submit` read it."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml
from job_client import Jobs

from cornerstone import cli
from cornerstone.errors import CornerstoneError
from cornerstone.recipes.placement import Placement
from cornerstone.runtime.git import git_state_of
from cornerstone.runtime.submission import entrypoint

from .conftest import FOLDER, REPOSITORY, documents

EXPERIMENTS = sorted(path.stem for path in (REPOSITORY / "experiments").glob("*.py"))
QUEUED = FOLDER / "kubernetes" / "rayjob.yaml"


def command(path):
    (job,) = documents(path)
    return shlex.split(job["spec"]["entrypoint"])


def value(words, option, default):
    return type(default)(words[words.index(option) + 1]) if option in words else default


def test_every_experiment_has_one_and_nothing_else_has():
    assert sorted(path.stem for path in (FOLDER / "jobs").iterdir()) == EXPERIMENTS


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_job_runs_its_experiment_on_the_cluster(name):
    (job,) = documents(FOLDER / "jobs" / f"{name}.yaml")
    assert job["metadata"]["name"] == name.replace("_", "-")
    assert command(FOLDER / "jobs" / f"{name}.yaml")[:2] == ["python", f"experiments/{name}.py"]
    (cluster,) = documents(FOLDER / "kubernetes" / "raycluster.yaml")
    assert job["spec"]["clusterSelector"].items() <= cluster["metadata"]["labels"].items()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_job_is_that_of_the_docstring(name):
    """What the experiment's docstring submits, and more about the placement."""
    text = (REPOSITORY / "experiments" / f"{name}.py").read_text().replace("\\\\", "\\")
    submitted = re.search(r"ray job submit .*? -- ((?:.*\\\n)*.*)", text)[1]
    documented = shlex.split(re.sub(r"\\\n\s*", "", submitted))
    words = command(FOLDER / "jobs" / f"{name}.yaml")
    assert words[: len(documented)] == documented
    assert all(word.startswith("--placement.") for word in words[len(documented) :: 2])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_trial_fits_the_clusters(name):
    """GPUs and CPUs of a trial, against the most that each cluster for it may grow to; and against what the file says."""
    path = FOLDER / "jobs" / f"{name}.yaml"
    words = command(path)
    placement = Placement(
        workers=value(words, "--workers", 1),
        gpus_per_worker=value(words, "--placement.gpus-per-worker", 0),
        decode_actors=value(words, "--placement.decode-actors", 2),
        cpus_per_decode_actor=value(words, "--placement.cpus-per-decode-actor", 0.5),
    )
    assert (
        f"# A trial: {placement.trial_gpus} A100 and {placement.decode_actors} CPUs that decode.\n" in path.read_text()
    )
    for cluster in ("aws", "aws_efa", "gcp"):
        (config,) = documents(FOLDER / "clusters" / f"{cluster}.yaml")
        groups = config["available_node_types"].values()
        most = {kind: sum(g["max_workers"] * g["resources"][kind] for g in groups) for kind in ("CPU", "GPU")}
        assert placement.trial_gpus <= most["GPU"]
        assert placement.trial_cpus < most["CPU"]


def test_the_queued_job_is_one_of_them():
    assert command(QUEUED) == command(FOLDER / "jobs" / "ablate_corner_tokens.yaml")


def test_submit_reads_a_job_file():
    path = FOLDER / "jobs" / "transfer.yaml"
    words = entrypoint([str(path), "--continue", "a sweep"])
    assert words == [*command(path), "--continue", "a sweep"]
    assert "LCL LAION=s3://bucket/runs/RUN/model" in words
    assert entrypoint(["experiments/x.py", "--lr", "1"]) == ["python", "experiments/x.py", "--lr", "1"]


@pytest.mark.parametrize(
    "text", ["a: [", "", "kind: RayJob", "spec: {entrypoint: 7}", 'spec: {entrypoint: "a \'b"}', "a: 1\n---\nb: 2"]
)
def test_submit_refuses_what_is_no_job_file(text, tmp_path):
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(CornerstoneError, match=r"job\.yaml is no job file: expected one RayJob with spec\.entrypoint"):
        entrypoint([str(tmp_path / "job.yaml")])


def test_submit_sends_the_command(monkeypatch):
    """To a cluster that records what it is given, after a probe with the same options."""
    cluster = Jobs()
    monkeypatch.chdir(REPOSITORY)
    for name in ("CORNERSTONE_HOME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("cornerstone.runtime.submission.connected", lambda address: cluster)
    cli.main(["submit", "ray_jobs/jobs/ablate_loss.yaml", "--address", "http://head:8265", "--", "--continue", "SWEEP"])
    probe, job = cluster.jobs.values()
    python, file, *options = [*command(FOLDER / "jobs" / "ablate_loss.yaml"), "--continue", "SWEEP"]
    assert shlex.split(job.entrypoint) == [python, file, *options]
    assert shlex.split(probe.entrypoint)[-len(options) :] == options
    assert job.env == {
        **yaml.safe_load((FOLDER / "runtime_env.yaml").read_text()),
        "env_vars": git_state_of(REPOSITORY).variables,
    }
