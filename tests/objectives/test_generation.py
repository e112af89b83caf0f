"""The generation loss in chunks: exact in value and gradient, with a number of calls that the targets do not change."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cornerstone.objectives import token_losses

ROWS, TOKENS, WIDTH, VOCABULARY = 3, 11, 6, 17


class CountingHead(nn.Linear):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def given(seed: int = 0, share: float = 0.5):
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(ROWS, TOKENS, WIDTH, generator=draw, dtype=torch.float64)
    ids = torch.randint(VOCABULARY, (ROWS, TOKENS), generator=draw)
    target = torch.rand(ROWS, TOKENS, generator=draw) < share
    target[:, 0] = False
    head = CountingHead(WIDTH, VOCABULARY).double()
    with torch.no_grad():
        for p in head.parameters():
            p.copy_(torch.randn(p.shape, generator=draw))
    return hidden, ids, target, head


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_chunks_against_full_logits(chunk, smoothing):
    hidden, ids, target, head = given()
    hidden.requires_grad_()
    losses = token_losses(hidden, ids, target, head, chunk=chunk, vocabulary=VOCABULARY, label_smoothing=smoothing)
    weight = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)[:, None]
    (losses.sum_B1 * weight).sum().backward()
    found = [hidden.grad.clone(), *(p.grad.clone() for p in head.parameters())]

    hidden.grad = None
    head.zero_grad()
    logits = head(hidden[:, :-1])
    log_p = logits.log_softmax(-1)
    own = log_p.gather(-1, ids[:, 1:, None]).squeeze(-1)
    every = -(1 - smoothing) * own - smoothing * log_p.mean(-1)
    expected = (every * target[:, 1:]).sum(1, keepdim=True)
    (expected * weight).sum().backward()
    torch.testing.assert_close(losses.sum_B1, expected)
    for mine, whole in zip(found, [hidden.grad, *(p.grad for p in head.parameters())], strict=True):
        torch.testing.assert_close(mine, whole)
    right = ((logits.argmax(-1) == ids[:, 1:]) & target[:, 1:]).sum(1, keepdim=True)
    assert torch.equal(losses.correct_B1, right.double())


def test_the_number_of_calls_does_not_depend_on_the_targets():
    """ZeRO-3 gathers the head's weights at each call: all workers must make equally many."""
    counts = []
    for share in (0.0, 0.1, 1.0):
        hidden, ids, target, head = given(share=share)
        losses = token_losses(hidden.requires_grad_(), ids, target, head, chunk=8, vocabulary=VOCABULARY)
        losses.sum_B1.sum().backward()
        counts.append(head.calls)
        assert head.weight.grad is not None
    assert len(set(counts)) == 1
