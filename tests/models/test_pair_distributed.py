"""Shares of the pairs on several workers, with different numbers of targets, against all of them on one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_pairs as tiny
import torch

WORKER = Path(__file__).with_name("pair_worker.py")


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_shares_give_the_gradients_of_the_whole(tmp_path, kind, workers):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(WORKER), str(tmp_path), kind]
    started = [subprocess.Popen([*command, str(rank), str(workers)], env=environment) for rank in range(workers)]
    assert [process.wait(timeout=120) for process in started] == [0] * workers
    parts, gradients = torch.load(tmp_path / "result.pt")
    spec = importlib.util.spec_from_file_location("pair_worker", WORKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    whole_parts, whole = module.backward(kind, 0, module.ROWS)
    torch.testing.assert_close(torch.stack(parts), torch.stack(whole_parts), rtol=1e-9, atol=1e-9)
    rtol, atol = (1e-5, 1e-6) if kind == "lotlip-t5" else (1e-8, 1e-10)  # T5's norm computes in fp32 in any model
    for name, value in whole.items():
        torch.testing.assert_close(gradients[name], value, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
        if name in ("logit_scale", "visual.model.patch_embed.proj.weight", "head.weight"):
            assert float(value.abs().max()) > 1e-6, name
