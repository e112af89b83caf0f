"""The literal jobs: `ray job submit` to a Ray of `ray start`, stopped and gone on with, with and without the package."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from cornerstone.tracking.journal import read_journal

from .conftest import REPOSITORY

RAY = str(Path(sys.executable).with_name("ray"))
EXPERIMENT = ["python", "experiments/ablate_corner_tokens.py", "--preset", "smoke", "--only", "0"]
PATIENCE = 240.0


@dataclass(frozen=True)
class Head:
    """A Ray that runs: where it takes jobs, and the home of what they leave."""

    address: str
    home: Path

    def submit(self, *command: str, job: str = "", options: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
        """`ray job submit` from the repository's root; it follows the job to its end, but for one that has a name."""
        named = ["--submission-id", job, "--no-wait"] if job else []
        typed = [RAY, "job", "submit", "--address", self.address, *named, *options, "--", *command]
        for _ in range(20):  # the agent that takes jobs is up some seconds after the dashboard
            done = subprocess.run(
                typed,
                cwd=REPOSITORY,
                env=bare_environment(),
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
            if "No available agent" not in done.stdout + done.stderr:
                break
            time.sleep(1)
        return done

    def only(self, pattern: str) -> Path:
        """The one file of the home that the pattern names."""
        (found,) = self.home.glob(pattern)
        return found


def bare_environment(**more: str) -> dict[str, str]:
    """This environment without what the tests put into it for themselves, this project's path above all."""
    ours = ("PYTHONPATH", "CORNERSTONE_HOME", "RAY_TMPDIR", "VIRTUAL_ENV")
    return {**{name: value for name, value in os.environ.items() if name not in ours}, **more}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@contextmanager
def head(python: Path, folder: Path, home: Path, scenes: Path) -> Iterator[Head]:
    """A Ray of the given Python, started in a folder, with a home of its own that shares the prepared scenes."""
    home.mkdir()
    (home / "scenes").symlink_to(scenes)
    with ExitStack() as stack:
        sessions = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
        dashboard = free_port()
        command = [str(python), "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus", "2"]
        command += ["--disable-usage-stats", "--dashboard-host", "127.0.0.1", "--dashboard-port", dashboard]
        for option in ("port", "ray-client-server-port", "dashboard-agent-listen-port", "metrics-export-port"):
            command += [f"--{option}", free_port()]
        environment = bare_environment(
            PATH=f"{python.parent}{os.pathsep}{os.environ['PATH']}",
            CORNERSTONE_HOME=str(home),
            RAY_TMPDIR=sessions,  # neither its sessions nor the file that names the last cluster meet anybody else's
        )
        log = stack.enter_context((home / "ray.log").open("w"))
        started = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        stack.callback(end, started, sessions)
        address = f"http://127.0.0.1:{dashboard}"
        wait_until(lambda: answers(f"{address}/api/jobs/"), started, home / "ray.log")
        yield Head(address, home)


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=2).status == 200
    except (OSError, urllib.error.URLError):
        return False


def wait_until(happened, process: subprocess.Popen, log: Path) -> None:
    patience = time.monotonic() + PATIENCE
    while not happened():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < patience, log.read_text()[-3000:]
        time.sleep(0.1)


def end(started: subprocess.Popen, sessions: str) -> None:
    """Stop a Ray, and whatever it has started: all of that names its folder of sessions, or descends from what does."""
    family = {started.pid: psutil.Process(started.pid)} if psutil.pid_exists(started.pid) else {}
    for process in psutil.process_iter():
        try:
            ours = sessions in process.environ().get("RAY_TMPDIR", "") or any(
                sessions in part for part in process.cmdline()
            )
            family |= {p.pid: p for p in ([process, *process.children(recursive=True)] if ours else [])}
        except psutil.Error:
            continue
    started.send_signal(signal.SIGTERM)
    _, left = psutil.wait_procs(family.values(), timeout=3)
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=5)
    started.wait(timeout=10)


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
