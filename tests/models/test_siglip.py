from __future__ import annotations

import math

import pytest
import torch

from cornerstone.data.pairs.batch import PairBatch
from cornerstone.errors import CornerstoneError
from cornerstone.inference.saved_model import load, save_model
from cornerstone.models.image_tower import build_image_tower
from cornerstone.models.method import Inputs
from cornerstone.models.siglip import Siglip
from cornerstone.objectives import siglip_loss
from cornerstone.recipes import BertText, ImageTower, PairData, Recipe
from cornerstone.recipes.siglip import SiglipConfig, SiglipLoss

VOCABULARY, B = 30, 6


def batch() -> PairBatch:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([[3, 4, 0, 5, 9, 2], [9, 7, 8, 0, 3, 9]])
    ids = torch.randint(1, VOCABULARY, (2, B, 9), generator=generator) * (torch.arange(9) < lengths[..., None])
    row, valid = torch.tensor([5, 6, 7, 8, 5, 9]), torch.tensor([1, 1, 1, 1, 1, 0]).bool()
    image = torch.randn(B, 64, generator=generator)
    return PairBatch(0, row, valid, (), torch.zeros(B), ids[0], lengths[0], ids[1], lengths[1], image)


def build(captions="raw", tower=None, **loss) -> Siglip:
    config = SiglipConfig(
        image=ImageTower("test_vit", pretrained=False, size=64),
        text=BertText(name="", width=16, layers=1, heads=2, token_limit=32),
        loss=SiglipLoss(captions=captions, **loss),
    )
    return Siglip.build(config, Inputs(VOCABULARY, 64, tower), seed=0)


def test_temperature_and_bias_begin_as_in_the_paper():
    model = build()
    torch.testing.assert_close(model.scale(), torch.tensor([10.0]))
    torch.testing.assert_close(model.logit_bias.detach(), torch.tensor([-10.0]))


@pytest.mark.parametrize(("captions", "present"), [("raw", [1, 1, 0, 1, 1, 0]), ("long", [1, 1, 1, 0, 1, 0])])
def test_the_loss_is_that_of_the_rows_with_the_caption(captions, present):
    model, given = build(captions), batch()
    features = model(given)
    losses = model.losses(features, given)
    expected = siglip_loss(*features, row_ids_B=given.row, valid_B=torch.tensor(present).bool())
    torch.testing.assert_close(losses.parts, {"sigmoid": expected})
    assert losses.reports["logit_bias"].item() == -10
    assert losses.reports["logit_scale"].item() == pytest.approx(10)


def test_there_are_no_corners():
    """The text tower is a plain BERT: nothing is reserved, nothing is shifted, and there is no corner parameter."""
    model = build()
    assert model.text.reserved_tokens == 0
    assert not any("corner" in name for name, _ in model.named_parameters())
    assert model.encode_text(batch().long_ids, batch().long_length, corners=True).shape == (B, 1, 64)


def test_every_parameter_gets_a_gradient_and_the_scale_is_capped():
    model, given = build(max_scale=20.0), batch()
    with torch.no_grad():
        model.logit_scale.fill_(math.log(50.0))
    losses = model.losses(model(given), given)
    sum(losses.parts.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert losses.reports["logit_scale"].item() == pytest.approx(20)
    assert losses.reports["logit_scale_at_cap"].item() == 1


def test_it_comes_back_from_disk_as_itself(tmp_path):
    tower = build_image_tower(ImageTower("test_vit", pretrained=False, size=64))
    model, given = build(tower=tower).eval(), batch()
    with torch.no_grad():
        model.logit_bias.fill_(-3)
    save_model(str(tmp_path), model, recipe={}, tokenizer_json=TOKENIZER)
    loaded = load(str(tmp_path))
    assert isinstance(loaded.module, Siglip)
    assert loaded.module.config == model.config
    assert loaded.module.logit_bias.item() == -3
    ids = given.raw_ids, given.raw_length
    torch.testing.assert_close(loaded.module.encode_text(*ids), model.encode_text(*ids), rtol=0, atol=0)


def test_long_captions_need_sub_captions():
    with pytest.raises(
        CornerstoneError, match=r"0 sub-captions leave no long caption.*--recipe.method.loss.captions raw"
    ):
        Recipe("x", SiglipConfig(loss=SiglipLoss(captions="long")), PairData(sub_captions=0))


TOKENIZER = '{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null, ' + (
    '"pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null, "model": {"type": "WordLevel", '
    '"vocab": {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "bus": 3}, "unk_token": "[UNK]"}}'
)
