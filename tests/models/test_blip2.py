"""The BLIP-2-like baseline: its negatives, its losses, several workers, what it refuses, and coming back from disk."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny_blip2 as tiny
import torch
import torch.nn.functional as F

from cornerstone.errors import CornerstoneError
from cornerstone.inference.saved_model import load, save_model
from cornerstone.objectives import query_contrastive_loss
from cornerstone.recipes import Blip2Config, Blip2Loss, ImageTower, PairData, QFormerText, Recipe
from cornerstone.training.step import forward_backward

VALID = torch.tensor([1, 1, 1, 0, 1, 0, 1]).bool()


def total(model, pairs) -> torch.Tensor:
    return sum(model.losses(model(pairs), pairs).parts.values())


def drawn(model, pairs) -> list[tuple[int, int]]:
    """The negative image and text of each row."""
    found = []
    select = type(model)._negatives
    model._negatives = lambda *given: found.append(select(model, *given)) or found[-1]
    model(pairs)
    del model._negatives
    return list(zip(*(x.tolist() for x in found[0]), strict=True))


def test_no_row_draws_itself_its_copy_or_a_row_with_the_same_text():
    pairs = tiny.batch()
    may = {"exclude": {1: {0, 4, 6}, 2: {0, 4, 6}}, "negative": {1: {0, 2, 4, 6}, 2: {0, 1, 4, 6}}}
    for identical, allowed in may.items():
        allowed |= {0: {1, 2, 6}, 4: {1, 2, 6}, 6: {0, 1, 2, 4}}
        seen = {row: set() for row in range(tiny.ROWS)}
        for seed in range(40):
            model = tiny.method(identical_texts=identical)
            model.seed = seed
            for row, negatives in enumerate(drawn(model, pairs)):
                seen[row] |= set(negatives)
        assert seen == allowed | {3: {-1}, 5: {-1}}, identical


def test_draws_belong_to_the_seed_the_epoch_and_the_row():
    pairs = tiny.batch()
    model = tiny.method()
    first = drawn(model, pairs)
    assert first == drawn(model, pairs)
    order = torch.tensor([6, 3, 1, 0, 5, 2])
    names = ("row", "valid", "epoch", "raw_ids", "raw_length", "long_ids", "long_length", "image")
    some = replace(pairs, **{name: getattr(pairs, name)[order] for name in names})
    whole = replace(pairs, **{name: getattr(pairs, name)[order.sort().values] for name in names})
    by_row = [
        {int(a): tuple(int(p.row[n]) if n >= 0 else -1 for n in b) for a, b in zip(p.row, drawn(model, p), strict=True)}
        for p in (some, whole)
    ]
    assert by_row[0] == by_row[1]
    other = [drawn(model, replace(pairs, epoch=pairs.epoch + epoch)) for epoch in range(1, 6)]
    assert any(negatives != first for negatives in other)


def test_the_losses_are_those_of_the_features():
    model, pairs = tiny.method(), tiny.batch()
    features = model(pairs)
    losses = model.losses(features, pairs)
    contrastive = query_contrastive_loss(
        features.image_BQD,
        features.text_BD,
        features.scale,
        label_smoothing=0.1,
        row_ids_B=pairs.row,
        valid_B=VALID,
    )
    own, drawn_rows = VALID.nonzero().flatten(), features.drawn_B3
    assert torch.equal(drawn_rows, VALID[:, None].expand(-1, 3))
    logits = features.match_B32[own].flatten(0, 1)
    assert {name: part.item() for name, part in losses.parts.items()} == {
        "contrastive": pytest.approx(contrastive.item()),
        "generation": pytest.approx(features.caption_loss_B1.sum().item() / (4 + 3 + 3 + 4 + 11)),
        "matching": pytest.approx(F.cross_entropy(logits, torch.tensor([1, 0, 0] * 5)).item()),
    }
    torch.testing.assert_close(features.image_BQD, model.encode_image(pairs.image))
    torch.testing.assert_close(features.text_BD, model.encode_text(pairs.raw_ids, pairs.raw_length))


def test_without_a_gradient_through_the_gathered_features_the_value_is_the_same():
    losses, gradients = [], []
    for full in (True, False):
        model, pairs = tiny.method(gather_gradient=full), tiny.batch()
        parts = model.losses(model(pairs), pairs).parts
        losses.append(parts["contrastive"])
        gradients.append(torch.autograd.grad(parts["contrastive"], model.text.to_text_feature.weight)[0])
    torch.testing.assert_close(*losses)
    assert not torch.allclose(*gradients, rtol=0.05)


def test_matching_sends_its_gradient_to_the_negative_image():
    model, pairs = tiny.method(), tiny.double(tiny.batch())
    model, image = model.double(), pairs.image.clone().requires_grad_()
    here = replace(pairs, image=image)
    negatives = drawn(model, pairs)
    features = model(here)
    row = 6
    (gradient,) = torch.autograd.grad(features.match_B32[row, 1].sum(), image)
    assert [int(i) for i in gradient.flatten(1).abs().amax(1).nonzero()] == [negatives[row][0]]


def test_similarity_is_the_largest_cosine_of_a_query():
    model, draw = tiny.method(), torch.Generator().manual_seed(3)
    image = F.normalize(torch.randn(4, 3, 16, generator=draw), dim=-1)
    text = F.normalize(torch.randn(5, 16, generator=draw), dim=-1)
    torch.testing.assert_close(model.similarity(image, text), torch.einsum("nqd,td->nqt", image, text).amax(1))


def test_it_learns_a_small_batch():
    model, pairs = tiny.method(label_smoothing=0.0), tiny.batch()
    optimizer = torch.optim.AdamW([p for group in model.parameter_groups() for p in group.parameters], lr=3e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = total(model, pairs)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0], losses


def test_every_parameter_has_a_gradient_whatever_the_batch_holds():
    pairs = tiny.batch()
    for here in (pairs, pairs.rows(0, 1), replace(pairs, valid=torch.zeros_like(pairs.valid))):
        model = tiny.method()
        total(model, here).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_locked_tower_learns_nothing():
    model = tiny.method(locked=True)
    total(model, tiny.batch()).backward()
    assert not any(name.startswith("visual") for name, _ in model.named_parameters())
    assert all(p.grad is None for p in model.image_tower.parameters())


def test_micro_batches_are_refused():
    model = tiny.method()
    with pytest.raises(CornerstoneError, match=r"'blip2' compares all rows of a worker's share of 7.*micro-batch 0"):
        forward_backward(model, tiny.batch(), 3, model, lambda loss, last: loss.backward())


def test_what_it_cannot_be_trained_on_is_refused():
    with pytest.raises(CornerstoneError, match=r"BLIP-2 pools the patches itself.*--recipe.method.image.pooling none"):
        Blip2Config(image=ImageTower())
    locked = ImageTower(pooling="none")
    with pytest.raises(CornerstoneError, match=r"BLIP-2 reads the patches.*--recipe.data.features online"):
        Recipe("x", Blip2Config(locked), PairData(features="stored", crop_scale=(1.0, 1.0)))
    with pytest.raises(CornerstoneError, match=r"0 sub-captions leave no long caption"):
        Recipe("x", Blip2Config(loss=Blip2Loss(captions="long")), PairData(sub_captions=0))
    with pytest.raises(CornerstoneError, match=r"Label smoothing 1.0 is not in"):
        Blip2Loss(label_smoothing=1.0)
    with pytest.raises(CornerstoneError, match="BLIP-2's queries read patches"):
        tiny.method().encode_image(torch.zeros(2, 24))


def test_it_comes_back_from_disk_as_itself(tmp_path, wordpiece):
    model, pairs = tiny.method().eval(), tiny.batch()
    save_model(str(tmp_path), model, recipe={}, tokenizer_json=wordpiece.read_text())
    loaded = load(str(tmp_path))
    assert type(loaded.module) is type(model)
    assert loaded.module.config == model.config
    assert isinstance(loaded.module.config.text, QFormerText)
    for one, other in zip(loaded.module(pairs), model(pairs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert loaded.encode_image(pairs.image).shape == (7, 3, 16)
    assert loaded.encode_text([""]).shape == (1, 16)
