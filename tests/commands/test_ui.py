"""`cornerstone ui`: MLflow's server on the store of the records, the links, and what it refuses."""

from __future__ import annotations

import http.server
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import psutil
import pytest

from cornerstone.cli import main
from cornerstone.tracking import mlflow_sweeps
from cornerstone.tracking.address import Address
from cornerstone.tracking.mlflow_records import Records
from cornerstone.tracking.mlflow_view import SweepView


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with two sweeps, the newer one last: its address, and their parents by name."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    parents = {}
    for name in ("20260101-000000-aaaa", "20260102-000000-bbbb"):
        records = Records("ablate", uri, pytest.fail)
        tags = {"cornerstone.sweep": name, "cornerstone.parent": "true", "cornerstone.parent_of": name}
        parents[name] = records.start(f"ablate {name}", tags)
        if name.endswith("b"):
            view = SweepView(name, parents[name], ["point"], ["final/x/top1"])
            records.tag_experiment(view.tag, view.text())
        time.sleep(0.01)
    return uri, parents


@pytest.fixture(autouse=True)
def in_the_store(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store[0])


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as exit:
        main(["ui", *map(str, arguments)])
    assert exit.value.code == 1
    return " ".join(capsys.readouterr().out.split())


def served(port, folder):
    """The command as a process, and what it says up to its last line."""
    command = [sys.executable, "-m", "cornerstone.cli", "ui", "--port", str(port), "--folder", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip())
        if line.startswith("Ctrl-C") or "Error" in line:
            break
    return process, "\n".join(lines)


def a_port():
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        return server.server_port


@pytest.mark.timeout(300)
def test_it_serves_the_store_until_ctrl_c_and_a_second_one_uses_it(store, tmp_path, capsys):
    port, newest = a_port(), "20260102-000000-bbbb"
    process, said = served(port, tmp_path)
    children = psutil.Process(process.pid).children(recursive=True)
    try:
        assert f"sweep {newest} of ablate:" in said, said
        links = dict(re.findall(r"^ *(the sweep|trials|comparison): (\S+)$", said, re.MULTILINE))
        page, kind = f"http://127.0.0.1:{port}/#/experiments/1/runs", "workflowType=machine_learning"
        assert links == {
            "the sweep": f"{page}/{store[1][newest]}?{kind}",
            "trials": f"{page}?{kind}&viewStateShareKey={newest}",
            "comparison": f"{page}?{kind}&viewStateShareKey={newest}&compareRunsMode=CHART",
        }
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as response:
            assert response.status == 200
        assert store[0] not in " ".join(word for child in children for word in child.cmdline())
        listening = {c.laddr.ip for child in children for c in child.net_connections("tcp") if c.status == "LISTEN"}
        assert listening == {"127.0.0.1"}

        main(["ui", "--port", str(port), "--sweep", "20260101-000000-aaaa"])  # returns: nothing to start
        again = capsys.readouterr().out
        assert "serves" in again
        assert f"the sweep: {page}/{store[1]['20260101-000000-aaaa']}" in again
        assert "viewStateShareKey" not in again  # it has none
        assert "MLflow has no view of its trials" in again

        assert (tmp_path / f"mlflow-{port}.log").exists()  # that of a second server is another file

        other = f"sqlite:///{tmp_path}/other.db"
        Records("x", other, pytest.fail)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", other)
            assert f"Port {port} is taken by MLflow's server on another store" in refused(capsys, "--port", port)
    finally:
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=30)
    assert (process.returncode, rest.strip()) == (0, "Stopped.")
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


@pytest.mark.timeout(300)
def test_a_server_on_a_store_without_a_sweep_is_recognised(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    Records("x", f"sqlite:///{tmp_path}/mlflow.db", pytest.fail).start("no sweep", {})
    port = a_port()
    process, said = served(port, tmp_path)
    try:
        assert "There is no sweep yet" in said, said
        main(["ui", "--port", str(port)])
        again = capsys.readouterr().out
        assert "serves" in again
        assert "There is no sweep yet" in again
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


@pytest.mark.parametrize("port", [0, 65536])
def test_what_is_no_port_is_refused(port, capsys):
    assert f"{port} is no port: expected a number from 1 to 65535" in refused(capsys, "--port", port)


@pytest.mark.parametrize("status", [200, 404])
def test_a_port_of_another_program_is_refused(status, capsys):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path != "/health" else 404)
            self.end_headers()
            self.wfile.write(b"<p>a page</p>")

        def log_message(self, *given):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        text = refused(capsys, "--port", server.server_port)
        server.shutdown()
    assert f"Port {server.server_port} is taken by another program" in text
    assert "--port" in text


def test_an_unknown_sweep_is_refused_with_the_nearest_name(capsys):
    text = refused(capsys, "--sweep", "20260102-000000-bbbc")
    assert "has no sweep '20260102-000000-bbbc'; did you mean '20260102-000000-bbbb'?" in text
    assert "20260101-000000-aaaa" not in text  # there may be hundreds
    assert 'has no sweep "it\'s one".' in refused(capsys, "--sweep", "it's one")


def test_a_sweep_is_found_however_many_are_newer(store, monkeypatch):
    monkeypatch.setattr(mlflow_sweeps, "MOST", 1)
    oldest = mlflow_sweeps.find_sweep(Address.of(store[0]), "20260101-000000-aaaa")
    assert oldest.parent == store[1]["20260101-000000-aaaa"]
    assert mlflow_sweeps.find_sweep(Address.of(store[0])).name == "20260102-000000-bbbb"


def test_without_records_it_says_where_it_looked(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("CORNERSTONE_HOME", str(tmp_path))
    text = refused(capsys)
    assert f"{tmp_path}/mlflow.db does not exist" in text
    assert "CORNERSTONE_HOME" in text
    assert os.listdir(tmp_path) == []


def test_a_server_that_does_not_answer_is_named_without_its_password(capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://anna:secret-word@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "")
    text = refused(capsys)
    assert "MLflow at http://anna:***@127.0.0.1:9 cannot be read" in text
    assert "secret-word" not in text
