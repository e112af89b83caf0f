"""LoTLIP's loss against the paper's equations 1 and 4 to 6, written as loops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cornerstone.errors import CornerstoneError
from cornerstone.objectives import contrastive_loss, lotlip_loss

N, WIDTH = 6, 5


def some(corners: int):
    generator = torch.Generator().manual_seed(1)
    shapes = ((N, WIDTH), (N, WIDTH), (N, 1 + corners, WIDTH))
    features = [F.normalize(torch.randn(*s, generator=generator, dtype=torch.float64), dim=-1) for s in shapes]
    return [x.requires_grad_() for x in (*features, torch.tensor([3.0], dtype=torch.float64))]


def paper(image, raw, long, scale):
    """L_short (equation 1) and L_long (equations 4 to 6): sums over the batch and both directions."""

    def direction(of, to):
        total = 0.0
        for i in range(N):
            below = sum(torch.exp((of[i] @ to[j]) * scale) for j in range(N))
            total = total - torch.log(torch.exp((of[i] @ to[i]) * scale) / below)
        return total.sum()

    short = direction(image, raw) + direction(raw, image)
    i2t = direction(image, long[:, 0]) + sum(direction(image, long[:, k]) for k in range(1, long.shape[1]))
    t2i = direction(long[:, 0], image) + sum(direction(long[:, k], image) for k in range(1, long.shape[1]))
    return short, i2t + t2i


@pytest.mark.parametrize("corners", [0, 2])
@pytest.mark.parametrize("chunk", [None, 2])
def test_the_parts_are_the_papers_equations(corners, chunk):
    inputs = some(corners)
    parts = lotlip_loss(*inputs, chunk=chunk)
    short, long = (part / (2 * N) for part in paper(*inputs))
    torch.testing.assert_close([parts["raw"], parts["long"]], [short, long], rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad(loss, inputs) for loss in (parts["raw"] + parts["long"], short + long))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("corners", [0, 3])
def test_mean_divides_by_the_number_of_terms(corners):
    whole, mean = (lotlip_loss(*some(corners), reduction=r) for r in ("sum", "mean"))
    for name, part in whole.items():
        torch.testing.assert_close(mean[name] * (2 + corners), part)


def test_equal_balance_takes_the_mean_over_the_long_texts_features():
    whole, equal = (lotlip_loss(*some(3), balance=b) for b in ("paper", "equal"))
    torch.testing.assert_close(equal["long"] * 4, whole["long"])
    torch.testing.assert_close(equal["raw"], whole["raw"], rtol=0, atol=0)
    mean = lotlip_loss(*some(3), balance="equal", reduction="mean")
    torch.testing.assert_close([mean["raw"] * 5, mean["long"] * 5], [equal["raw"], equal["long"]])


def test_weights_multiply_the_parts():
    plain, weighted = lotlip_loss(*some(2)), lotlip_loss(*some(2), raw_weight=0.5, long_weight=3.0)
    torch.testing.assert_close([weighted["raw"], weighted["long"]], [plain["raw"] * 0.5, plain["long"] * 3.0])


def test_a_part_of_weight_zero_is_left_out():
    image, raw, long, scale = some(2)
    mean = lotlip_loss(image, raw, long, scale, reduction="mean", long_weight=0.0)
    assert list(mean) == ["raw"]
    torch.testing.assert_close(mean["raw"], contrastive_loss(image, raw, scale))
    without = lotlip_loss(image, None, long, scale, reduction="mean")
    assert list(without) == ["long"]
    torch.testing.assert_close(without["long"] * 3, lotlip_loss(image, raw, long, scale)["long"])


def test_each_term_is_a_mean_over_the_rows_that_have_its_text():
    image, raw, long, scale = some(1)
    has_raw, has_long = torch.tensor([1, 1, 0, 1, 1, 1]).bool(), torch.tensor([0, 1, 1, 1, 0, 1]).bool()
    with torch.no_grad():
        raw[2], long[0] = torch.nan, torch.inf
    parts = lotlip_loss(image, raw, long, scale, raw_valid_B=has_raw, long_valid_B=has_long)
    torch.testing.assert_close(parts["raw"], contrastive_loss(image[has_raw], raw[has_raw], scale))
    expected = sum(contrastive_loss(image[has_long], long[has_long, k], scale) for k in range(2))
    torch.testing.assert_close(parts["long"], expected)
    for gradient in torch.autograd.grad(parts["raw"] + parts["long"], (image, raw, long, scale)):
        assert gradient.isfinite().all()


def test_one_texts_mask_does_not_hide_the_images_of_the_other():
    image, raw, long, scale = some(1)
    has_raw = torch.tensor([1, 1, 0, 1, 1, 1]).bool()
    parts = lotlip_loss(image, raw, long, scale, raw_valid_B=has_raw)
    torch.testing.assert_close(parts["long"], lotlip_loss(image, raw, long, scale)["long"])


def test_an_unknown_option_names_the_valid_ones():
    with pytest.raises(CornerstoneError, match="did you mean 'mean'"):
        lotlip_loss(*some(0), reduction="men")
    with pytest.raises(CornerstoneError, match="Valid: equal, paper"):
        lotlip_loss(*some(0), balance="fair")
