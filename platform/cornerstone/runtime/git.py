"""The commit and branch of the running code.

A job on a cluster has the code without its `.git`: `cornerstone submit` sends what git says in environment variables.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

COMMIT, BRANCH = "CORNERSTONE_GIT_COMMIT", "CORNERSTONE_GIT_BRANCH"
"""What `cornerstone submit` sets for a job."""
_CHANGED = "+"
_SHORT = 12
PATIENCE = 10.0  # seconds for each question to git


@dataclass(frozen=True)
class GitState:
    """Where a checkout stands; both are "" outside one.

    `commit` ends in `+` if there are uncommitted changes, or if git does not say that there are none.
    """

    commit: str = ""
    branch: str = ""

    @property
    def sha(self) -> str:
        """The commit alone."""
        return self.commit.removesuffix(_CHANGED)

    @property
    def short(self) -> str:
        """The first 12 digits of the commit, and `+` if there are uncommitted changes."""
        return self.commit[:_SHORT] + (_CHANGED if self.commit.endswith(_CHANGED) else "")

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables by which a job knows it."""
        return {name: value for name, value in ((COMMIT, self.commit), (BRANCH, self.branch)) if value}


@cache
def git_state() -> GitState:
    """That of the running code: of its checkout, or as the job was told."""
    if COMMIT in os.environ:
        return GitState(os.environ[COMMIT], os.environ.get(BRANCH, ""))
    return git_state_of(Path(__file__).parent)


def git_state_of(folder: Path) -> GitState:
    """That of the checkout to which a folder belongs. Without git, or outside a checkout, an empty one."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(folder), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if not commit:
        return GitState()
    is_clean = git("status", "--porcelain") == ""  # not known if git fails, or takes too long in a large checkout
    return GitState(commit + ("" if is_clean else _CHANGED), git("branch", "--show-current") or "")
