"""Prometheus scrapes a Ray that asks for a token, while a small run trains there: every query of every board has data."""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from boards import DASHBOARDS, draw
from own_ray import free_port, head

from cornerstone.runtime import monitoring, servers
from cornerstone.training.live_metrics import gauge_names

from .conftest import REPOSITORY

EXPERIMENT = ["experiments/ablate_corner_tokens.py", "--preset", "smoke", "--only", "0", "--steps", "60"]
SCRAPE = "1s"
WINDOW = "10s"  # of rates
GPU = "ray_node_gpus_"
pytestmark = [
    pytest.mark.faults,  # minutes, as the tests that kill
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        shutil.which("prometheus") is None, reason="Prometheus is not installed (Debian: apt-get install prometheus)"
    ),
]


def quickly(path: Path) -> Path:
    """A copy of a configuration that scrapes every second: the run is short."""
    config = yaml.safe_load(path.read_text())
    config["global"]["scrape_interval"] = SCRAPE
    for scrape in config["scrape_configs"]:
        for discovery in (*scrape.get("file_sd_configs", ()), *scrape.get("http_sd_configs", ())):
            discovery["refresh_interval"] = SCRAPE
    path.write_text(yaml.safe_dump(config))
    return path


def of_cluster(address: str, token: str, folder: Path) -> servers.Server:
    """Prometheus by `cluster.yml`, for this head and its token."""
    folder.mkdir()
    (folder / "token").write_text(token)
    config = yaml.safe_load((DASHBOARDS / "prometheus/cluster.yml").read_text())
    (discovery,) = config["scrape_configs"][0]["http_sd_configs"]
    discovery["url"] = discovery["url"].replace("http://ray-head:8265", address)
    discovery["authorization"]["credentials_file"] = str(folder / "token")
    (folder / "cluster.yml").write_text(yaml.safe_dump(config))
    port = int(free_port())
    command = [
        "prometheus",
        f"--config.file={quickly(folder / 'cluster.yml')}",
        f"--storage.tsdb.path={folder / 'data'}",
    ]
    return servers.Server("Cluster", [*command, f"--web.listen-address=127.0.0.1:{port}"], port, "/-/ready", {})


def healthy(url: str) -> list[str]:
    with urllib.request.urlopen(f"{url}/api/v1/targets", timeout=10) as response:
        targets = json.load(response)["data"]["activeTargets"]
    return [target["scrapeUrl"] for target in targets if target["health"] == "up"]


@pytest.fixture(scope="module")
def scraped(smoke_scenes, tmp_path_factory):
    """Prometheus after the run: its address, and the times between which the run was there."""
    import ray

    ray.shutdown()  # two cores are too few for two Rays
    place, token = tmp_path_factory.mktemp("scrape"), secrets.token_hex(32)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(REPOSITORY)
        patched.setenv("RAY_AUTH_MODE", "token")
        patched.setenv("RAY_AUTH_TOKEN", token)
        more = {"RAY_metrics_report_interval_ms": "1000", "PYTHONPATH": os.environ["PYTHONPATH"]}
        with head(Path(sys.executable), REPOSITORY, place / "home", smoke_scenes, **more) as cluster:
            local = monitoring.prometheus("prometheus", int(free_port()), place / "local", cluster.sessions)
            quickly(place / "local" / "prometheus.yml")
            cluster_wide = of_cluster(cluster.address, token, place / "cluster")
            with servers.running([local, cluster_wide], place):
                begun = time.time()
                environment = {
                    **os.environ,
                    "RAY_ADDRESS": cluster.gcs,
                    "CORNERSTONE_HOME": str(cluster.home),
                    **more,
                }
                done = subprocess.run(
                    [sys.executable, *EXPERIMENT],
                    env=environment,
                    capture_output=True,
                    text=True,
                    timeout=800,
                    check=False,
                )
                assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
                yield local.url, cluster_wide.url, begun, time.time()


def values(scraped, query: str) -> list[float]:
    url, _, begun, ended = scraped
    series = draw.ask(url, draw.filled(query, WINDOW), begun, ended, 1.0)
    return [value for _, points in series for _, value in points]


def test_the_file_and_the_head_name_the_same_ports(scraped):
    local, cluster_wide, _, _ = scraped
    assert len(healthy(local)) >= 1
    assert set(healthy(cluster_wide)) == set(healthy(local))


def test_every_query_of_every_board_has_data(scraped):
    import torch

    empty, not_finite = [], []
    for board in sorted(DASHBOARDS.glob("boards/*.json")):
        for title, query, _ in draw.queries(json.loads(board.read_text())):
            found = values(scraped, query)
            if not found:
                empty.append((board.name, title, query))
            elif not any(map(math.isfinite, found)):
                not_finite.append((board.name, title, query))
    if not torch.cuda.is_available():  # what a GPU's driver reports is nowhere else
        empty = [one for one in empty if GPU not in one[2]]
    assert not empty
    assert not not_finite


def test_the_run_is_seen_from_its_start_to_its_end(scraped):
    assert max(values(scraped, "ray_cornerstone_progress")) == 1.0
    assert min(values(scraped, "ray_cornerstone_progress")) < 0.5
    assert max(values(scraped, 'max(ray_cornerstone_time_share{phase="data"})')) > 0  # the first batch
    shares = values(scraped, "sum by (run) (ray_cornerstone_time_share)")
    assert 0.5 < sorted(shares)[len(shares) // 2] < 1.05
    assert 3.0 < min(values(scraped, "ray_cornerstone_loss")) < 9.0


def test_a_run_has_few_series(scraped):
    url, _, begun, ended = scraped
    series = draw.ask(url, '{__name__=~"ray_cornerstone_.*"}', begun, ended, 1.0)
    assert {labels["__name__"] for labels, _ in series} == {f"ray_{name}" for name in gauge_names()}
    assert len(series) == 12
