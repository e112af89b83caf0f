"""A Ray of its own for a test: `ray start` in another process, with or without an autoscaler, and its end."""

from __future__ import annotations

import json
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
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
PATIENCE = 240.0
HEAD_ID = "f" * 51 + "00000"  # by which the provider of raylets on this machine knows the head
AUTOSCALED = {
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
}


def autoscaling(node_types: dict[str, Any], gcs: str) -> dict[str, Any]:
    """The configuration of a cluster that Ray's autoscaler grows by raylets on this machine."""
    unused = ("auth", "docker", "file_mounts")
    commands = [f"{kind}_commands" for kind in ("initialization", "setup", "head_setup", "worker_setup")]
    commands += ["head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files"]
    return {
        "cluster_name": "grows",
        "max_workers": 8,
        "idle_timeout_minutes": 0.3,
        "provider": {
            # By its module: the type `fake_multinode` reads an example that Ray's package does not contain.
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": HEAD_ID,
            "gcs_address": gcs,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 0},
            **{name: {"node_config": {}, "min_workers": 0, **kind} for name, kind in node_types.items()},
        },
        **{name: {} for name in unused},
        **{name: [] for name in commands},
    }


@dataclass(frozen=True)
class Head:
    """A Ray that runs: where it takes jobs, their home, the address that drivers join, and its folder of sessions."""

    address: str
    home: Path
    gcs: str
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
def head(
    python: Path, folder: Path, home: Path, scenes: Path, grows_by: dict[str, Any] | None = None, **variables: str
) -> Iterator[Head]:
    """A Ray of the given Python, started in a folder, with a home of its own that shares the prepared scenes.

    `grows_by` are node types, by name, that Ray's autoscaler adds as raylets on this machine; `variables` of its environment.
    """
    home.mkdir(parents=True)
    (home / "scenes").symlink_to(scenes)
    with ExitStack() as stack:
        sessions = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
        dashboard = free_port()
        command = [str(python), "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus", "2"]
        command += ["--disable-usage-stats", "--dashboard-host", "127.0.0.1", "--dashboard-port", dashboard]
        ports = {"port": free_port()}
        for option in ("ray-client-server-port", "dashboard-agent-listen-port", "metrics-export-port"):
            ports[option] = free_port()
        command += [part for option, port in ports.items() for part in (f"--{option}", port)]
        if grows_by is not None:
            config = home / "autoscaler.json"
            config.write_text(json.dumps(autoscaling(grows_by, f"127.0.0.1:{ports['port']}")))
            command += ["--node-ip-address", "127.0.0.1", "--autoscaling-config", str(config)]
        environment = bare_environment(
            PATH=f"{python.parent}{os.pathsep}{os.environ['PATH']}",
            CORNERSTONE_HOME=str(home),
            RAY_TMPDIR=sessions,  # neither its sessions nor the file that names the last cluster meet anybody else's
            **(AUTOSCALED if grows_by is not None else {}),
            **variables,
        )
        log = stack.enter_context((home / "ray.log").open("w"))
        started = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        stack.callback(end, started, sessions)
        address = f"http://127.0.0.1:{dashboard}"
        wait_until(lambda: answers(f"{address}/api/jobs/"), started, home / "ray.log")
        yield Head(address, home, f"127.0.0.1:{ports['port']}", Path(sessions) / "ray")


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
