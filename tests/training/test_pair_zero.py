"""CoCa, of which CLIP is a part, and FILIP at ZeRO 0 and 3: two workers and micro-batches against one worker."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_pairs as tiny
import torch

from cornerstone.training.engine import PlainEngine

WORKER = Path(__file__).with_name("pair_zero_worker.py")


def worker_module():
    spec = importlib.util.spec_from_file_location("pair_zero_worker", WORKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MODULE = worker_module()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["coca", "filip"])
def test_stages_and_micro_batches_give_the_step_of_the_whole(tmp_path, kind):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LOCAL_RANK": "0", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(WORKER), str(tmp_path), kind]
    started = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    try:
        assert [process.wait(timeout=240) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    results = [torch.load(tmp_path / f"result-{rank}.pt") for rank in range(2)]
    engine = PlainEngine(tiny.method(kind=kind, wide=True), MODULE.OPTIMIZATION)
    reports = [engine.step(tiny.some(MODULE.ROWS, seed=step), 0.02) for step in range(2)]
    for case in results[0]:
        found = [result[case] for result in results]
        for step, report in enumerate(reports):
            loss = sum(result["losses"][step] for result in found) / 2
            assert loss == pytest.approx(float(report.loss), rel=1e-4), case
            for result in found:
                assert result["norms"][step] == pytest.approx(float(report.grad_norm), rel=1e-3), case
        for name, value in engine.weights().items():
            torch.testing.assert_close(found[0]["weights"][name], value, rtol=0, atol=2e-4, msg=f"{case} {name}")
