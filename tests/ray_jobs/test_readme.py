"""ray_jobs/README.md: its three values, its commands and its sums."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess

import pytest

from cornerstone.errors import CornerstoneError
from cornerstone.runtime.cluster_files import check

from .conftest import FOLDER, REPOSITORY, documents

README = (FOLDER / "README.md").read_text()
PLACEHOLDERS = r"(?:s3|gs)://bucket|ghcr\.io/example|us-west-2|example-project"


def test_three_values_are_changed_by_its_command(tmp_path):
    """The command leaves none of the placeholders, and the clusters valid."""
    shutil.copytree(FOLDER, tmp_path / "ray_jobs", ignore=shutil.ignore_patterns("__pycache__"))
    command = re.search(r"^grep -rlE .*?\\\n.*?$", README, re.MULTILINE)[0]
    subprocess.run(["bash", "-euo", "pipefail", "-c", command], cwd=tmp_path, check=True)
    for path in (tmp_path / "ray_jobs").rglob("*.yaml"):
        left = [line for line in path.read_text().splitlines() if re.search(PLACEHOLDERS, line.partition("#")[0])]
        assert left == [], path.name
    (config,) = documents(tmp_path / "ray_jobs" / "clusters" / "aws.yaml")
    assert config["provider"]["region"] == "eu-west-1"
    assert config["docker"]["image"] == "ghcr.io/my-group/cornerstone:0.1.0"
    for path in (
        *(tmp_path / "ray_jobs" / "clusters").iterdir(),
        *(tmp_path / "ray_jobs" / "kubernetes").glob("ray*.yaml"),
    ):
        check(path)


def test_files_that_it_names_exist():
    named = set(re.findall(r"(?<![\w/])(?:ray_jobs/)?((?:clusters|kubernetes|jobs)/[\w.]*|\w+\.yaml)", README))
    assert len(named) > 8
    missing = {name for name in named if not (FOLDER / name).exists() and not (FOLDER / "clusters" / name).exists()}
    assert missing == set()
    for target in re.findall(r"--target ([\w-]+)", README):
        assert f" AS {target}\n" in (FOLDER / "Dockerfile").read_text()


def test_machines_that_it_prices_are_those_of_the_clusters():
    """Each row: the group's most, and its machine on both clouds."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in README.splitlines() if line.startswith("| ")
    ]
    priced = [row for row in rows if len(row) == 6 and row[1].isdigit()]
    for column, name, key in ((2, "aws", "InstanceType"), (4, "gcp", "machineType")):
        (config,) = documents(FOLDER / "clusters" / f"{name}.yaml")
        groups = list(config["available_node_types"].values())
        assert [row[column] for row in priced] == [group["node_config"][key] for group in groups]
        assert [int(row[1]) for row in priced] == [max(group["max_workers"], 1) for group in groups]


def test_its_sums_are_right():
    prices = {
        row: float(price)
        for row, price in re.findall(r"^\| ([\w ()0-9,]+?) \| \d \| \S+ \| ([\d.]+) \|", README, re.MULTILINE)
    }
    head, decode, train = prices["head"], prices["decoding"], prices["8 A100 (40 GB), on demand"]
    assert f"{head} + {decode} + {train} = {head + decode + train:.2f} $" in README
    most = head + 8 * decode + 4 * train + 4 * 13
    assert f"{head} + 8 × {decode} + 4 × {train} + 4 × 13 = {most:.0f} $" in README


@pytest.mark.parametrize("words", re.findall(r"`cornerstone (submit [^`]*)`", README))
def test_its_commands_are_accepted(words, monkeypatch, capsys):
    """Up to the cluster, which does not answer here."""
    from cornerstone import cli

    def absent(address):
        raise CornerstoneError(f"no cluster at {address}")

    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr("cornerstone.runtime.submission.connected", absent)
    with pytest.raises(SystemExit):
        cli.main(words.split())
    assert "no cluster at http://localhost:8265" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", sorted(set(re.findall(r"`(ray (?:up|down|dashboard|exec|attach|job|get-auth-token) [^`]+)`", README)))
)
def test_ray_knows_its_commands(words):
    """Ray's own parser of the command line, without running anything."""
    from ray.scripts.scripts import cli

    command, words = cli, shlex.split(words.replace("FILE", str(FOLDER / "clusters" / "aws.yaml")))[1:]
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context("ray", words)
