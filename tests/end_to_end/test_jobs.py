"""The literal jobs: `ray job submit` to a Ray of `ray start`, stopped and gone on with, with and without the package."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_ray import PATIENCE, Head, bare_environment, head

from cornerstone.tracking.journal import read_journal

from .conftest import REPOSITORY

EXPERIMENT = ["python", "experiments/ablate_corner_tokens.py", "--preset", "smoke", "--only", "0"]


@pytest.fixture(scope="module", autouse=True)
def no_other_ray() -> None:
    """Two cores are too few for two Rays: these tests come last, and end the one that others have shared."""
    import ray

    ray.shutdown()


def finished(done: subprocess.CompletedProcess, home: Path) -> Path:
    """The folder of the one sweep that a job has finished."""
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "succeeded" in done.stdout + done.stderr
    sweep = re.findall(r"^sweep (\S+):", done.stdout, re.MULTILINE)[-1]
    folder = home / "sweeps" / sweep
    assert f"{folder / 'table.md'}\n" in done.stdout
    assert "0 (baseline)" in done.stdout
    assert re.search(r"^\| .*\b0\b", (folder / "table.md").read_text(), re.MULTILINE)
    assert (folder / "plot.png").stat().st_size > 1000
    return folder


def bare_python(folder: Path) -> Path:
    """A Python with every library of this one but this project: of a path named by a .pth file, no .pth file is read."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site_packages,) = (folder / "lib").glob("python*/site-packages")
    (site_packages / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    python = folder / "bin" / "python"
    script = "import importlib.util as u; print([bool(u.find_spec(name)) for name in ('ray', 'torch', 'cornerstone')])"
    seen = subprocess.run([python, "-c", script], cwd=folder, env=bare_environment(), capture_output=True, text=True)
    assert seen.stdout.strip() == "[True, True, False]", seen.stdout + seen.stderr
    return python


@pytest.mark.timeout(600)
def test_the_code_travels_to_a_cluster_that_has_not_got_the_package(smoke_scenes, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    python = bare_python(tmp_path / "bare")
    with head(python, tmp_path / "elsewhere", tmp_path / "home", smoke_scenes) as cluster:
        options = ("--runtime-env", "ray_jobs/runtime_env.yaml")
        finished(cluster.submit(*EXPERIMENT, "--steps", "4", options=options), cluster.home)


@pytest.fixture(scope="module")
def installed(no_other_ray, smoke_scenes, tmp_path_factory) -> Iterator[Head]:
    """`ray start` in the repository's root, with the environment in which the package is installed; the last Ray to run."""
    with head(Path(sys.executable), REPOSITORY, tmp_path_factory.mktemp("job") / "home", smoke_scenes) as started:
        yield started


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_stopped_job_says_how_to_go_on_and_does(installed):
    from ray.job_submission import JobStatus, JobSubmissionClient

    client, before = JobSubmissionClient(installed.address), set(installed.home.glob("checkpoints/*"))
    steps = 80
    asked = installed.submit(*EXPERIMENT, "--steps", str(steps), "--placement.checkpoint-every", "5", job="stopped")
    assert asked.returncode == 0, asked.stderr

    def committed() -> int:
        """Steps of the new run's last checkpoint that counts."""
        assert client.get_job_status("stopped") != JobStatus.FAILED, client.get_job_logs("stopped")
        new = set(installed.home.glob("checkpoints/*")) - before
        lists = [path.read_text() for run in new for path in run.glob("checkpoint_manager_snapshot.json")]
        return max((int(step) for text in lists for step in re.findall(r"step-(\d+)", text)), default=0)

    deadline = time.monotonic() + PATIENCE
    while committed() < 15:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    client.stop_job("stopped")
    while not client.get_job_status("stopped").is_terminal():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    output = client.get_job_logs("stopped")
    assert client.get_job_status("stopped") == JobStatus.STOPPED
    assert "Stopped. Finished trials are kept; continue with:\n" in output
    command = output.partition("continue with:\n")[2].splitlines()[0].strip()
    assert f"python experiments/ablate_corner_tokens.py --preset smoke --only 0 --steps {steps}" in command
    (run,) = set(installed.home.glob("checkpoints/*")) - before
    journal = installed.home / "runs" / run.name / "journal.jsonl"
    stopped_at = max(line.step for line in read_journal(journal))
    assert stopped_at < steps

    # The package is installed there: the literal job needs no runtime environment.
    folder = finished(installed.submit(*shlex.split(command)), installed.home)
    assert command.endswith(f"--continue {folder.name}")
    (trial,) = json.loads((folder / "sweep.json").read_text())["trials"]
    assert trial["run"] == run.name
    seen = [line.step for line in read_journal(journal) if "train/loss" in line.metrics]  # one every 4 steps
    assert seen[:3] == [4, 8, 12]
    assert min(seen[3:]) > 15  # it went on from its last checkpoint, not from the start
    assert seen[-1] == steps
    assert all(state == "FINISHED" for state in recorded(installed.home, folder.name))


def recorded(home: Path, sweep: str) -> list[str]:
    """How the runs of a sweep ended, as MLflow has it: the sweep's own and one of its only trial."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    number = client.get_experiment_by_name("ablate_corner_tokens").experiment_id
    found = client.search_runs([number], f"tags.`cornerstone.sweep` = '{sweep}'")
    assert len(found) == 2
    return [run.info.status for run in found]
