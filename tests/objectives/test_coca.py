"""CoCa's loss against the public code's numbers, and what its parts are a mean over."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from cornerstone.objectives import coca_loss, contrastive_loss, token_losses

WEIGHTS = {"case0": 2.0, "case1": 1.0}


@pytest.mark.parametrize("case", WEIGHTS)
@pytest.mark.parametrize("chunk", [None, 2])
def test_the_public_loss(test_data, case, chunk):
    path = test_data / "reference" / "coca_loss.safetensors"
    if not path.exists():
        pytest.skip(f"no {path}")
    io = {k.removeprefix(f"{case}."): x for k, x in safetensors.torch.load_file(path).items() if k.startswith(case)}
    leaves = {name: io[name].clone().requires_grad_() for name in ("image", "text", "logits", "log_scale")}
    unread = torch.zeros(len(io["labels"]), 1, dtype=torch.long)
    ids = torch.cat([unread, io["labels"]], dim=1)  # labels[:, i] is the token behind position i
    target = ids != 0
    hidden = torch.nn.functional.pad(leaves["logits"], (0, 0, 0, 1))
    found = token_losses(hidden, ids, target, lambda x: x, chunk=chunk, vocabulary=hidden.shape[-1])
    parts = coca_loss(
        leaves["image"],
        leaves["text"],
        leaves["log_scale"].exp(),
        found.sum_B1,
        target.sum(),
        caption_weight=WEIGHTS[case],
        chunk=chunk,
    )
    for name, value in parts.items():
        torch.testing.assert_close(value, io[name], rtol=0, atol=1e-12)
    sum(parts.values()).backward()
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, io[f"grad_{name}"], rtol=0, atol=1e-12, msg=name)


def test_the_parts_are_weighed_and_one_without_targets_is_0():
    image, text = (torch.nn.functional.normalize(torch.randn(4, 6), dim=-1) for _ in range(2))
    sums, tokens = torch.tensor([[6.0], [0.0], [2.0], [4.0]]), torch.tensor(6)
    parts = coca_loss(image, text, 10.0, sums, tokens, contrastive_weight=3.0, caption_weight=0.5)
    assert parts["caption"].item() == pytest.approx(0.5 * 12 / 6)
    torch.testing.assert_close(parts["contrastive"], 3 * contrastive_loss(image, text, 10.0))
    assert coca_loss(image, text, 10.0, 0 * sums, 0 * tokens)["caption"].item() == 0
    assert set(coca_loss(image, text, 10.0, None, None)) == {"contrastive"}
