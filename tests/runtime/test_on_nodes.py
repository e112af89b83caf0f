"""A function on nodes of which some go away or do not answer. Ray is a stand-in: no cluster is needed."""

from __future__ import annotations

import pytest
from ray.exceptions import GetTimeoutError, NodeDiedError, RaySystemError, TaskUnschedulableError

from cornerstone.runtime import cluster, probe
from cornerstone.runtime.on_nodes import on_nodes

ONE, GONE, THREE = "1" * 56, "2" * 56, "3" * 56


class Answers(dict):
    """By the node's id; `cancelled` are the nodes whose tasks were."""

    def __init__(self):
        super().__init__()
        self.cancelled = []


@pytest.fixture
def answers(monkeypatch):
    """What each node does with a call: raise an error, or run it for None."""
    found = Answers()

    class Task:
        def __init__(self, call):
            self.call = call

        def options(self, scheduling_strategy):
            assert not scheduling_strategy.soft
            made = Task(self.call)
            made.node = scheduling_strategy.node_id
            return made

        def remote(self, *arguments):
            return self.node, lambda: self.call(*arguments)

    def get(reference, timeout):
        node, run = reference
        assert timeout >= 0
        if isinstance(found[node], Exception):
            raise found[node]
        return run()

    def nodes():
        return [{"NodeID": node, "NodeManagerAddress": f"10.0.0.{node[0]}", "Alive": node != GONE} for node in found]

    monkeypatch.setattr("ray.remote", lambda **options: Task)
    monkeypatch.setattr("ray.get", get)
    monkeypatch.setattr("ray.nodes", nodes)
    monkeypatch.setattr("ray.cancel", lambda reference, force: found.cancelled.append(reference[0]))
    return found


@pytest.mark.parametrize(
    "error", [TaskUnschedulableError("node is dead"), NodeDiedError("gone"), GetTimeoutError(), RaySystemError("lost")]
)
def test_a_node_that_is_removed_is_left_out(answers, error):
    answers.update({ONE: None, GONE: error, THREE: None})
    assert on_nodes([ONE, GONE, THREE], lambda word: f"said {word}", "x", failed=str) == ["said x"] * 2


@pytest.mark.parametrize("error", [TaskUnschedulableError("it is being removed"), NodeDiedError("gone")])
def test_a_node_that_ray_still_lists_and_takes_no_task_is_left_out(answers, error):
    answers.update({ONE: error, THREE: None})
    assert on_nodes([ONE, THREE], lambda: "x", failed=str) == ["x"]


def test_a_node_that_does_not_answer_in_time_is_a_problem_and_its_task_is_cancelled(answers):
    answers.update({ONE: GetTimeoutError(), THREE: None})
    late, other = on_nodes([ONE, THREE], lambda: "", failed=str, seconds=3)
    assert late.startswith("The node 10.0.0.1 has not answered within 3 s.")
    assert other == ""
    assert answers.cancelled == [ONE]


def test_a_node_that_cannot_run_a_task_is_a_problem(answers):
    answers.update({ONE: RaySystemError("no disk\nTraceback")})
    (problem,) = on_nodes([ONE], lambda: "", failed=str)
    assert problem.startswith("The node 10.0.0.1 cannot run a task (RaySystemError: ")
    assert "Traceback" not in problem


def refuse(self):
    raise PermissionError("AccessDenied: s3:DeleteObject")


def test_the_check_of_the_home_goes_on_without_a_removed_node_and_without_leave_to_delete(
    answers, monkeypatch, tmp_path
):
    monkeypatch.setenv("CORNERSTONE_HOME", str(tmp_path))
    monkeypatch.setattr("cornerstone.data.storage.Location.remove", refuse)
    answers.update({ONE: None, GONE: TaskUnschedulableError("dead"), THREE: None})
    cluster._check_home()
    answers[THREE] = GetTimeoutError()
    with pytest.raises(cluster.CornerstoneError, match=r"^The node 10\.0\.0\.3 has not answered within 120 s"):
        cluster._check_home()


def test_a_probe_reports_what_a_node_does_not_answer(answers, monkeypatch, tmp_path):
    monkeypatch.setenv("CORNERSTONE_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("cornerstone.data.storage.Location.remove", refuse)
    monkeypatch.setattr(probe, "require", lambda placement, say: placement)
    monkeypatch.setattr(probe, "_one_of_each_kind", lambda nodes: [{"NodeID": node} for node in (ONE, GONE, THREE)])
    answers.update({ONE: GetTimeoutError(), GONE: TaskUnschedulableError("dead"), THREE: None})
    (problem,) = probe.probe([]).problems
    assert problem.startswith("The node 10.0.0.1 has not answered within 120 s")
