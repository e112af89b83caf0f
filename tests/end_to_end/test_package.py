"""What travels to a cluster with a job: the code, and none of the data that stand beside it."""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import yaml
from ray._private.runtime_env import packaging  # what `ray job submit` itself calls

from cornerstone import cli

REPOSITORY = Path(__file__).resolve().parents[2]
LARGEST = 2 << 20


@pytest.fixture
def project(tmp_path):
    project = tmp_path / "project"
    for name in ("experiments", "ray_jobs", "platform", "docs"):
        shutil.copytree(REPOSITORY / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".rayignore", ".gitignore", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, project / name)
    for name in (
        "data/train/shard-00000.parquet",
        "photos/a.jpg",
        "d/x.tar",
        "cc3m.tar",
        ".cornerstone/mlflow.db",
        "ray_jobs/.env",
    ):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_bytes(bytes(1 << 20))
    return project


def test_data_in_the_projects_folder_stay_there(project, tmp_path):
    environment = yaml.safe_load((project / "ray_jobs" / "runtime_env.yaml").read_text())
    assert environment["working_dir"] == "."
    found = {}
    for place in (project, *(project / module for module in environment["py_modules"])):
        target = tmp_path / f"{place.name}.zip"
        packaging.create_package(str(place), target, include_gitignore=True, excludes=environment["excludes"])
        assert target.stat().st_size < LARGEST
        found[place.name] = zipfile.ZipFile(target).namelist()
    tops = {name.partition("/")[0] for name in found["project"]}
    assert tops <= {"experiments", "ray_jobs", "pyproject.toml"}
    assert "experiments/ablate_corner_tokens.py" in found["project"]
    assert "ray_jobs/.env" not in found["project"]  # passwords
    assert "training/loop.py" in found["cornerstone"]


@pytest.mark.parametrize("address", ["", "head:6379", "http://127.0.0.1:9"])
def test_submit_says_what_travels_and_names_large_files(project, monkeypatch, capsys, address):
    monkeypatch.chdir(project)
    monkeypatch.setenv("RAY_ADDRESS", address)
    command = ["submit", "experiments/ablate_corner_tokens.py", "--limit", "8", "--", "--preset", "smoke"]
    with pytest.raises(SystemExit):
        cli.main(command)
    said = capsys.readouterr().out
    if not address.startswith("http"):
        assert f"http://HOST:8265; given: {address or 'no address'}. Name it with --cluster or RAY_ADDRESS" in said
        return
    assert re.search(r"[KM]iB of code travel to the cluster", said)
    assert "No cluster answers at http://127.0.0.1:9" in said
    (project / "experiments" / "features.bin").write_bytes(os.urandom(9 << 20))
    with pytest.raises(SystemExit):
        cli.main(command)
    said = capsys.readouterr().out
    assert "above the limit of 8 MiB; the largest: experiments/features.bin (9.0 MiB)" in said
    assert "No cluster answers" not in said
