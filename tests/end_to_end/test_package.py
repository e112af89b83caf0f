"""What travels to a cluster with a job: the code, and none of the data that stand beside it."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import yaml
from ray._private.runtime_env import packaging  # what `ray job submit` itself calls

REPOSITORY = Path(__file__).resolve().parents[2]
LARGEST = 2 << 20


def test_data_in_the_projects_folder_stay_there(tmp_path):
    project = tmp_path / "project"
    for name in ("experiments", "ray_jobs", "platform", "docs"):
        shutil.copytree(REPOSITORY / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".rayignore", ".gitignore", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, project / name)
    for name in ("data/train/shard-00000.parquet", "photos/a.jpg", "d/x.tar", "cc3m.tar", ".cornerstone/mlflow.db"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_bytes(bytes(1 << 20))
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
    assert "training/loop.py" in found["cornerstone"]
