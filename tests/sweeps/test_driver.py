"""How many trials run at a time."""

from __future__ import annotations

import pytest

from cornerstone.recipes.placement import Placement
from cornerstone.sweeps.driver import trials_at_a_time

TRIAL = {"workers": 4, "gpus_per_worker": 1, "cpus_per_worker": 1.0, "decode_actors": 4, "cpus_per_decode_actor": 1.0}


@pytest.fixture
def holds(monkeypatch):
    """The number of trials of 8 CPUs and 4 GPUs by what is there and what an autoscaler may bring."""

    def counted(present, limits, **placement):
        monkeypatch.setattr("ray.cluster_resources", lambda: present)
        monkeypatch.setattr("cornerstone.runtime.cluster.autoscaler_limits", lambda: limits)
        return trials_at_a_time(Placement(**(TRIAL | placement)))

    return counted


@pytest.mark.parametrize(
    ("present", "limits", "expected"),
    [
        ({"CPU": 32.0, "GPU": 8.0}, {}, 2),  # a fixed cluster
        ({"CPU": 17.0, "GPU": 64.0}, {}, 2),
        ({"CPU": 8.0, "GPU": 4.0}, {"CPU": 96.0, "GPU": 32.0}, 8),  # a cluster that has not grown yet
        ({"CPU": 8.0}, {"CPU": 96.0, "GPU": 32.0}, 8),  # a head without a GPU
        ({"CPU": 96.0, "GPU": 32.0}, {"CPU": 8.0, "GPU": 4.0}, 8),  # nodes that the autoscaler does not own
        ({"CPU": 2.0}, {}, 1),
    ],
)
def test_what_an_autoscaler_may_bring_counts(holds, present, limits, expected):
    assert holds(present, limits) == expected


def test_trials_without_gpus_count_cpus_alone(holds):
    assert holds({"CPU": 8.0, "GPU": 0.0}, {"CPU": 64.0}, gpus_per_worker=0) == 8


def test_a_number_that_is_given_wins(holds):
    assert holds({"CPU": 8.0, "GPU": 4.0}, {"CPU": 96.0, "GPU": 32.0}, concurrent_trials=3) == 3
