from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from cornerstone.data.pairs.batch import PairBatch
from cornerstone.errors import CornerstoneError
from cornerstone.models.image_tower import build_image_tower
from cornerstone.models.lotlip import Features, Lotlip
from cornerstone.models.method import Inputs
from cornerstone.objectives import contrastive_loss, lotlip_loss
from cornerstone.recipes.lotlip import LotlipConfig, LotlipLoss
from cornerstone.recipes.towers import CornerText, ImageTower

VOCABULARY, B = 30, 6


def batch(stored: bool = True) -> PairBatch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, VOCABULARY, (2, B, 9), generator=generator)
    lengths = torch.tensor([[3, 4, 0, 5, 9, 2], [9, 7, 8, 0, 3, 9]])
    ids = ids * (torch.arange(9) < lengths[..., None])
    pixels = torch.randint(0, 256, (B, 3, 64, 64), dtype=torch.uint8, generator=generator)
    feature = torch.randn(B, 64, generator=generator)
    return PairBatch(
        step=0,
        row=torch.arange(B),
        valid=torch.ones(B, dtype=torch.bool),
        bad=(),
        epoch=torch.zeros(B, dtype=torch.int64),
        raw_ids=ids[0],
        raw_length=lengths[0],
        long_ids=ids[1],
        long_length=lengths[1],
        image=feature if stored else pixels,
    )


def build(corners=2, locked=True, tower=None, seed=0, buckets=1, **loss) -> Lotlip:
    config = LotlipConfig(
        image=ImageTower("test_vit", pretrained=False, locked=locked, size=64),
        text=CornerText(name="", width=16, layers=1, heads=2, corner_tokens=corners, token_limit=32),
        loss=LotlipLoss(**loss),
    )
    tower = build_image_tower(config.image) if tower else None
    return Lotlip.build(config, Inputs(VOCABULARY, 64, tower, length_buckets=buckets), seed)


def test_features_are_normalised_and_shaped():
    features = build()(batch())
    assert isinstance(features, Features)
    assert features.image_BD.shape == features.raw_BD.shape == (B, 64)
    assert features.long_BMD.shape == (B, 3, 64)
    for feature in features[:3]:
        torch.testing.assert_close(feature.norm(dim=-1), torch.ones(feature.shape[:-1]))
    torch.testing.assert_close(features.scale, torch.tensor([1 / 0.07]))


def test_a_batch_without_a_field_is_an_error():
    """A mask that is misspelt must not count as no mask."""
    model, given = build(), batch()
    features = model(given)
    misspelt = SimpleNamespace(**{("valids" if name == "valid" else name): x for name, x in vars(given).items()})
    with pytest.raises(AttributeError, match="valid"):
        model.losses(features, misspelt)


def test_the_losses_follow_the_recipe_and_leave_out_absent_texts_and_masked_rows():
    options = {"reduction": "mean", "balance": "equal", "raw_weight": 0.5, "long_weight": 2.0}
    model, given = build(**options), batch()
    given = replace(given, row=torch.tensor([5, 6, 7, 8, 5, 9]), valid=torch.tensor([1, 1, 1, 1, 1, 0]).bool())
    features = model(given)
    expected = lotlip_loss(
        *features,
        **options,
        row_ids_B=given.row,
        raw_valid_B=torch.tensor([1, 1, 0, 1, 1, 0]).bool(),
        long_valid_B=torch.tensor([1, 1, 1, 0, 1, 0]).bool(),
    )
    torch.testing.assert_close(model.losses(features, given).parts, expected)
    raw = model.losses(features, replace(given, row=torch.arange(B))).parts["raw"]
    rows = torch.tensor([0, 1, 3, 4])
    alone = contrastive_loss(features.image_BD[rows], features.raw_BD[rows], features.scale)
    torch.testing.assert_close(raw, 0.5 / 4 * alone)


@pytest.mark.parametrize(("weights", "left"), [({"raw_weight": 0.0}, "long"), ({"long_weight": 0.0}, "raw")])
def test_a_part_of_weight_zero_costs_nothing(weights, left):
    model, calls = build(**weights), []
    model.text.register_forward_hook(lambda *_: calls.append(1))
    features = model(batch())
    assert len(calls) == 1
    assert list(model.losses(features, batch()).parts) == [left]


def test_raw_texts_do_without_corners_and_equal_the_long_pass():
    model, given = build(), batch()
    widths = []
    model.text.register_forward_hook(lambda _, __, out: widths.append(out.all_BMD.shape[1]))
    features = model(given)
    assert widths == [1, 3]
    given = replace(given, long_ids=given.raw_ids, long_length=given.raw_length)
    torch.testing.assert_close(model(given).long_BMD[:, 0], features.raw_BD, rtol=0, atol=1e-6)


def test_a_locked_tower_is_kept_aside():
    model = build(tower=True)
    assert not any("visual" in name for name, _ in model.named_parameters())
    assert not any("visual" in name for name in model.state_dict())
    model.train()
    assert not model.image_tower.training
    given = batch(stored=False)
    sum(model.losses(model(given), given).parts.values()).backward()
    assert all(p.grad is None for p in model.image_tower.parameters())
    model.double()
    assert next(model.image_tower.parameters()).dtype == torch.float64, "it follows the module's type and device"
    assert model.encode_image(given.image).dtype == torch.float64


def test_a_trained_tower_is_part_of_the_module():
    model = build(locked=False, tower=True)
    assert any(name.startswith("visual.") for name in model.state_dict())
    given = batch(stored=False)
    sum(model.losses(model(given), given).parts.values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.image_tower.parameters())


@pytest.mark.parametrize("locked", [True, False])
def test_every_parameter_of_the_module_gets_a_gradient(locked):
    model, given = build(locked=locked, tower=True), batch(stored=False)
    sum(model.losses(model(given), given).parts.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert all(p.ndim > 0 for p in model.parameters()), "DeepSpeed cannot shard a scalar"


def test_stored_features_replace_the_tower():
    model, online = build(tower=True), batch(stored=False)
    features = model(online)
    stored = replace(batch(), image=model.image_tower(online.image).pooled)
    torch.testing.assert_close(model(stored).image_BD, features.image_BD, rtol=0, atol=1e-6)
    stored = replace(stored, image=stored.image.half())
    assert model(stored).image_BD.dtype == torch.float32


def test_buckets_change_no_number():
    given = batch()
    plain, bucketed = (build(buckets=n).double()(given) for n in (1, 3))
    for a, b in zip(plain, bucketed, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=1e-10)


def test_more_corners_change_no_other_initial_value():
    states = [build(corners=m).state_dict() for m in (0, 2, 3)]
    for name in states[0]:
        assert torch.equal(states[0][name], states[1][name])
        assert torch.equal(states[0][name], states[2][name])
    assert torch.equal(states[1]["text.corners"], states[2]["text.corners"][:2])
    assert not torch.equal(build(seed=1).state_dict()["text.project.weight"], states[0]["text.project.weight"])


def test_the_scale_is_capped_and_can_come_back():
    model = build(max_scale=20.0)
    for value in (math.log(5.0), math.log(300.0)):
        with torch.no_grad():
            model.logit_scale.fill_(value)
        scale = model.scale()
        assert scale.shape == (1,)
        torch.testing.assert_close(scale.item(), min(math.exp(value), 20.0), rtol=1e-5, atol=0)
        torch.testing.assert_close(torch.autograd.grad(scale, model.logit_scale)[0], scale.detach())


def test_half_precision_weights_still_compare_in_fp32():
    model, given = build().bfloat16(), batch()
    features = model(given)
    assert {x.dtype for x in features[:3]} == {torch.float32}
    loss = sum(model.losses(features, given).parts.values())
    assert loss.dtype == torch.float32
    loss.backward()
    assert model.logit_scale.grad.isfinite().all()


def test_encoding_alone_equals_the_forward_pass():
    model, given = build(tower=True), batch(stored=False)
    features = model(given)
    torch.testing.assert_close(model.encode_image(given.image), features.image_BD)
    torch.testing.assert_close(model.encode_text(given.raw_ids, given.raw_length), features.raw_BD)
    torch.testing.assert_close(model.encode_text(given.long_ids, given.long_length, corners=True), features.long_BMD)


def test_towers_that_do_not_fit_are_refused():
    with pytest.raises(CornerstoneError, match="to be trained, but none is given"):
        build(locked=False)
    with pytest.raises(CornerstoneError, match="no image tower"):
        build().encode_image(torch.zeros(1, 3, 64, 64))
    config = LotlipConfig(
        image=ImageTower("test_vit", False, size=64), text=CornerText(name="", width=16, layers=1, heads=2)
    )
    with pytest.raises(CornerstoneError, match="width 32, but the image tower 'test_vit' has width 64"):
        Lotlip.build(config, Inputs(30, 32, build_image_tower(config.image)), seed=0)


def test_the_temperature_is_reported_with_its_share_at_the_cap():
    model, given = build(max_scale=20.0), batch()
    for value, at_cap in ((10.0, 0.0), (20.0, 1.0), (300.0, 1.0)):
        with torch.no_grad():
            model.logit_scale.fill_(math.log(value))
        losses = model.losses(model(given), given)
        assert losses.reports["logit_scale"].item() == pytest.approx(min(value, 20.0), rel=1e-5)
        assert losses.reports["logit_scale_at_cap"].item() == at_cap
        assert not losses.reports.keys() & losses.parts.keys()


def test_parameter_groups_are_all_trained_parameters_once():
    model = build(locked=False, tower=True)
    decayed, others = model.parameter_groups()
    assert (decayed.decays, others.decays) == (True, False)
    grouped = [id(p) for group in (decayed, others) for p in group.parameters]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    assert all(p.ndim > 1 for p in decayed.parameters)
    assert any(p is model.logit_scale for p in others.parameters)
