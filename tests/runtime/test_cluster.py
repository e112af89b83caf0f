from __future__ import annotations

import os
from contextlib import nullcontext, suppress
from dataclasses import replace

import pytest

from cornerstone.errors import CornerstoneError
from cornerstone.recipes import Placement
from cornerstone.recipes.placement import Bundle
from cornerstone.runtime import cluster
from cornerstone.runtime.capacity import Node
from cornerstone.runtime.cluster import connect, require

PLACEMENT = Placement(
    workers=4, cpus_per_worker=2, decode_actors=4, cpus_per_decode_actor=0.5, wait_limit=0.2
)  # 10 CPUs


class Cluster:
    """What Ray reports of its nodes: `sizes` one poll after the other, the last one for ever; and what its autoscaler does."""

    def __init__(self, *sizes, grows=False, refuses=False, limits=None, idle=True):
        self.sizes, self.grows, self.refuses, self.idle = list(sizes), grows, refuses, idle
        self.most, self.asked, self.looks = limits or {}, [], 0

    def nodes(self):
        self.looks += 1
        return self.sizes.pop(0) if len(self.sizes) > 1 else self.sizes[0]

    def present(self):
        return self.grows

    def limits(self):
        return self.most

    def Request(self, placement):
        faked = self

        class Request:
            def ask(self, trials):
                faked.asked.append((trials, placement.bundles))

            def is_refused(self):
                return faked.refuses and bool(faked.asked)

            def withdraw(self):
                faked.asked.append("withdrawn")

        return Request()


@pytest.fixture
def on(monkeypatch):
    """Makes a cluster the one that `require` sees; it is polled often."""

    def use(*sizes, **options):
        faked = Cluster(*sizes, **options)
        monkeypatch.setattr(cluster.capacity, "nodes", faked.nodes)
        monkeypatch.setattr(cluster, "autoscaler", faked)
        monkeypatch.setattr(cluster, "_is_idle", lambda: faked.idle)
        monkeypatch.setattr(cluster, "POLL_EVERY", 0.01)
        return faked

    return use


def test_a_cluster_that_is_large_enough_is_accepted_at_once(on):
    faked, said = on([Node(10)]), []
    require(PLACEMENT, said.append)
    assert said == faked.asked == []


def test_a_cluster_that_is_too_small_and_cannot_grow_is_refused_with_the_sum(on):
    said = []
    on([Node(8), Node(1)])
    with pytest.raises(CornerstoneError) as refused:
        require(PLACEMENT, said.append)
    message = str(refused.value)
    assert "4 workers × 2 + 4 decode actors × 0.5 (training and evaluation data) = 10 CPUs" in message
    assert "the cluster has 1 node with 8 CPUs, 1 node with 1 CPU, and no autoscaler can add more" in message
    assert "Lower --workers" in message
    assert said == []


def test_every_worker_needs_a_node_that_is_large_enough(on):
    on([Node(1)] * 16)
    with pytest.raises(CornerstoneError, match="16 nodes with 1 CPU"):
        require(PLACEMENT, print)


def test_gpus_are_counted(on):
    on([Node(64, 3)])
    with pytest.raises(CornerstoneError, match="4 × 1 = 4 GPUs; the cluster has 1 node with 64 CPUs and 3 GPUs"):
        require(Placement(workers=4, gpus_per_worker=1), print)
    require(Placement(workers=3, gpus_per_worker=1), print)


@pytest.mark.parametrize(("gpus", "expected"), [(0, 0), (1, 1), (0.5, 0)])
def test_a_worker_gets_a_gpu_if_the_cluster_has_any(on, gpus, expected):
    on([Node(16, gpus)])
    placement = require(Placement(), print)
    assert (placement.gpus_per_worker, placement.trial_gpus) == (expected, expected)


def test_gpus_that_an_autoscaler_can_bring_are_asked_for(on):
    faked = on([Node(16)], [Node(16)], [Node(16)], [Node(16), Node(8, 8)], grows=True, limits={"CPU": 24.0, "GPU": 8.0})
    assert require(Placement(workers=2, wait_limit=5.0), print).gpus_per_worker == 1
    assert faked.asked[0] == (1, (Bundle(0.5, 1), Bundle(0.5, 1), Bundle(0.5), Bundle(0.5)))


def test_gpus_can_be_declined(on):
    on([Node(16, 1)])
    assert require(Placement(gpus_per_worker=0), print).trial_gpus == 0
    with pytest.raises(CornerstoneError, match=r"--placement.gpus-per-worker 0 trains on CPUs"):
        require(Placement(workers=2), print)
    with pytest.raises(CornerstoneError, match="expected 0 or more"):
        Placement(gpus_per_worker=-1)


@pytest.mark.parametrize(
    ("how", "said_limit"),
    [
        ({"refuses": True}, r"\. "),
        ({"limits": {"CPU": 8.0}}, r" \(it stops at 8 CPUs\)"),
        ({"limits": {"CPU": 8.0, "GPU": 2.0}}, r" \(it stops at 8 CPUs and 2 GPUs\)"),
    ],
)
def test_an_autoscaler_that_cannot_add_enough_is_no_reason_to_wait(on, how, said_limit):
    faked, said = on([Node(2)], grows=True, **how), []
    with pytest.raises(
        CornerstoneError, match=r"= 10 CPUs.*; .* its autoscaler cannot add what is missing" + said_limit
    ):
        require(replace(PLACEMENT, wait_limit=1000.0), said.append)
    assert faked.asked[-1] == "withdrawn"


def test_what_others_use_may_become_free(on):
    on([Node(2)], grows=True, refuses=True, idle=False)
    with pytest.raises(CornerstoneError, match="Waited 0 s"):
        require(PLACEMENT, lambda text: None)


def test_waiting_prints_for_what_and_requests_it(on):
    faked, said = on(*[[Node(2)]] * 4, *[[Node(2), Node(4)]] * 2, [Node(2), Node(8)], grows=True), []
    require(PLACEMENT, said.append)
    assert len(said) == 1  # not at every poll
    assert "waiting for the autoscaler to add room for 4 workers × 2 + 4 decode actors × 0.5" in said[0]
    assert "(the cluster has 1 node with 2 CPUs)" in said[0]
    assert faked.asked[0] == (1, (Bundle(2),) * 4 + (Bundle(0.5),) * 4)
    assert faked.asked[-1] == "withdrawn"  # otherwise the cluster would never shrink
    assert faked.looks >= 5


def test_the_message_about_waiting_is_repeated(on, monkeypatch):
    monkeypatch.setattr(cluster, "SAY_EVERY", 0.0)
    said = []
    on(*[[Node(2)]] * 5, [Node(10)], grows=True)
    require(PLACEMENT, said.append)
    assert len(said) > 1


def test_waiting_ends_at_the_limit(on):
    faked = on([Node(2)], grows=True)
    with pytest.raises(CornerstoneError, match=r"Waited 0 s for the autoscaler.*2 CPUs.*placement.wait-limit"):
        require(PLACEMENT, lambda text: None)
    assert faked.asked[-1] == "withdrawn"


GPU_NODE, CPU_NODE = Node(8, 4, "train"), Node(16, 0, "decode")


@pytest.mark.parametrize(
    ("nodes", "given", "groups"),
    [
        ([GPU_NODE, CPU_NODE], {}, ("train", "decode")),
        ([GPU_NODE, Node(16)], {}, ("train", "")),
        ([Node(16, 4)], {}, ("", "")),  # a cluster without such labels
        ([GPU_NODE, CPU_NODE], {"gpus_per_worker": 0}, ("", "decode")),  # on CPUs, workers need no GPU node
        ([GPU_NODE, CPU_NODE], {"gpus_per_worker": 0, "worker_group": "train"}, ("train", "decode")),
        ([GPU_NODE, CPU_NODE], {"decode_group": ""}, ("train", "")),
        ([GPU_NODE, Node(0.5, 0, "decode")], {}, ("", "")),  # the group is too small for a trial
    ],
)
def test_groups_are_used_where_nodes_carry_their_label(on, nodes, given, groups):
    on(nodes)
    placement = require(Placement(workers=2, **given), print)
    assert (placement.worker_group, placement.decode_group) == groups


def test_a_group_that_is_named_and_not_there_is_refused(on):
    on([GPU_NODE])
    with pytest.raises(
        CornerstoneError, match=r"× 0.5 on nodes of role decode .* 4 GPUs \(role train\), and no autoscaler"
    ):
        require(Placement(decode_group="decode"), print)


class Ray:
    """The functions of Ray that `connect` calls."""

    def __init__(self, monkeypatch, running=False):
        self.calls = []
        monkeypatch.setattr("ray.is_initialized", lambda: running)
        monkeypatch.setattr("ray.init", lambda **options: self.calls.append(options))
        monkeypatch.setattr("ray.shutdown", lambda: self.calls.append("shutdown"))
        monkeypatch.setattr(cluster, "_warm_up", lambda: self.calls.append("warm up"))


def test_ray_is_started_here_and_stopped_even_after_a_failure(monkeypatch):
    ray, said = Ray(monkeypatch), []
    with suppress(ZeroDivisionError), connect(said.append):
        raise ZeroDivisionError
    assert ray.calls[0]["address"] == "local"
    assert ray.calls[0]["dashboard_host"] == "127.0.0.1"
    assert ray.calls[1:] == ["warm up", "shutdown"]
    assert "RAY_ADDRESS" in said[0]


@pytest.mark.parametrize("before", [None, "http://head:8265"])
def test_a_local_ray_uses_its_own_dashboard(monkeypatch, before):
    """Otherwise Ray Train's cleaner asks the Ray that was last started on the machine, and removes what that does not know."""
    ray = Ray(monkeypatch)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    if before:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", before)
    with connect(print):
        assert os.environ["RAY_API_SERVER_ADDRESS"] == f"http://127.0.0.1:{ray.calls[0]['dashboard_port']}"
    assert os.environ.get("RAY_API_SERVER_ADDRESS") == before


def test_a_named_cluster_is_joined(monkeypatch):
    ray, said = Ray(monkeypatch), []
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "NodeID": "a", "NodeManagerAddress": "10.0.0.1"}])
    with connect(said.append):
        assert ray.calls[0]["address"] == "10.0.0.1:6379"
    assert said == []


def test_a_ray_that_runs_already_is_neither_started_nor_stopped(monkeypatch):
    ray = Ray(monkeypatch, running=True)
    with connect(print):
        pass
    assert ray.calls == []


@pytest.fixture
def three_machines(monkeypatch):
    """A cluster to join; `problems` are those of each node with the home."""
    Ray(monkeypatch)
    nodes = [{"Alive": i < 3, "NodeID": f"node-{i}", "NodeManagerAddress": f"10.0.0.{i}"} for i in range(5)]
    problems = dict.fromkeys(("node-0", "node-1", "node-2"), "")
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    monkeypatch.setattr(cluster, "_problems_of_home", lambda asked, token: [problems[node] for node in asked])
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.0:6379")
    return problems


@pytest.mark.parametrize("blind", [(), ("node-2",)])
def test_a_home_that_other_machines_cannot_use_is_an_error(three_machines, monkeypatch, tmp_path, blind):
    three_machines.update(dict.fromkeys(blind, "CORNERSTONE_HOME is here, where 10.0.0.2 cannot write: no."))
    monkeypatch.setenv("CORNERSTONE_HOME", str(tmp_path))
    expected = pytest.raises(CornerstoneError, match=r"where 10\.0\.0\.2 cannot write") if blind else nullcontext()
    with expected, connect(print):
        pass
    assert list((tmp_path / ".probe").iterdir()) == []


def test_of_many_machines_that_cannot_write_some_are_named(three_machines, monkeypatch, tmp_path):
    monkeypatch.setattr(cluster, "NAMED", 1)
    three_machines.update({node: f"{node} cannot write" for node in three_machines})
    monkeypatch.setenv("CORNERSTONE_HOME", str(tmp_path))
    with pytest.raises(CornerstoneError, match=r"^node-0 cannot write\n\(and 2 more\)$"), connect(print):
        pass


@pytest.mark.parametrize("address", ["10.0.0.0:6379", ""])
@pytest.mark.parametrize("refuses", [True, False])
def test_a_home_in_an_object_store_must_be_writable(three_machines, monkeypatch, address, refuses):
    """Also with a Ray of this machine alone: otherwise the first checkpoint would find out."""
    asked = []

    def problem_of_home(token, write=False):
        asked.append(write)
        return "CORNERSTONE_HOME is s3://bucket/home, where here cannot write" if refuses else ""

    monkeypatch.setattr(cluster, "problem_of_home", problem_of_home)
    monkeypatch.setenv("CORNERSTONE_HOME", "s3://bucket/home")
    monkeypatch.setattr("cornerstone.data.storage.Location.remove", lambda self: None)
    monkeypatch.setenv("RAY_ADDRESS", address)
    expected = pytest.raises(CornerstoneError, match="s3://bucket/home, where here cannot write")
    with expected if refuses else nullcontext(), connect(print):
        pass
    assert asked == [True]


@pytest.mark.parametrize(("value", "shown"), [("", False), ("0", False), ("1", True)])
def test_workers_logs_are_shown_on_demand(monkeypatch, value, shown):
    monkeypatch.setenv("CORNERSTONE_WORKER_LOGS", value)
    assert cluster.log_to_driver() is shown


def test_warming_up_starts_ray_datas_helpers_and_needs_no_free_cpu(ray_cluster):
    class Busy:
        pass

    actor = ray_cluster.remote(num_cpus=2)(Busy).remote()
    ray_cluster.get(actor.__ray_ready__.remote())
    ray_cluster.get(ray_cluster.remote(num_cpus=0)(cluster._first_execution).remote(), timeout=60)
    ray_cluster.kill(actor)
    named = {actor["name"] for actor in ray_cluster.util.list_named_actors(all_namespaces=True)}
    assert {"AutoscalingCoordinator", "datasets_stats_actor"} <= named
