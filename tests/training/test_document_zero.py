"""Methods on documents at ZeRO 0 to 3: two workers with different numbers of images, one without any, against one worker."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import tiny_documents as tiny
import torch

from cornerstone.training.engine import PlainEngine

WORKER = Path(__file__).with_name("document_zero_worker.py")


def worker_module():
    spec = importlib.util.spec_from_file_location("document_zero_worker", WORKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MODULE = worker_module()
CASES = [(kind, stage, micro) for kind in tiny.KINDS for stage in MODULE.stages(kind) for micro in MODULE.MICRO]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Callable[[str], list[dict]]:
    """What both workers found, by kind; every kind is trained once."""

    @cache
    def two(kind: str) -> list[dict]:
        folder = tmp_path_factory.mktemp(kind)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "LOCAL_RANK": "0", "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, str(WORKER), str(folder), kind]
        started = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
        try:
            assert [process.wait(timeout=240) for process in started] == [0, 0]
        finally:
            for process in started:
                process.kill()
        return [torch.load(folder / f"result-{rank}.pt") for rank in range(2)]

    return two


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("kind", "stage", "micro"), CASES)
def test_stages_and_micro_batches_give_the_step_of_the_whole(trained, kind, stage, micro):
    engine = PlainEngine(tiny.method(kind=kind, wide=True), MODULE.OPTIMIZATION)
    reports = [engine.step(tiny.some(MODULE.ROWS, seed=step, images=MODULE.IMAGES), 0.02) for step in range(2)]
    found = [result[stage, micro] for result in trained(kind)]
    for step, report in enumerate(reports):
        assert sum(result["losses"][step] for result in found) / 2 == pytest.approx(float(report.loss), rel=1e-4)
        for result in found:
            assert result["norms"][step] == pytest.approx(float(report.grad_norm), rel=1e-3)
    for name, value in engine.weights().items():
        torch.testing.assert_close(found[0]["weights"][name], value, rtol=0, atol=2e-4, msg=name)
