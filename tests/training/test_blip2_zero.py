"""BLIP-2 at ZeRO 1 and 3: two workers, whose negatives may be each other's, against one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_blip2 as tiny
import torch

from cornerstone.training.engine import PlainEngine

WORKER = Path(__file__).with_name("blip2_zero_worker.py")


@pytest.mark.timeout(300)
def test_stages_give_the_step_of_the_whole(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LOCAL_RANK": "0", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(WORKER), str(tmp_path)]
    started = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    try:
        assert [process.wait(timeout=240) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    results = [torch.load(tmp_path / f"result-{rank}.pt") for rank in range(2)]
    spec = importlib.util.spec_from_file_location("blip2_zero_worker", WORKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    engine = PlainEngine(tiny.method(wide=True), module.OPTIMIZATION)
    reports = [engine.step(tiny.batch().rows(0, module.ROWS), 0.01) for _ in range(2)]
    for stage in module.STAGES:
        found = [result[stage] for result in results]
        for step, report in enumerate(reports):
            assert sum(one["losses"][step] for one in found) / 2 == pytest.approx(float(report.loss), rel=1e-4)
            for one in found:
                assert one["norms"][step] == pytest.approx(float(report.grad_norm), rel=1e-3)
        for name, value in engine.weights().items():
            torch.testing.assert_close(found[0]["weights"][name], value, rtol=0, atol=2e-4, msg=name)
