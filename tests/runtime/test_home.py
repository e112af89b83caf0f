from __future__ import annotations

from pathlib import Path

import pytest

from cornerstone.data.storage import Location
from cornerstone.runtime.home import home, problem_of_home


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", str(Path.home() / ".cornerstone")),
        ("/data/runs", "/data/runs"),
        ("~/runs", str(Path.home() / "runs")),
        ("file:///data/runs", "/data/runs"),
        ("s3://bucket/cornerstone", "s3://bucket/cornerstone"),
    ],
)
def test_home_is_a_folder_or_a_storage_uri(monkeypatch, given, expected):
    monkeypatch.setenv("CORNERSTONE_HOME", given)
    assert home().uri == expected


def test_home_has_a_default(monkeypatch):
    monkeypatch.delenv("CORNERSTONE_HOME")
    assert home().uri == str(Path.home() / ".cornerstone")


@pytest.mark.parametrize("fails", [False, True])
def test_a_problem_names_the_home_without_its_password(monkeypatch, fails):
    place = "s3://KEY:correct-horse@bucket/home"

    def write_text(self, text):
        if fails:
            raise OSError(f"cannot open {place}")

    monkeypatch.setenv("CORNERSTONE_HOME", place)
    monkeypatch.setattr(Location, "write_text", write_text)
    monkeypatch.setattr(Location, "remove", lambda self: None)
    monkeypatch.setattr(Location, "exists", lambda self: False)
    problem = problem_of_home("token")
    assert problem.startswith("CORNERSTONE_HOME is s3://KEY:***@bucket/home, ")
    assert "correct-horse" not in problem
