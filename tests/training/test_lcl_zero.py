"""LCL on two workers with different numbers of images, one of them without any, at ZeRO 0 to 3, against one with all."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_documents as tiny
import torch

from cornerstone.training.engine import PlainEngine

WORKER = Path(__file__).with_name("lcl_zero_worker.py")


def worker_module():
    spec = importlib.util.spec_from_file_location("lcl_zero_worker", WORKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("zero")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LOCAL_RANK": "0", "PYTHONWARNINGS": "ignore"}
    started = [
        subprocess.Popen([sys.executable, str(WORKER), str(folder), str(rank)], env=environment) for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=240) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    return [torch.load(folder / f"result-{rank}.pt") for rank in range(2)]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("micro", [0, 2])
def test_stages_and_micro_batches_give_the_step_of_the_whole(two, stage, micro):
    module = worker_module()
    engine = PlainEngine(tiny.method(wide=True), module.OPTIMIZATION)
    reports = [engine.step(tiny.some(module.ROWS, seed=step, images=module.IMAGES), 0.02) for step in range(2)]
    found = [result[stage, micro] for result in two]
    for step, report in enumerate(reports):
        assert sum(result["losses"][step] for result in found) / 2 == pytest.approx(float(report.loss), rel=1e-4)
        for result in found:
            assert result["norms"][step] == pytest.approx(float(report.grad_norm), rel=1e-3)
    for name, value in engine.weights().items():
        torch.testing.assert_close(found[0]["weights"][name], value, rtol=0, atol=2e-4, msg=name)
