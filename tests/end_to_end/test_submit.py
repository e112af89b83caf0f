"""`cornerstone submit` to a Ray of `ray start`: what its probe refuses there, and a job that is followed and stopped."""

from __future__ import annotations

import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import requests
from own_ray import PATIENCE, bare_environment, head

from cornerstone.errors import CornerstoneError
from cornerstone.runtime.submission import Submission, submit

from .conftest import REPOSITORY

EXPERIMENT = "experiments/waits.py"
WAITS = """
import os, signal, sys, time
def stop(number, frame):
    print("Stopped. continue with: python experiments/waits.py --continue s7", flush=True)
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
print("waiting", sys.argv[1:], os.environ["COLOUR"], flush=True)
time.sleep(600)
"""
ONLY_HERE = "tracking.only-the-client-knows.test"


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A project of one experiment in the current folder; the code of this one travels with it."""
    for name, text in (
        (EXPERIMENT, WAITS),
        ("ray_jobs/runtime_env.yaml", f"working_dir: .\npy_modules: [{REPOSITORY / 'platform' / 'cornerstone'}]\n"),
    ):
        file = tmp_path / "project" / name
        file.parent.mkdir(parents=True)
        file.write_text(text)
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def server(monkeypatch) -> str:
    """The address of a server whose name only this process can resolve."""
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *more, **named: resolve("127.0.0.1" if host == ONLY_HERE else host, *more, **named),
    )
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://{ONLY_HERE}:{listening.server_address[1]}"
        listening.shutdown()


def until(text: str, output: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + PATIENCE
    while text not in output.read_text():
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.2)


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_probe_looks_from_the_cluster_and_a_job_is_stopped_by_the_second_interrupt(
    project, server, tmp_path, monkeypatch
):
    import ray

    ray.shutdown()  # two cores are too few for two Rays
    (tmp_path / "scenes").mkdir()
    with head(Path(sys.executable), tmp_path, tmp_path / "home", tmp_path / "scenes") as cluster:
        assert requests.get(server, timeout=5).status_code == 200
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
        unwritable = ("CORNERSTONE_HOME=/proc/nowhere",)
        with pytest.raises(CornerstoneError) as error:
            submit(Submission([EXPERIMENT, "--workers", "9"], cluster.address, variables=unwritable), print)
        first, *problems = str(error.value).splitlines()
        assert first == "The experiment was not submitted:"
        assert problems[0].startswith("CORNERSTONE_HOME is /proc/nowhere, where")
        assert problems[1].startswith(f"MLFLOW_TRACKING_URI is {server}, which")
        assert problems[2].startswith("This placement needs 9 workers × 0.5 + 2 decode actors × 0.5")
        monkeypatch.delenv("MLFLOW_TRACKING_URI")

        output = tmp_path / "output"
        command = [sys.executable, "-m", "cornerstone.cli", "submit", EXPERIMENT, "--cluster", cluster.address]
        command += ["--name", "mine", "--env", "COLOUR=blue", "--", "--workers", "1"]
        with output.open("w") as file:
            process = subprocess.Popen(
                command,
                env=bare_environment(PYTHONPATH=str(REPOSITORY / "platform"), PYTHONUNBUFFERED="1"),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            until("waiting ['--workers', '1'] blue", output, process)
            with pytest.raises(CornerstoneError, match=r"has a job 'mine' already \(RUNNING\)"):
                submit(Submission([EXPERIMENT], cluster.address, name="mine"), print)
            process.send_signal(signal.SIGINT)
            until(f"cornerstone submit --cluster {cluster.address} --follow mine", output, process)
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 130
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        assert (
            output.read_text()
            .rstrip()
            .endswith(
                f"STOPPED. Finished trials are kept; continue with:\n"
                f"  cornerstone submit {EXPERIMENT} --cluster {cluster.address} -- --workers 1 --continue s7"
            )
        )
