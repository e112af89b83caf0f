"""BLIP-2's contrastive loss and hard negatives against the released code's numbers and plain loops, in float64."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from cornerstone.objectives import query_contrastive_loss
from cornerstone.objectives.blip2 import drawn_columns, negative_probability, query_similarity

CASES = ["n6_q4_d12", "n5_q3_d8", "w2_n4_q3_d10"]


@pytest.fixture(scope="module")
def reference(test_data):
    path = test_data / "reference" / "blip2_itc.safetensors"
    if not path.exists():
        pytest.skip(f"no {path}")
    return safetensors.torch.load_file(path)


def unit(x):
    return F.normalize(x, dim=-1)


def near(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("chunk", [None, 2])
def test_the_released_codes_value_and_gradients(reference, case, full, chunk):
    """A case of two ranks is a mean over ranks of equally many rows, so it is that of one rank that holds all."""
    if full and case.startswith("w2"):
        pytest.skip("no such gradient was recorded")
    leaves = [reference[f"{case}.{name}"].clone().requires_grad_() for name in ("query", "text", "temp")]
    query, text, temp = leaves
    loss = query_contrastive_loss(
        unit(query), unit(text), (1 / temp)[None], label_smoothing=0.1, constant_columns=not full, chunk=chunk
    )
    near(loss, reference[f"{case}.itc"].mean())
    for name, found in zip(("query", "text", "temp"), torch.autograd.grad(loss, leaves), strict=True):
        near(found, reference[f"{case}.grad_{name}" + ("_full" if full else "")])


@pytest.mark.parametrize("case", CASES)
def test_the_released_codes_chances_of_hard_negatives(reference, case):
    query, text, temp = (reference[f"{case}.{name}"] for name in ("query", "text", "temp"))
    logits = query_similarity(unit(query), unit(text)) / temp
    ids = {"": torch.arange(len(text))}
    if f"{case}.same.ids" in reference:
        ids["same."] = reference[f"{case}.same.ids"]
    for same, id_N in ids.items():
        excluded = id_N[:, None] == id_N
        near(negative_probability(logits, excluded), reference[f"{case}.{same}weights_i2t"])
        near(negative_probability(logits.T, excluded), reference[f"{case}.{same}weights_t2i"])


def given(rows=7, queries=3, width=6):
    draw = torch.Generator().manual_seed(4)
    image = torch.randn(rows, queries, width, generator=draw, dtype=torch.float64)
    text = torch.randn(rows, width, generator=draw, dtype=torch.float64)
    return [x.requires_grad_() for x in (image, text, torch.tensor([1.2], dtype=torch.float64))]


def looped(image, text, scale, ids, valid, smoothing):
    """By definition, one pair at a time."""
    image, text, total = unit(image), unit(text), []
    rows = [i for i in range(len(text)) if valid[i]]
    for of in (lambda i, j: (image[i] @ text[j]).max(), lambda i, j: (image[j] @ text[i]).max()):
        for i in rows:
            columns = [j for j in rows if i == j or ids[i] != ids[j]]
            log_p = (scale * torch.stack([of(i, j) for j in columns])).log_softmax(0)
            total.append(-(1 - smoothing) * log_p[columns.index(i)] - smoothing * log_p.mean())
    return torch.stack(total).sum() / 2 / max(len(rows), 1)


@pytest.mark.parametrize("chunk", [None, 1, 3])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_masked_and_repeated_rows_are_left_out(chunk, smoothing):
    image, text, log_scale = leaves = given()
    ids, valid = [4, 5, 4, 6, 7, 8, 7], [True, True, True, False, True, True, False]
    loss = query_contrastive_loss(
        unit(image),
        unit(text),
        log_scale.exp(),
        label_smoothing=smoothing,
        row_ids_B=torch.tensor(ids),
        valid_B=torch.tensor(valid),
        chunk=chunk,
    )
    expected = looped(image, text, log_scale.exp(), ids, valid, smoothing)
    near(loss, expected)
    for mine, theirs in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True):
        near(mine, theirs)


def test_no_valid_row_is_a_loss_of_0_with_a_graph():
    image, text, log_scale = given()
    loss = query_contrastive_loss(
        unit(image), unit(text), log_scale.exp(), valid_B=torch.zeros(7, dtype=torch.bool), label_smoothing=0.1
    )
    loss.backward()
    assert loss.item() == 0
    assert image.grad.abs().sum() == text.grad.abs().sum() == 0


def test_columns_are_drawn_as_often_as_they_are_likely():
    """10,000 draws of one row: 3 standard errors."""
    probability = torch.tensor([0.0, 0.5, 0.2, 0.0, 0.3], dtype=torch.float64)
    draws = 10_000
    uniform = (torch.arange(draws) + 0.5) / draws
    found = drawn_columns(probability.expand(draws, -1), torch.arange(5), uniform.double())
    share = torch.bincount(found, minlength=5) / draws
    torch.testing.assert_close(share.double(), probability, rtol=0, atol=1e-3)


def test_the_order_of_the_columns_changes_no_draw():
    draw = torch.Generator().manual_seed(2)
    probability = torch.rand(50, 9, generator=draw, dtype=torch.float64).softmax(1)
    ids, uniform = torch.randperm(9, generator=draw) * 10, torch.rand(50, generator=draw, dtype=torch.float64)
    order = torch.randperm(9, generator=draw)
    one = ids[drawn_columns(probability, ids, uniform)]
    other = ids[order][drawn_columns(probability[:, order], ids[order], uniform)]
    assert torch.equal(one, other)
    assert len(one.unique()) > 5


def test_a_row_without_a_candidate_draws_none():
    excluded = torch.tensor([[True, True, True], [True, False, True]])
    probability = negative_probability(torch.randn(2, 3), excluded)
    assert torch.equal(probability, torch.tensor([[0.0, 0, 0], [0, 1, 0]], dtype=torch.float64))
    for uniform in (0.0, 0.5, 1 - 1e-9):
        assert drawn_columns(probability, torch.arange(3), torch.full((2,), uniform)).tolist() == [-1, 1]
