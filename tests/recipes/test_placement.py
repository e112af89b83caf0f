from __future__ import annotations

import pytest

from cornerstone.errors import CornerstoneError
from cornerstone.recipes import Placement


def test_the_arithmetic_counts_workers_and_the_stream():
    placement = Placement(workers=3, cpus_per_worker=2, decode_actors=4, cpus_per_decode_actor=0.5)
    assert placement.trial_cpus == 8
    assert placement.trial_gpus == 0
    expected = "3 workers × 2 + 4 decode actors × 0.5 (training and evaluation data) = 8 CPUs"
    assert placement.arithmetic() == expected
    on_gpus = Placement(workers=3, cpus_per_worker=2, decode_actors=4, gpus_per_worker=1)
    assert on_gpus.trial_gpus == 3
    assert on_gpus.arithmetic() == f"{expected}, and 3 × 1 = 3 GPUs"


def test_the_default_fits_two_cores():
    assert Placement().trial_cpus <= 2


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"workers": 0}, "--workers"),
        ({"zero_stage": 4}, "--zero-stage"),
        ({"micro_batch": -1}, "--placement.micro-batch"),
        ({"decode_actors": 0}, "--placement.decode-actors"),
        ({"cpus_per_worker": 0}, "some CPU"),
        ({"cpus_per_decode_actor": -1}, "some CPU"),
    ],
)
def test_what_cannot_run_is_refused(changes, named):
    with pytest.raises(CornerstoneError, match=named):
        Placement(**changes)
