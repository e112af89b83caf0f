"""Methods at ZeRO 0 to 3: two workers with different shares, one of them without any image, against one worker."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from shares import CASES, OPTIMIZATION, found, together, trained

from cornerstone.training.engine import PlainEngine

STAGES = [(kind, *stage) for kind, case in CASES.items() for stage in case.zero]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What two workers found, all methods in turn."""
    made = tmp_path_factory.mktemp("zero")
    together("zero", made, 2)
    return made


@cache
def whole(kind: str) -> dict:
    return trained(PlainEngine(CASES[kind].method(True), OPTIMIZATION), CASES[kind], 0, 1)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("kind", "stage", "micro"), STAGES)
def test_stages_and_micro_batches_give_the_step_of_the_whole(folder, kind, stage, micro):
    expected, both = whole(kind), [found(folder, kind, rank)[stage, micro] for rank in range(2)]
    for step, (loss, norm) in enumerate(zip(expected["losses"], expected["norms"], strict=True)):
        assert sum(one["losses"][step] for one in both) / 2 == pytest.approx(loss, rel=1e-4)
        for one in both:
            assert one["norms"][step] == pytest.approx(norm, rel=1e-3)
    for name, value in expected["weights"].items():
        torch.testing.assert_close(both[0]["weights"][name], value, rtol=0, atol=2e-4, msg=name)
