"""A sweep on a cluster that Ray's autoscaler grows and shrinks, and one on groups of nodes: raylets on this machine."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from own_ray import PATIENCE, Head, bare_environment, head

from cornerstone.recipes.placement import DECODE, ROLE_LABEL, TRAIN

from .conftest import REPOSITORY

EXPERIMENT = ["experiments/ablate_corner_tokens.py", "--preset", "smoke", "--steps", "8"]
EXPERIMENT += ["--placement.threads-per-worker", "1", "--placement.decode-actors", "1"]

THIS = {"PYTHONPATH": str(REPOSITORY / "platform")}
"""This tree's code, whatever is installed: for the driver and for the workers."""


@pytest.fixture(autouse=True)
def no_other_ray() -> None:
    """Two cores are too few for two Rays."""
    import ray

    ray.shutdown()


class Watched:
    """The nodes of a cluster and the roles of those on which its actors live, looked at every half second."""

    def __init__(self, cluster: Head) -> None:
        self.cluster, self.most, self.now = cluster, 0, 0
        self.roles: dict[str, set[str]] = {}
        """By the class of the actors."""

    def __enter__(self) -> Watched:
        import ray

        ray.init(address=self.cluster.gcs, log_to_driver=False, logging_level="ERROR")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        import ray

        self._ended.set()
        self._thread.join()
        ray.shutdown()

    def _look(self) -> None:
        import ray
        from ray.util.state import list_actors

        while not self._ended.wait(0.5):
            roles = {node["NodeID"]: node["Labels"].get(ROLE_LABEL, "") for node in ray.nodes() if node["Alive"]}
            self.now = len(roles)
            self.most = max(self.most, self.now)
            for actor in list_actors(self.cluster.address, limit=1000):
                if actor.node_id in roles:
                    self.roles.setdefault(actor.class_name, set()).add(roles[actor.node_id])

    def wait_for(self, nodes: int) -> None:
        """Until the cluster has so many nodes."""
        deadline = time.monotonic() + PATIENCE
        while self.now != nodes:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def swept(cluster: Head, *options: str) -> tuple[subprocess.CompletedProcess, str]:
    """A sweep that is run to its end on a cluster, and its table."""
    environment = bare_environment(RAY_ADDRESS=cluster.gcs, CORNERSTONE_HOME=str(cluster.home), **THIS)
    typed = [sys.executable, *EXPERIMENT, *options]
    done = subprocess.run(
        typed, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    found = re.search(r"^sweep (\S+):", done.stdout, re.MULTILINE)
    table = cluster.home / "sweeps" / found[1] / "table.md" if found else None
    return done, table.read_text() if table and table.exists() else ""


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_sweep_grows_the_cluster_by_the_nodes_it_needs_and_the_cluster_shrinks_again(smoke_scenes, tmp_path):
    sweep = ["--only", "0", "2", "--seeds", "2"]
    large = ["--placement.cpus-per-worker", "1", "--placement.cpus-per-decode-actor", "1"]  # a trial fills a node
    grows_by = {"more": {"resources": {"CPU": 2}, "max_workers": 2}}
    with head(Path(sys.executable), REPOSITORY, tmp_path / "home", smoke_scenes, grows_by, **THIS) as cluster:
        with Watched(cluster) as nodes:
            refused, _ = swept(cluster, *sweep, *large, "--workers", "6")
            assert refused.returncode == 1
            assert "6 workers × 1 + 1 decode actors × 1 (training and evaluation data) = 7 CPUs" in refused.stdout
            assert "1 node with 2 CPUs, and its autoscaler cannot add what is missing" in refused.stdout
            assert nodes.most == 1
            done, table = swept(cluster, *sweep, *large)
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
            assert "3 trials wait for the autoscaler to add room, each for 1 workers × 1 + 1 decode" in done.stdout
            assert nodes.most == 3
            nodes.wait_for(1)
        alone, expected = swept(cluster, *sweep, "--placement.concurrent-trials", "2")  # two trials fit on the head
        assert alone.returncode == 0, alone.stdout[-3000:] + alone.stderr[-3000:]
        assert "wait for the autoscaler" not in alone.stdout
        assert rows(table) == rows(expected)


def rows(table: str) -> list[str]:
    """The rows of a table of a sweep."""
    found = [line for line in table.splitlines() if line.startswith("|")]
    assert len(found) > 3
    return found


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_decode_actors_and_workers_run_on_their_own_groups_of_nodes(smoke_scenes, tmp_path):
    groups = {
        role: {"resources": {"CPU": 1}, "min_workers": 1, "max_workers": 1, "labels": {ROLE_LABEL: role}}
        for role in (TRAIN, DECODE)
    }
    with head(Path(sys.executable), REPOSITORY, tmp_path / "home", smoke_scenes, groups, **THIS) as cluster:
        with Watched(cluster) as nodes:
            nodes.wait_for(3)
            # Without GPUs, workers go to the group `train` only if it is named; decode actors go to theirs by default.
            done, _ = swept(cluster, "--only", "0", "--placement.worker-group", TRAIN)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        (worker,) = [name for name in nodes.roles if "RayTrainWorker" in name]
        (decode,) = [name for name in nodes.roles if name.startswith("MapWorker")]
        assert (nodes.roles[worker], nodes.roles[decode]) == ({TRAIN}, {DECODE})
