from __future__ import annotations

import os
import pickle
import shlex
import sys
from pathlib import Path

import pytest

from cornerstone.secrets import redacted
from cornerstone.tracking.address import Address, tracking_address
from cornerstone.tracking.mlflow_client import open_client
from cornerstone.tracking.mlflow_pages import run_link, trials_link, ui_command
from cornerstone.tracking.mlflow_records import Records

SECRET = "http://anna:correct-horse@127.0.0.1:9"


def test_records_are_local_unless_a_server_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("CORNERSTONE_HOME", str(tmp_path / "home"))
    assert str(tracking_address()) == f"sqlite:///{tmp_path}/home/mlflow.db"
    assert (tmp_path / "home").is_dir()
    monkeypatch.setenv("CORNERSTONE_HOME", (tmp_path / "home").as_uri())
    assert str(tracking_address()) == f"sqlite:///{tmp_path}/home/mlflow.db"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CORNERSTONE_HOME", "s3://bucket/home")
    assert str(tracking_address()) == f"sqlite:///{tmp_path}/.cornerstone/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert str(tracking_address()) == "http://server:5000"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("sqlite:///mlflow.db", "sqlite:///{here}/mlflow.db"),  # MLflow's documented default
        ("sqlite:///runs/mlflow.db?timeout=5", "sqlite:///{here}/runs/mlflow.db?timeout=5"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("mlruns", "{here}/mlruns"),
        ("./mlruns", "{here}/mlruns"),
        ("https://server/mlflow", "https://server/mlflow"),
        ("databricks", "databricks"),
    ],
)
def test_an_address_is_absolute(tmp_path, monkeypatch, given, expected):
    monkeypatch.chdir(tmp_path)
    assert str(Address.of(given)) == expected.format(here=tmp_path)


def test_a_password_is_in_no_text(monkeypatch):
    address = Address.of(SECRET)
    assert address.full == SECRET
    for text in (str(address), repr(address), f"{address}", redacted(f"cannot read {SECRET}/api: refused")):
        assert "correct-horse" not in text
        assert "anna" in text
    assert pickle.loads(pickle.dumps(address)).full == SECRET
    database = Address.of("postgresql+psycopg://u:p%40ss:w@db:5432/mlflow")
    assert str(database) == "postgresql+psycopg://u:***@db:5432/mlflow"
    assert database.full == "postgresql+psycopg://u:p%40ss:w@db:5432/mlflow"
    option = Address.of("postgresql://u:p@db/mlflow?password=abc")
    assert (str(option), option.full) == (
        "postgresql://u:***@db/mlflow?password=***",
        "postgresql://u:p@db/mlflow?password=abc",
    )
    assert (
        redacted("no password in http://server:5000/a@b and user@host")
        == "no password in http://server:5000/a@b and user@host"
    )


def test_a_password_reaches_the_server_and_no_message(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "")
    said = []
    records = Records("ablate", SECRET, said.append)
    assert records.start("x", {}) is None
    assert "cannot be reached" in said[0]
    assert "correct-horse" not in f"{said} {records.problem} {records.uri} {vars(records)}"
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("anna", "correct-horse")


def test_a_password_in_mlflows_variable_is_kept_if_the_address_has_none(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct-horse")
    open_client(Address.of("https://anna@host:5000"))
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("anna", "correct-horse")


def test_links_name_the_pages_that_show_runs():
    local, server = Address.of("sqlite:////h o/mlflow.db"), Address.of("https://anna:pw@host/mlflow/")
    assert run_link(local, "3", "abc") == (
        "http://127.0.0.1:5000/#/experiments/3/runs/abc?workflowType=machine_learning"
    )
    assert (
        trials_link(server, "3", "s1")
        == "https://host/mlflow/#/experiments/3/runs?workflowType=machine_learning&viewStateShareKey=s1"
    )


def test_the_command_names_the_store_unless_a_plain_shell_has_the_same():
    local = ui_command(Address.of("sqlite:////h o/mlflow.db"), "s1")
    assert local.startswith("MLFLOW_TRACKING_URI='sqlite:////h o/mlflow.db' ")
    assert local.endswith("cornerstone ui --sweep s1")
    usual = ui_command(Address.of(f"sqlite:///{Path.home()}/.cornerstone/mlflow.db"))
    assert usual.endswith("cornerstone ui")
    assert "=" not in usual
    assert "pw" not in ui_command(Address.of("postgresql://anna:pw@host/mlflow"))


def test_a_program_in_a_folder_with_a_blank_is_quoted(tmp_path, monkeypatch):
    program = tmp_path / "my programs" / "cornerstone"
    program.parent.mkdir()
    program.touch()
    monkeypatch.setattr(sys, "executable", str(program.parent / "python"))
    assert shlex.split(ui_command(Address.of("postgresql://anna:pw@host/mlflow"), "s1")) == (
        [str(program), "ui", "--sweep", "s1"]
    )
