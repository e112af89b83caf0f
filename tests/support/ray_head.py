"""A Ray of `ray start`, in processes of its own, to which jobs are submitted."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
PATIENCE = 240.0


@dataclass(frozen=True)
class Head:
    """A Ray that runs: where it takes jobs, where drivers join it, the home of what they leave, and its folder of sessions."""

    address: str
    joined_at: str
    home: Path
    sessions: Path

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
def head(python: Path, folder: Path, home: Path, scenes: Path, **more: str) -> Iterator[Head]:
    """A Ray of the given Python, started in a folder, with a home of its own that shares the prepared scenes.

    `more` is environment of its processes.
    """
    home.mkdir()
    (home / "scenes").symlink_to(scenes)
    with ExitStack() as stack:
        sessions = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
        dashboard, port = free_port(), free_port()
        command = [str(python), "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus", "2"]
        command += ["--disable-usage-stats", "--dashboard-host", "127.0.0.1", "--dashboard-port", dashboard]
        command += ["--port", port]
        for option in ("ray-client-server-port", "dashboard-agent-listen-port", "metrics-export-port"):
            command += [f"--{option}", free_port()]
        environment = bare_environment(
            PATH=f"{python.parent}{os.pathsep}{os.environ['PATH']}",
            CORNERSTONE_HOME=str(home),
            RAY_TMPDIR=sessions,  # neither its sessions nor the file that names the last cluster meet anybody else's
            **more,
        )
        log = stack.enter_context((home / "ray.log").open("w"))
        started = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        stack.callback(end, started, sessions)
        address = f"http://127.0.0.1:{dashboard}"
        wait_until(lambda: answers(f"{address}/api/jobs/"), started, home / "ray.log")
        yield Head(address, f"127.0.0.1:{port}", home, Path(sessions) / "ray")


def answers(url: str) -> bool:
    token = os.environ.get("RAY_AUTH_TOKEN")
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        return urllib.request.urlopen(request, timeout=2).status == 200
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
