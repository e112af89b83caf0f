"""SigLIP's loss against open_clip's, value and gradients in float64, on one to three ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from cornerstone.objectives import siglip_loss

REFERENCE = Path(__file__).parents[1] / "fixtures" / "siglip_loss.safetensors"
WORKER = Path(__file__).with_name("siglip_worker.py")
NAMES = ("image", "text", "log_t", "b")


def cases() -> list[dict]:
    with safe_open(REFERENCE, "pt") as file:
        return json.loads(file.metadata()["cases"])


def reference(case: str) -> dict[str, torch.Tensor]:
    with safe_open(REFERENCE, "pt") as file:
        return {name.split(".")[1]: file.get_tensor(name) for name in file.keys() if name.startswith(case + ".")}  # noqa: SIM118


def inputs_of(tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Features, and temperature and bias of shape (1,), all with gradients."""
    return [(t.reshape(1) if t.ndim == 0 else t).clone().requires_grad_() for t in map(tensors.get, NAMES)]


def dense(image, text, scale, bias, ids, valid):
    """The sum over all pairs, with loops."""
    rows = [i for i in range(len(image)) if valid[i]]
    total = 0 * scale.sum()
    for i in rows:
        for j in rows:
            if i != j and ids[i] == ids[j]:
                continue
            sign = 1 if i == j else -1
            total = total - F.logsigmoid(sign * (scale * (image[i] * text[j]).sum() + bias)).sum()
    return total.squeeze() / max(len(rows), 1)


@pytest.mark.parametrize("case", [case["case"] for case in cases()])
@pytest.mark.parametrize("chunk", [None, 1, 5])
def test_value_and_gradients_are_open_clips(case, chunk):
    wanted = reference(case)
    image, text, log_t, b = inputs = inputs_of(wanted)
    loss = siglip_loss(image, text, log_t.exp(), b, chunk=chunk)
    torch.testing.assert_close(loss, wanted["loss"], rtol=1e-12, atol=1e-12)
    for gradient, name in zip(torch.autograd.grad(loss, inputs), NAMES, strict=True):
        torch.testing.assert_close(gradient, wanted[f"grad_{name}"].reshape(gradient.shape), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("chunk", [None, 2])
def test_masked_and_repeated_rows_are_left_out(chunk):
    image, text, log_t, b = inputs = inputs_of(reference("n9_d16_0"))
    ids, valid = [4, 5, 4, 6, 7, 8, 7, 7, 9], [True, True, True, False, True, True, False, True, True]
    with torch.no_grad():
        image[3], text[6] = float("inf"), float("nan")  # what a masked row holds must not matter
    loss = siglip_loss(
        image, text, log_t.exp(), b, row_ids_B=torch.tensor(ids), valid_B=torch.tensor(valid), chunk=chunk
    )
    expected = dense(image, text, log_t.exp(), b, ids, valid)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, theirs.nan_to_num(), rtol=1e-10, atol=1e-12)


def test_no_valid_row_is_a_loss_of_0_with_a_graph():
    image, text, log_t, b = inputs_of(reference("n9_d16_0"))
    loss = siglip_loss(image, text, log_t.exp(), b, valid_B=torch.zeros(9, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert image.grad.abs().sum() == 0


@pytest.mark.slow
@pytest.mark.parametrize("case", [case["case"] for case in cases() if "world" in case])
def test_ranks_give_the_gradients_of_the_whole(case, tmp_path):
    """Also with different numbers of rows, one rank without any."""
    world = next(one["world"] for one in cases() if one["case"] == case)
    wanted = reference(case)
    torch.save(wanted, tmp_path / "data.pt")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(WORKER), str(tmp_path)]
    started = [subprocess.Popen([*command, str(rank), str(world)], env=environment) for rank in range(world)]
    assert [process.wait(timeout=120) for process in started] == [0] * world
    for way, (loss, gradients) in torch.load(tmp_path / "result.pt").items():
        torch.testing.assert_close(loss, wanted["loss"], rtol=1e-12, atol=1e-12, msg=way)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, wanted[f"grad_{name}"].reshape(gradient.shape), rtol=1e-10, atol=1e-13)
