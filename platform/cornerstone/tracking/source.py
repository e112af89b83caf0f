"""Which program a run belongs to, at which commit, and who started it: MLflow's own tags."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cornerstone.runtime.git import git_state

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""A variable that Ray sets for what runs as a job."""
_PROJECT = Path(__file__).resolve().parents[3]


def source_tags() -> dict[str, str]:
    """MLflow's own tags for a run that this program records: what it is, its commit and branch, and who started it."""
    git = git_state()
    tags = {
        "mlflow.source.name": _program(sys.argv),
        "mlflow.source.type": "JOB" if JOB in os.environ else "LOCAL",
        "mlflow.source.git.commit": git.sha,
        "mlflow.source.git.branch": git.branch,
        "mlflow.user": _user(os.environ),
    }
    return {name: value for name, value in tags.items() if value}


def _program(arguments: Sequence[str]) -> str:
    """The file as a path in the project, or its name; of a command also its first word: `cornerstone train`."""
    path = Path(arguments[0]).absolute()
    inside = next((path.relative_to(root) for root in (_PROJECT, Path.cwd()) if path.is_relative_to(root)), None)
    if path.suffix != ".py":
        return " ".join([path.name, *(word for word in arguments[1:2] if not word.startswith("-"))])
    return str(inside or path.name)


def _user(environ: Mapping[str, str]) -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container whose user has no name
        return environ.get("USER", "")
