"""MLflow's own tags for where a run comes from."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path

import pytest

from cornerstone.runtime.git import git_state
from cornerstone.tracking import source
from cornerstone.tracking.source import source_tags

PROJECT = Path(source.__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([str(PROJECT / "experiments" / "ablate_loss.py"), "--seeds", "2"], "experiments/ablate_loss.py"),
        (["/opt/venv/bin/cornerstone", "train", "--preset", "smoke"], "cornerstone train"),
        (["/opt/venv/bin/cornerstone", "--version"], "cornerstone"),
        (["/home/someone/mine.py"], "mine.py"),
    ],
)
def test_the_source_is_the_program(monkeypatch, arguments, name):
    monkeypatch.setattr(sys, "argv", arguments)
    assert source_tags()["mlflow.source.name"] == name


def test_commit_branch_user_and_kind(monkeypatch):
    git = git_state()
    tags = source_tags()
    assert tags.get("mlflow.source.git.commit", "") == git.sha
    assert tags.get("mlflow.source.git.branch", "") == git.branch
    assert tags["mlflow.user"] == getpass.getuser()
    assert tags["mlflow.source.type"] == "LOCAL"
    monkeypatch.setenv(source.JOB, "{}")
    assert source_tags()["mlflow.source.type"] == "JOB"


def test_a_user_without_a_name_is_no_error(monkeypatch):
    def nobody():
        raise KeyError("uid not found: 1234")

    monkeypatch.setattr(getpass, "getuser", nobody)
    monkeypatch.delenv("USER", raising=False)
    assert "mlflow.user" not in source_tags()
