"""The literal `ray job submit`, and what Ctrl-C leaves: on a Ray started for it, by the commands that a user types."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
EXPERIMENT = ["python", "experiments/ablate_corner_tokens.py", "--preset", "smoke", "--only", "0"]
SMALL = ["--placement.cpus-per-decode-actor", "0.25"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Head:
    """`ray start --head`, typed in a folder with an environment's programs first on the PATH."""

    def __init__(self, folder: Path, programs: Path) -> None:
        port = free_port()
        scratch = Path(tempfile.mkdtemp(prefix="ray-"))  # a short path: Ray's sockets lie below it
        self.address = f"http://127.0.0.1:{port}"
        self.variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RAY_ADDRESS")}
        self.variables |= {"PATH": f"{programs}:{os.environ['PATH']}", "RAY_TMPDIR": str(scratch)}
        self.log = (scratch / "head.log").open("w")
        command = [programs / "python", "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2"]
        command += [f"--port={free_port()}", "--node-ip-address=127.0.0.1", "--disable-usage-stats"]
        command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
        self.process = subprocess.Popen(
            command, cwd=folder, env=self.variables, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True
        )
        for _ in range(240):
            try:
                urllib.request.urlopen(self.address + "/api/jobs/", timeout=2).read()
                break
            except (urllib.error.URLError, OSError):
                assert self.process.poll() is None, (scratch / "head.log").read_text()[-2000:]
                time.sleep(0.5)
        self.submitted("true")  # the agent that takes jobs comes up after the dashboard

    def submit(self, *arguments: str, folder: Path = REPOSITORY, options: tuple[str, ...] = ()) -> subprocess.Popen:
        """`ray job submit` in a folder; its output is a pipe."""
        client = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "job",
            "submit",
            "--address",
            self.address,
            *options,
            "--",
        ]
        return subprocess.Popen(
            [*client, *arguments],
            cwd=folder,
            env=self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def submitted(self, *arguments: str, folder: Path = REPOSITORY, options: tuple[str, ...] = ()) -> str:
        """The output of a job that must succeed; on a busy machine the agent that takes jobs comes up late."""
        for _ in range(30):
            job = self.submit(*arguments, folder=folder, options=options)
            output, _ = job.communicate()
            if "No available agent" not in output:
                break
            time.sleep(2)
        assert job.returncode == 0, output[-4000:]
        return output

    def stop(self) -> None:
        """End every process of this Ray."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(5)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        self.log.close()


@pytest.fixture(scope="module", autouse=True)
def alone():
    """Two cores hold one Ray: the session's own gives way."""
    import ray

    ray.shutdown()


@pytest.fixture(scope="module")
def head():
    """Ray, started in the project's folder with the package installed, as the README says."""
    started = Head(REPOSITORY, Path(sys.executable).parent)
    yield started
    started.stop()


@pytest.mark.timeout(600)
def test_a_job_in_the_projects_folder_ends_with_the_table(head):
    output = head.submitted(*EXPERIMENT, "--steps", "4", *SMALL)
    assert "done in" in output
    assert "shows the path, not the trend" in output
    assert re.search(r"plot: \S+plot\.png", output)
    assert "mlflow ui --backend-store-uri" in output


@pytest.mark.timeout(600)
def test_a_stopped_job_says_how_to_go_on_and_does(head):
    job = head.submit(*EXPERIMENT, "--steps", "4000", *SMALL, options=("--submission-id", "long"))
    seen = ""
    for line in job.stdout:
        seen += line
        if re.search(r"step \d+ of 4,000", line):
            break
    ray = [sys.executable, "-m", "ray.scripts.scripts", "job"]
    subprocess.run(
        [*ray, "stop", "--address", head.address, "long"], env=head.variables, check=True, capture_output=True
    )
    seen += job.communicate()[0]
    logs = subprocess.run(
        [*ray, "logs", "--address", head.address, "long"],
        env=head.variables,
        capture_output=True,
        text=True,
        check=True,
    )
    command = re.search(r"--continue (\S+)", seen + logs.stdout)
    assert command, (seen + logs.stdout)[-3000:]
    # The same command with --continue, as it was printed; --steps must be the same, or it is another recipe.
    refused = head.submit(*EXPERIMENT, "--steps", "4", *SMALL, "--continue", command[1])
    assert "with another recipe" in refused.communicate()[0]
    assert refused.returncode != 0


@pytest.mark.timeout(600)
def test_a_client_elsewhere_sends_the_code_to_a_cluster_without_the_package(tmp_path):
    """A bare environment sees the libraries through one line of a .pth file, but not the editable install behind another."""
    environment = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    libraries = next(Path(p) for p in sys.path if p.endswith("site-packages"))
    site = next((environment / "lib").glob("python3*/site-packages"))
    (site / "libraries.pth").write_text(f"{libraries}\n")
    bare = environment / "bin" / "python"
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    found = subprocess.run(
        [bare, "-c", "import cornerstone"], capture_output=True, cwd=tmp_path, env=clean, check=False
    )
    if found.returncode == 0:
        pytest.skip("cornerstone is installed as a plain copy here: no environment without it can be made")
    head = Head(tmp_path, environment / "bin")
    try:
        output = head.submitted(
            *EXPERIMENT, "--steps", "4", *SMALL, options=("--runtime-env", "ray_jobs/runtime_env.yaml")
        )
        assert "shows the path, not the trend" in output
    finally:
        head.stop()
