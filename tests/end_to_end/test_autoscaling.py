"""A sweep on a cluster that Ray's autoscaler grows and shrinks, and one on groups of nodes: raylets on this machine."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from own_ray import Head, bare_environment, head

from .conftest import REPOSITORY

EXPERIMENT = ["experiments/ablate_corner_tokens.py", "--preset", "smoke", "--steps", "8"]
EXPERIMENT += ["--placement.threads-per-worker", "1", "--placement.decode-actors", "1"]


@pytest.fixture(autouse=True)
def no_other_ray() -> None:
    """Two cores are too few for two Rays."""
    import ray

    ray.shutdown()


class Watched:
    """The nodes of a cluster, looked at every half second."""

    def __init__(self) -> None:
        self.most, self.now = 0, 0

    @contextmanager
    def on(self, cluster: Head) -> Iterator[Watched]:
        import ray

        ray.init(address=cluster.gcs, log_to_driver=False, logging_level="ERROR")
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(0.5):
                self.now = sum(node["Alive"] for node in ray.nodes())
                self.most = max(self.most, self.now)

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            ended.set()
            thread.join()
            ray.shutdown()


def swept(cluster: Head, *options: str) -> tuple[subprocess.CompletedProcess, str]:
    """A sweep that is run to its end on a cluster, and its table."""
    environment = bare_environment(
        RAY_ADDRESS=cluster.gcs, CORNERSTONE_HOME=str(cluster.home), PYTHONPATH=str(REPOSITORY / "platform")
    )
    typed = [sys.executable, *EXPERIMENT, *options]
    done = subprocess.run(
        typed, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    found = re.search(r"^sweep (\S+):", done.stdout, re.MULTILINE)
    table = cluster.home / "sweeps" / found[1] / "table.md" if found else None
    return done, table.read_text() if table and table.exists() else ""


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_a_sweep_grows_the_cluster_by_the_nodes_it_needs_and_the_cluster_shrinks_again(smoke_scenes, tmp_path):
    grows_by = {"more": {"resources": {"CPU": 2}, "max_workers": 2}}
    large = ["--placement.cpus-per-worker", "1", "--placement.cpus-per-decode-actor", "1"]  # a trial a node
    with head(Path(sys.executable), REPOSITORY, tmp_path / "home", smoke_scenes, grows_by) as cluster:
        with Watched().on(cluster) as nodes:
            refused, _ = swept(cluster, "--workers", "6", *large)
            assert refused.returncode == 1
            assert "6 workers × 1 + 1 decode actors × 1 (training and evaluation data) = 7 CPUs" in refused.stdout
            assert "1 node with 2 CPUs, and its autoscaler cannot add what is missing" in refused.stdout
            assert nodes.most == 1
            done, table = swept(cluster, "--only", "0", "2", "--seeds", "2", *large)
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
            assert (
                "trials wait for the autoscaler to add room, each for 1 workers × 1 + 1 decode actors × 1"
                in done.stdout
            )
            assert nodes.most == 3
            deadline = time.monotonic() + 60
            while nodes.now > 1:
                assert time.monotonic() < deadline
                time.sleep(0.5)
        alone, expected = swept(
            cluster, "--only", "0", "2", "--seeds", "2", *large, "--placement.concurrent-trials", "1"
        )
        assert alone.returncode == 0, alone.stdout[-3000:] + alone.stderr[-3000:]
        assert "wait for the autoscaler" not in alone.stdout
        assert rows(table) == rows(expected)


def rows(table: str) -> list[str]:
    """The table without what names the sweep."""
    found = [line for line in table.splitlines() if line.startswith("|")]
    assert len(found) > 3
    return found
