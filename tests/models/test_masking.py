"""Block masks against the statistics of BEiT-2's public generator; shares of masked words."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from cornerstone.data import draws
from cornerstone.models.masking import block_mask, text_mask

DRAWS = 4_000


@pytest.mark.parametrize("case", ["case0", "case1"])
def test_blocks_have_the_statistics_of_the_public_generator(test_data, case):
    """Of the shares of masked patches and neighbours; 5 standard errors of our draws and of the reference's 20,000."""
    path = test_data / "reference" / "beit_block_masks.safetensors"
    if not path.exists():
        pytest.skip(f"no {path}")
    with safe_open(path, "pt") as file:
        settings = next(one for one in json.loads(file.metadata()["cases"]) if one["case"] == case)
        wanted = {name: file.get_tensor(f"{case}.{name}").numpy() for name in NAMES}
    grid, masked = tuple(settings["grid"]), settings["masked"]
    masks = np.stack(
        [block_mask(draws.generator(0, "test", i), grid, masked, settings["min_block"]) for i in range(DRAWS)]
    )
    assert (masks.sum((1, 2)) == masked).all()
    error = np.sqrt(1 / DRAWS + 1 / settings["draws"])
    share = masks.mean(0)
    assert np.abs(share - wanted["probability"]).max() < 5 * error * np.sqrt(0.25)
    pairs = [(masks[:, 1:], masks[:, :-1]), (masks[:, :, 1:], masks[:, :, :-1])]
    for name, of in (("neighbours_both", np.logical_and), ("neighbours_differ", np.logical_xor)):
        for way, (one, other) in enumerate(pairs):
            by_mask = of(one, other).mean((1, 2))
            assert abs(by_mask.mean() - wanted[name][way]) < 5 * error * by_mask.std(), (name, way)
            assert wanted["neighbours_differ"][way] < 0.6 * settings["differ_if_uniform"]


NAMES = ("probability", "neighbours_both", "neighbours_differ")


@pytest.mark.parametrize(
    ("grid", "masked", "min_block"), [((4, 4), 6, 2), ((2, 2), 2, 1), ((4, 4), 6, 16), ((1, 3), 1, 1)]
)
def test_the_number_of_masked_patches_is_exact(grid, masked, min_block):
    for i in range(50):
        assert block_mask(draws.generator(i, "test"), grid, masked, min_block).sum() == masked


def test_the_same_draw_gives_the_same_mask():
    one, other = (block_mask(draws.generator(3, "test", 1, 2), (14, 14), 78, 16) for _ in range(2))
    assert (one == other).all()
    assert (one != block_mask(draws.generator(3, "test", 1, 3), (14, 14), 78, 16)).any()


def test_each_document_has_its_share_of_masked_words():
    """Of 10, 1 and 6 maskable tokens; tokens that cannot be masked and padding stay."""
    document = torch.tensor([[0] * 12 + [1] * 2 + [2] * 7 + [-1] * 3])
    maskable = document >= 0
    maskable[0, [0, 5, 12, 14]] = False
    share = torch.tensor([0.5, 0.15, 0.15, 0.0])[document]
    seen = torch.zeros(24, dtype=torch.int64)
    for seed in range(200):
        drawn = torch.rand(1, 24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        masked = text_mask(drawn, maskable, document, share)
        assert not (masked & ~maskable).any()
        assert [int(masked[document == number].sum()) for number in (0, 1, 2, -1)] == [5, 1, 1, 0]
        seen += masked[0]
        largest = drawn[0, :12][masked[0, :12]].max()
        assert largest < drawn[0, :12][maskable[0, :12] & ~masked[0, :12]].min()  # those with the smallest numbers
    assert (seen[maskable[0]] > 10).all()


def test_never_all_words_of_a_document_are_masked():
    document = torch.zeros(1, 4, dtype=torch.int64)
    maskable = torch.tensor([[False, True, True, True]])
    drawn = torch.tensor([[0.1, 0.5, 0.2, 0.7]])
    masked = text_mask(drawn, maskable, document, torch.full((1, 4), 0.99))
    assert masked.tolist() == [[False, True, True, False]]
    assert not text_mask(drawn, torch.zeros_like(maskable), document, torch.full((1, 4), 0.5)).any()
