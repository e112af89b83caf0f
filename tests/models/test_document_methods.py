"""What every method on documents must do: learn, read, be saved, and keep its graph whatever the batch holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny_documents as tiny
import torch
from tiny_documents import IMAGE, documents, laid

from cornerstone.inference.saved_model import load, save_model
from cornerstone.training.step import forward_backward

EVERY = pytest.mark.parametrize("kind", tiny.KINDS)


def total(model, batch) -> torch.Tensor:
    return sum(model.losses(model(batch), batch).parts.values())


@EVERY
def test_it_learns_a_small_batch(kind):
    model, batch = tiny.method(kind=kind), tiny.some(8)
    optimizer = torch.optim.AdamW([p for group in model.parameter_groups() for p in group.parameters], lr=3e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = total(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0], losses


@EVERY
def test_without_any_image_everything_keeps_its_graph(kind):
    model, batch = tiny.method(kind=kind), documents([laid(5, 6, 7)])
    total(model, batch).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@EVERY
def test_every_parameter_is_used(kind):
    model = tiny.method(kind=kind)
    total(model, tiny.some(6)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


@EVERY
def test_micro_batches_give_the_same_gradients(kind):
    batch = tiny.double(tiny.some(7))
    gradients = []
    for micro in (0, 3, 1):
        model = tiny.method(kind=kind).double()
        forward_backward(model, batch, micro, model, lambda loss, last: loss.backward())
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for other in gradients[1:]:
        for name, value in gradients[0].items():
            torch.testing.assert_close(other[name], value, msg=name)


@EVERY
def test_a_packed_document_reads_as_if_it_were_alone(kind):
    model = tiny.method(kind=kind).double().eval()
    one = tiny.double(documents([laid(5, 6, IMAGE, 7, 8)]))
    other = tiny.double(documents([laid(9, 10, IMAGE, 10, IMAGE, 11)], seed=1))
    alone = [model.reading(batch).token_loss_B1 for batch in (one, other)]
    torch.testing.assert_close(model.reading(tiny.packed(one, other)).token_loss_B1, alone[0] + alone[1])


@EVERY
def test_text_depends_on_the_images_before_it_alone_unless_it_is_read_both_ways(kind):
    model = tiny.method(kind=kind).eval()
    before, behind = documents([laid(IMAGE, 5, 6)]), documents([laid(5, 6, IMAGE)])
    for batch, depends in ((before, True), (behind, kind in tiny.BOTH_WAYS)):
        target = batch.target & (batch.token_ids < tiny.WORDS) & (batch.token_ids > tiny.IDS.eos)
        words = replace(batch, target=target)
        found = [model.reading(replace(words, image=image)).token_loss_B1 for image in (batch.image, 255 - batch.image)]
        assert torch.allclose(*found, atol=1e-6) != depends


@EVERY
def test_a_picture_that_is_missing_leaves_the_text(kind):
    model = tiny.method(kind=kind).eval()
    batch = documents([laid(5, IMAGE, 6, 7), laid(8, IMAGE)])
    missing = replace(batch, image_valid=torch.tensor([False, True]))
    changed = replace(missing, image=torch.cat([255 - batch.image[:1], batch.image[1:]]))
    for one, other in zip(
        model.losses(model(missing), missing).parts.values(),
        model.losses(model(changed), changed).parts.values(),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
        assert one.isfinite()


@EVERY
def test_it_gives_what_the_evaluation_reads(kind):
    model, batch = tiny.method(kind=kind).eval(), tiny.some(5)
    found = model.reading(batch)
    assert found.token_loss_B1.shape == found.correct_B1.shape == (5, 1)
    assert found.image_ND.shape == found.context_ND.shape
    assert len(found.image_ND) == len(found.compared_N) == len(batch.image)
    assert model.image_features(batch.image).shape == (len(batch.image), model.image_tower.width)
    assert len(model.reading(documents([laid(5, 6)])).image_ND) == 0


@EVERY
def test_it_comes_back_from_disk_as_itself(tmp_path, wordpiece, kind):
    model, batch = tiny.method(kind=kind).eval(), tiny.some(5)
    save_model(str(tmp_path), model, recipe={}, tokenizer_json=wordpiece.read_text())
    loaded = load(str(tmp_path))
    assert type(loaded.module) is type(model)
    assert loaded.module.config == model.config
    for one, other in zip(loaded.module(batch), model(batch), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
