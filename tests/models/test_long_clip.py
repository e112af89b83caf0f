"""Long-CLIP as a method: what its recipe's options do."""

from __future__ import annotations

import pytest
import tiny_pairs as tiny
import torch

from cornerstone.errors import CornerstoneError
from cornerstone.objectives import long_clip_loss
from cornerstone.recipes import PairData, Recipe
from cornerstone.recipes.long_clip import LongClipLoss


def test_the_losses_follow_the_recipe():
    model, given = tiny.method(kind="long-clip", raw_weight=0.5, label_smoothing=0.2), tiny.some(12)
    features = model(given)
    found = model.losses(features, given).parts
    expected = long_clip_loss(
        *features,
        components=2,
        pca_group=5,
        label_smoothing=0.2,
        raw_weight=0.5,
        row_ids_B=given.row,
        raw_valid_B=given.valid & (given.raw_length > 0),
        long_valid_B=given.valid & (given.long_length > 0),
    )
    torch.testing.assert_close(found, expected)
    alone = tiny.method(kind="long-clip", long_weight=0.0)
    assert set(alone.losses(alone(given), given).parts) == {"raw"}


def test_a_collapsed_model_has_the_loss_of_chance():
    model, given = tiny.method(kind="long-clip"), tiny.some(4)
    given.raw_length[:], given.valid[:] = 3, True
    features = model(given)
    same = [x[:1].expand_as(x) if x.ndim > 1 else x for x in features]
    total = sum(model.losses(type(features)(*same), given).parts.values())
    assert float(total.detach()) == pytest.approx(tiny.long_clip().chance_loss(4), abs=1e-4)


def test_the_authors_scale_is_an_option():
    assert tiny.method(kind="long-clip", initial_scale=100.0).scale().item() == pytest.approx(100)


WRONG = {
    r"raw 0.0 and long 0.0: expected none below 0": lambda: LongClipLoss(raw_weight=0.0, long_weight=0.0),
    r"0 principal components": lambda: LongClipLoss(components=0),
    r"groups of 33 images are the images' whole features: set --recipe.method.loss.pca-group to 34": lambda: (
        LongClipLoss(pca_group=33)
    ),
    r"Label smoothing 1 is not": lambda: LongClipLoss(label_smoothing=1),
    r"0 sub-captions leave no long caption": lambda: Recipe("x", tiny.long_clip(), PairData(sub_captions=0)),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_wrong_is_refused(message):
    with pytest.raises(CornerstoneError, match=message):
        WRONG[message]()
