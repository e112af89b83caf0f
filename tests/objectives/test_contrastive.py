from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from cornerstone.objectives import contrastive, contrastive_loss


def some(n: int = 9, width: int = 5, dtype=torch.float64, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    image, text = (
        F.normalize(torch.randn(n, width, generator=generator, dtype=torch.float64), dim=-1) for _ in range(2)
    )
    scale = torch.tensor([4.0], dtype=dtype)
    return [x.to(dtype).requires_grad_() for x in (image, text, scale)]


def looped(image, text, scale, ids=None, valid=None):
    """½ of both directions, a mean over valid rows, written with loops and plain sums of exponentials."""
    n = len(image)
    ids, valid = (list(range(n)) if ids is None else ids), ([True] * n if valid is None else valid)
    rows = [i for i in range(n) if valid[i]]
    total = 0 * image.sum()
    for queries, keys in ((image, text), (text, image)):
        for i in rows:
            columns = [j for j in rows if j == i or ids[j] != ids[i]]
            weights = [torch.exp(scale * (queries[i] * keys[j]).sum()) for j in columns]
            total = total - torch.log(torch.exp(scale * (queries[i] * keys[i]).sum()) / sum(weights)).sum()
    return 0.5 * total / max(len(rows), 1)


def gradients(loss, inputs):
    return torch.autograd.grad(loss, inputs)


def assert_equal(loss, expected, inputs, tolerance=1e-12):
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)
    for ours, theirs in zip(gradients(loss, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


IDS = [4, 5, 4, 6, 7, 8, 7, 7, 9]
VALID = [True, True, True, False, True, True, False, True, True]


@pytest.mark.parametrize("ids", [None, IDS])
@pytest.mark.parametrize("valid", [None, VALID])
@pytest.mark.parametrize("chunk", [None, 1, 4])
def test_value_and_gradients_are_those_of_the_loop(ids, valid, chunk):
    inputs = some()
    tensors = {
        "row_ids_B": None if ids is None else torch.tensor(ids),
        "valid_B": None if valid is None else torch.tensor(valid),
    }
    assert_equal(contrastive_loss(*inputs, **tensors, chunk=chunk), looped(*inputs, ids, valid), inputs)


def test_masked_rows_are_as_if_they_were_not_there():
    image, text, scale = some()
    kept = torch.tensor(VALID)
    loss = contrastive_loss(image, text, scale, valid_B=kept)
    torch.testing.assert_close(loss, contrastive_loss(image[kept], text[kept], scale), rtol=1e-12, atol=0)
    with torch.no_grad():
        broken = [torch.where(kept[:, None], x, torch.nan).requires_grad_() for x in (image, text)]
    again = contrastive_loss(*broken, scale, valid_B=kept)
    assert again == loss
    for gradient in gradients(again, [*broken, scale]):
        assert gradient.isfinite().all()
    assert not gradients(contrastive_loss(*broken, scale, valid_B=kept), broken)[0][~kept].any()


def test_the_same_row_twice_is_no_negative_of_itself():
    image, text, scale = some(2)
    same = torch.tensor([3, 3])
    assert contrastive_loss(image, text, scale, row_ids_B=same).abs() < 1e-12  # two positives, no negative
    assert contrastive_loss(image, text, scale) > 0.01


@pytest.mark.parametrize("chunk", [None, 2])
def test_no_valid_row_gives_zero_with_a_graph(chunk):
    inputs = some()
    loss = contrastive_loss(*inputs, valid_B=torch.zeros(9, dtype=torch.bool), chunk=chunk)
    assert loss == 0
    for gradient in gradients(loss, inputs):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_an_untrained_model_loses_log_n_and_a_perfect_one_nothing():
    ones = F.normalize(torch.ones(8, 4, dtype=torch.float64), dim=-1)
    torch.testing.assert_close(contrastive_loss(ones, ones, 14.0).item(), math.log(8))
    assert contrastive_loss(torch.eye(8), torch.eye(8), 100.0) < 1e-6


def test_the_matrix_of_all_pairs_is_never_held(monkeypatch):
    n = 64
    monkeypatch.setattr(contrastive, "_LOGITS", 8 * n)  # room for 8 rows at a time
    inputs = some(n, dtype=torch.float32)
    largest = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: largest.append(x.numel()) or x, lambda x: x):
        loss = contrastive_loss(*inputs)
    assert max(largest) <= n * 5, "only features may wait for the backward pass"
    monkeypatch.undo()
    assert_equal(loss, contrastive_loss(*inputs), inputs, tolerance=1e-5)


def test_similarities_are_fp32_at_least():
    image, text, scale = some(dtype=torch.bfloat16)
    loss = contrastive_loss(image, text, scale)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, contrastive_loss(image.float(), text.float(), scale.float()), rtol=0, atol=0)
    assert contrastive_loss(*some()).dtype == torch.float64
    inputs = some(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = contrastive_loss(*inputs, chunk=4)
    torch.testing.assert_close(under_autocast, contrastive_loss(*inputs, chunk=4), rtol=0, atol=0)
    under_autocast.backward()
    torch.testing.assert_close(inputs[0].grad, gradients(contrastive_loss(*inputs), inputs[:1])[0])


def test_a_scale_may_be_a_number():
    image, text, scale = some()
    torch.testing.assert_close(
        contrastive_loss(image, text, 4.0), contrastive_loss(image, text, scale), rtol=1e-12, atol=0
    )
