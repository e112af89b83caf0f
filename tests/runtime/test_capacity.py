from __future__ import annotations

import pytest

from cornerstone.recipes.placement import Placement
from cornerstone.runtime.capacity import Node, in_words, nodes, trials_held

TRIAL = Placement(
    workers=4, gpus_per_worker=1, cpus_per_worker=1.0, decode_actors=4, cpus_per_decode_actor=1.0
)  # 8 CPUs and 4 GPUs
GROUPED = Placement(
    workers=2, gpus_per_worker=1, decode_actors=2, worker_group="train", decode_group="decode"
)  # 2 × 0.5 with a GPU, 2 × 0.5


@pytest.mark.parametrize(
    ("placement", "cluster", "expected"),
    [
        (TRIAL, [Node(32, 8)], 2),
        (TRIAL, [Node(17, 64)], 2),
        (TRIAL, [Node(8, 4), Node(8, 4), Node(8, 4)], 3),
        (TRIAL, [Node(4, 4), Node(4)], 1),  # decode actors leave the CPUs of GPU nodes to workers
        (TRIAL, [Node(4), Node(4, 4)], 1),
        (TRIAL, [Node(0.5, 1)] * 16, 0),  # enough in total, but no node takes a worker
        (TRIAL, [], 0),
        (Placement(gpus_per_worker=0, cpus_per_worker=0.1, cpus_per_decode_actor=0.1), [Node(0.3)], 1),  # 0.1 × 3 > 0.3
        (Placement(gpus_per_worker=0), [Node(1), Node(1), Node(1)], 2),
        (GROUPED, [Node(8, 4, "train"), Node(1, 0, "decode")], 1),
        (GROUPED, [Node(8, 4, "train"), Node(16)], 0),
        (GROUPED, [Node(8, 4), Node(16, 0, "decode")], 0),
    ],
)
def test_a_trial_is_counted_if_every_bundle_has_a_node(placement, cluster, expected):
    assert trials_held(placement, cluster) == expected


def test_nodes_in_words():
    cluster = [Node(8), Node(1), Node(8), Node(64, 1, "train")]
    assert in_words(cluster) == "2 nodes with 8 CPUs, 1 node with 1 CPU, 1 node with 64 CPUs and 1 GPU (role train)"
    assert in_words([]) == "no node"


def test_nodes_that_are_alive_are_read_with_their_role(monkeypatch):
    listed = [
        {"Alive": True, "Resources": {"CPU": 4.0, "memory": 1.0}, "Labels": {"cornerstone.io/role": "decode"}},
        {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}, "Labels": None},
        {"Alive": True, "Resources": {}},
        {"Alive": False, "Resources": {"CPU": 64.0}},
    ]
    monkeypatch.setattr("ray.nodes", lambda: listed)
    assert nodes() == [Node(4, 0, "decode"), Node(8, 2), Node(0)]
