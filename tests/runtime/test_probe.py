"""What the probe sees from one node."""

from __future__ import annotations

import http.server
import threading

import pytest

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.options import placement_of
from cornerstone.recipes.placement import Placement
from cornerstone.runtime.home import home
from cornerstone.runtime.probe import Report, _one_of_each_kind, problem_of_home, problem_of_tracking, problems_here


@pytest.fixture
def server():
    """A server that answers every request with the status in its path."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(int(self.path.split("/")[1]))
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield listening.server_address[1]
        listening.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "reached"), [(200, True), (401, True), (404, True), (502, False)])
def test_a_tracking_server_is_reached_if_it_answers(server, status, reached):
    problem = problem_of_tracking(f"http://127.0.0.1:{server}/{status}")
    assert bool(problem) is not reached


def test_a_tracking_server_that_nobody_finds_here_is_named_without_its_password(server):
    for address in ("http://me:secret@tracking.invalid:5000", "postgresql://me:secret@tracking.invalid/mlflow"):
        problem = problem_of_tracking(address)
        assert problem.startswith(f"MLFLOW_TRACKING_URI is {address.partition('://')[0]}://tracking.invalid")
        assert "cannot reach" in problem
        assert "secret" not in problem
    assert problem_of_tracking(f"mysql+pymysql://127.0.0.1:{server}/mlflow") == ""


@pytest.mark.parametrize("address", ["", "sqlite:////shared/mlflow.db", "/shared/mlruns", "databricks"])
def test_addresses_that_name_no_server_are_not_asked(address):
    assert problem_of_tracking(address) == ""


def test_a_home_is_written_by_the_head_and_seen_and_written_by_the_nodes(monkeypatch, tmp_path):
    monkeypatch.setenv("CORNERSTONE_HOME", str(tmp_path / "shared"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert problem_of_home("token", write=True) == ""
    assert problems_here("token") == []
    assert home().join(".probe").list() == ["token"]
    monkeypatch.setenv("CORNERSTONE_HOME", str(tmp_path / "own"))
    assert "sees a folder of its own" in problem_of_home("token")
    monkeypatch.setenv("CORNERSTONE_HOME", "/proc/nowhere")
    assert "where" in problem_of_home("token", write=True)
    assert "cannot write" in problem_of_home("token")


def test_a_report_is_found_in_a_jobs_output():
    report = Report(["a: b\nc"], ["d"])
    assert Report.read(f"noise\n{report.line()}\nmore") == report
    assert Report.read("noise\n") is None


def test_one_node_of_each_kind_is_looked_at():
    def node(name, cpus, role="", head=False):
        resources = {"CPU": cpus, f"node:{name}": 1.0, **({"node:__internal_head__": 1.0} if head else {})}
        labels = {"ray.io/node-id": name, **({"cornerstone.io/role": role} if role else {})}
        return {"NodeID": name, "Resources": resources, "Labels": labels}

    nodes = [
        node("head", 4, head=True),
        node("a", 4),
        node("b", 4),
        node("c", 8),
        node("d", 8, "train"),
        node("e", 8, "train"),
    ]
    assert [one["NodeID"] for one in _one_of_each_kind(nodes)] == ["head", "a", "c", "d"]


def test_the_placement_is_read_among_all_options():
    options = ["--preset", "lotlip-3m", "--workers", "8", "--eval", "a=s3://a", "b=s3://b", "--only", "0, no mask", "2"]
    options += ["--placement.gpus-per-worker", "1", "--zero-stage", "3", "--recipe.data.tokenizer", "t"]
    assert placement_of(options) == Placement(workers=8, gpus_per_worker=1, zero_stage=3)
    assert placement_of([]) == Placement()
    with pytest.raises(CornerstoneError, match="Cannot read the placement of: --workers many"):
        placement_of(["--workers", "many"])
