from __future__ import annotations

from pathlib import Path

import pytest

from cornerstone.runtime.home import home


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
