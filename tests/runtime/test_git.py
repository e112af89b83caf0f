"""The commit of the running code: of a checkout, outside one, and of a job."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from cornerstone.runtime import git
from cornerstone.runtime.git import GitState, git_state, git_state_of


@pytest.fixture
def checkout(tmp_path):
    def run(*arguments):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    run("init", "--initial-branch", "trunk")
    (tmp_path / "a.py").write_text("a = 1")
    run("add", "a.py")
    run("-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false", "commit", "--message", "a")
    return tmp_path


def test_a_checkout_has_a_commit_and_a_branch_and_says_what_is_not_committed(checkout):
    clean = git_state_of(checkout)
    assert len(clean.sha) == 40
    assert (clean.commit, clean.branch, clean.short) == (clean.sha, "trunk", clean.sha[:12])
    (checkout / "a.py").write_text("a = 2")
    changed = git_state_of(checkout)
    assert (changed.sha, changed.short) == (clean.sha, f"{clean.sha[:12]}+")
    assert changed.variables == {git.COMMIT: f"{clean.sha}+", git.BRANCH: "trunk"}


@pytest.mark.parametrize("trouble", ["exit 1", "exec sleep 20"])
def test_a_commit_is_kept_if_git_does_not_say_what_is_not_committed(trouble, checkout, tmp_path, monkeypatch):
    clean = git_state_of(checkout)
    program = tmp_path / "bin" / "git"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ncase "$*" in *status*) {trouble};; esac\nexec {shutil.which("git")} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(git, "PATIENCE", 2.0)
    assert git_state_of(checkout) == GitState(f"{clean.sha}+", "trunk")


def test_outside_a_checkout_or_without_git_nothing_is_known(tmp_path, checkout, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state_of(tmp_path.parent / "nowhere") == GitState()
    monkeypatch.setenv("PATH", "")
    assert git_state_of(checkout) == GitState()
    assert GitState().variables == {}


def test_a_job_knows_what_its_client_knew(monkeypatch):
    monkeypatch.setenv(git.COMMIT, "f" * 40 + "+")
    monkeypatch.setenv(git.BRANCH, "trunk")
    git_state.cache_clear()
    assert git_state() == GitState("f" * 40 + "+", "trunk")
    git_state.cache_clear()
