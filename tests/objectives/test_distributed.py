"""Shares on several workers against the whole on one, in float64."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cornerstone.objectives.gather import gather, gather_values, rank, workers

WORKER = Path(__file__).with_name("gloo_worker.py")
ROWS, WIDTH, FEATURES = 5, 6, 4


def worker_module():
    spec = importlib.util.spec_from_file_location("gloo_worker", WORKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def some_data(n: int) -> dict[str, torch.Tensor]:
    """Rows with masks that differ between workers (the second has no raw text) and a row that two workers hold."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows = torch.arange(n * ROWS)
    data = {"image": normal(n * ROWS, 7), "text": normal(n * ROWS, FEATURES, 7), "row": rows.clone()}
    data["row"][-1] = data["row"][0]
    data["raw_valid"] = (rows % 4 != 1) & (rows // ROWS != 1)
    data["long_valid"] = rows % 7 != 3
    data |= {"image_weight": normal(7, WIDTH), "text_weight": normal(7, WIDTH)}
    return data | {"log_scale": torch.tensor([1.3], dtype=torch.float64)}


@pytest.mark.parametrize(("n", "backend"), [(3, "gloo"), (2, "nccl")])
def test_shares_give_the_gradients_of_the_whole(tmp_path, n, backend):
    data = some_data(n)
    torch.save(data, tmp_path / "data.pt")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([sys.executable, str(WORKER), str(tmp_path), str(i), str(n), backend], env=environment)
        for i in range(n)
    ]
    assert [process.wait(timeout=120) for process in started] == [0] * n
    shared_parts, shared_gradients = torch.load(tmp_path / "result.pt")
    parts, gradients = worker_module().backward(data, slice(None), chunk=None)
    torch.testing.assert_close(torch.stack(shared_parts), torch.stack(parts).detach(), rtol=1e-12, atol=1e-12)
    for shared, whole in zip(shared_gradients, gradients, strict=True):
        assert whole.abs().max() > 1e-3
        torch.testing.assert_close(shared, whole, rtol=1e-10, atol=1e-12)


def test_alone_nothing_is_gathered():
    local = torch.randn(3, 2, requires_grad=True)
    assert (workers(), rank()) == (1, 0)
    assert gather(local) is local
    assert not gather_values(local).requires_grad
