"""When a sweep's trials start, by the room that a cluster has."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from cornerstone.recipes.placement import Placement
from cornerstone.runtime.capacity import Node
from cornerstone.sweeps import room
from cornerstone.sweeps.room import AsRoomAllows, trials_at_a_time
from cornerstone.tracking.board import Board

TRIAL = Placement(gpus_per_worker=0, cpus_per_worker=1.0, decode_actors=1, cpus_per_decode_actor=1.0)  # 2 CPUs


class Cluster:
    """Nodes of 2 CPUs and their autoscaler, which is asked for `asked` trials; `stolen` if one of those got its room."""

    def __init__(self, nodes, grows):
        self.size, self.grows, self.asked, self.stolen, self.withdrawn = nodes, grows, 0, False, []
        self.SETTLE = 7.0

    def nodes(self):
        return [Node(2)] * self.size

    def present(self):
        return self.grows

    def Request(self, placement):
        assert placement.bundles == TRIAL.bundles
        return self

    def ask(self, trials):
        self.asked = trials

    def holds_room(self):
        return self.stolen

    def withdraw(self, settle=0.0):
        self.asked = 0
        self.withdrawn.append(settle)


@pytest.fixture
def on(monkeypatch):
    def use(nodes, trials, *, grows=False, **placement):
        faked, board = Cluster(nodes, grows), Board()
        monkeypatch.setattr(room, "autoscaler", faked)
        monkeypatch.setattr(room.capacity, "nodes", faked.nodes)
        monkeypatch.setattr(room, "POLL_EVERY", 0.0)
        return faked, AsRoomAllows(trials, replace(TRIAL, **placement), board), board

    return use


def started(queue, *names):
    return [suggested and suggested["index"] for suggested in map(queue.suggest, names)]


@pytest.mark.parametrize("nodes", [2, 0])
def test_as_many_trials_run_as_the_nodes_hold_and_at_least_one(on, nodes):
    faked, queue, board = on(nodes, 3)
    first = [0, 1, None] if nodes else [0, None, None]
    assert started(queue, "a", "b", "c") == first
    has = "2 nodes with 2 CPUs" if nodes else "no node"
    waits = "1 trial waits" if nodes else "2 trials wait"
    each = "" if nodes else " each"
    assert board.waits_for == f"{waits} for 2 CPUs{each}; the cluster has {has}"
    queue.on_trial_complete("a", error=True)
    assert started(queue, "d") == ([2] if nodes else [1])
    started(queue, "e")
    assert faked.asked == 0
    assert board.waits_for == ("" if nodes else "1 trial waits for 2 CPUs; the cluster has no node")


def test_after_the_last_trial_the_sweep_has_no_more(on):
    _, queue, _ = on(4, 2)
    assert started(queue, "a", "b") == [0, 1]
    assert queue.suggest("c") is None


def test_a_number_that_is_given_is_the_most(on):
    _, queue, board = on(8, 8, concurrent_trials=3)
    assert started(queue, *"abcd") == [0, 1, 2, None]
    assert board.waits_for == "5 trials wait for one of 3 to end (--placement.concurrent-trials 3)"
    _, queue, _ = on(8, 8, grows=True, concurrent_trials=3)
    assert started(queue, *"abcd") == [0, 1, 2, None]


def test_trials_that_wait_are_asked_for_and_start_as_nodes_come(on):
    faked, queue, board = on(1, 4, grows=True)
    assert started(queue, "a", "b") == [0, None]
    assert faked.asked == 3
    said = board.waits_for
    assert said.startswith("3 trials wait for the autoscaler to add room, each for 1 workers × 1 + 1 decode actors × 1")
    assert said.endswith("= 2 CPUs (the cluster has 1 node with 2 CPUs; 1 run; asked for 3 more)")
    faked.size = 3
    assert started(queue, "b", "c", "d") == [1, 2, None]
    assert faked.asked == 1
    assert faked.withdrawn[-1] == faked.SETTLE  # nobody takes the room before the trial that was started
    queue.on_trial_complete("a")
    assert started(queue, "d") == [3]
    assert (faked.asked, board.waits_for) == (0, "")  # nobody waits any more


def test_no_more_is_asked_for_than_may_run(on):
    faked, queue, _ = on(1, 9, grows=True, concurrent_trials=3)
    assert started(queue, "a", "b") == [0, None]
    assert faked.asked == 2


def test_a_request_that_took_the_room_of_a_started_trial_is_withdrawn(on):
    faked, queue, _ = on(1, 3, grows=True)
    faked.stolen = True
    assert started(queue, "a", "b") == [0, None]
    assert faked.withdrawn == [faked.SETTLE, faked.SETTLE]


def test_a_cluster_that_has_shrunk_to_nothing_is_asked_to_grow_before_the_next_round(on):
    faked, queue, _ = on(0, 2, grows=True)
    assert started(queue, "a") == [None]
    assert faked.asked == 2
    faked.size = 1
    assert started(queue, "a", "b") == [0, None]
    _, impatient, _ = on(0, 2, grows=True, wait_limit=-1.0)
    assert started(impatient, "a", "b") == [0, None]


def test_the_end_withdraws_the_request(on):
    faked, queue, board = on(1, 3, grows=True)
    started(queue, "a", "b")
    queue.close()
    assert (faked.asked, faked.withdrawn[-1], board.waits_for) == (0, 0.0, "")


def test_the_nodes_are_looked_at_now_and_then(on, monkeypatch):
    faked, queue, _ = on(1, 3, grows=True)
    started(queue, "a", "b")
    monkeypatch.setattr(room, "POLL_EVERY", 1000.0)
    faked.size = 3
    assert started(queue, "b") == [None]
    queue.on_trial_complete("a")  # a trial that ends leaves room
    assert started(queue, "b") == [1]


def test_tune_can_store_it(on):
    _, queue, _ = on(1, 3)
    pickle.dumps(queue)


@pytest.mark.parametrize(("nodes", "given", "expected"), [(4, 0, 4), (0, 0, 1), (4, 3, 3)])
def test_trials_at_a_time(monkeypatch, nodes, given, expected):
    monkeypatch.setattr(room.capacity, "nodes", lambda: [Node(2)] * nodes)
    assert trials_at_a_time(replace(TRIAL, concurrent_trials=given)) == expected
