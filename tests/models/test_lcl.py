"""LCL's module: the authors' numbers, attention inside documents, what is compared and predicted, images that are missing."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import safetensors.torch
import tiny_documents as tiny
import torch
import torch.nn.functional as functional
from safetensors import safe_open
from tiny_documents import IDS, IMAGE, documents, laid

from cornerstone.errors import CornerstoneError
from cornerstone.inference.documents import encode_documents, sequence_batch
from cornerstone.inference.lcl_checkpoint import Heads, from_checkpoint
from cornerstone.models.image_tower import build_image_tower
from cornerstone.models.lcl import Lcl
from cornerstone.models.method import Inputs
from cornerstone.training.step import forward_backward


@pytest.fixture
def reference(test_data):
    path = test_data / "reference" / "lcl_tiny.safetensors"
    if not path.exists():
        pytest.skip(f"no {path}")
    with safe_open(path, "pt") as file:
        return safetensors.torch.load_file(path), file.metadata()


def test_the_authors_model(reference):
    """Pooled features, image tokens, both features, logits and both losses of their public code."""
    tensors, said = reference
    io = {name.removeprefix("io."): value for name, value in tensors.items() if name.startswith("io.")}
    checkpoint = from_checkpoint(tensors, Heads(visual=3, text=4, pooling=4))
    tower = build_image_tower(checkpoint.config.image)
    special = json.loads(said["special"])
    assert list(special.values()) == [997, 998, 999, 1000, 1001]
    ids = type(IDS)(997, 998, 0, 999, 1000, 1001)
    model = Lcl(checkpoint.config, Inputs(999, tower.width, tower, special_ids=ids)).eval()
    model.load_state_dict(checkpoint.state)
    pooled = model.pool(model.patches(io["images"]))
    torch.testing.assert_close(pooled.feature_NW, io["pooled"], rtol=0, atol=1e-5)
    torch.testing.assert_close(pooled.values_NPW, io["tokens"], rtol=0, atol=1e-5)
    found = encode_documents(model, io["images"], io["text_ids"])
    for name in ("image_features", "text_features", "logits"):
        torch.testing.assert_close(found[name], io[name], rtol=0, atol=1e-4)
    assert torch.equal(found["labels"], io["labels"])
    batch = sequence_batch(io["images"], io["text_ids"], ids)
    losses = model.losses(model(batch), batch)
    assert float(losses.parts["generation"]) == pytest.approx(float(said["generation_loss"]), abs=1e-4)
    assert float(losses.parts["contrastive"]) == pytest.approx(float(said["contrastive_loss_times_0_1"]), abs=1e-5)


@pytest.mark.parametrize("restart", [True, False])
def test_a_packed_document_reads_as_if_it_were_alone(restart):
    """Attention stays inside; with positions that restart nothing else tells where a document stands."""
    model = tiny.method(language={"restart_positions": restart}).double().eval()
    one = tiny.double(documents([laid(5, 6, IMAGE, 7, 8)]))
    other = tiny.double(documents([laid(9, IMAGE, 10, IMAGE, 11)], seed=1))
    both = model(tiny.packed(one, other))
    alone = [model(batch) for batch in (one, other)]
    same = torch.cat([x.context_ND for x in alone])
    if restart:
        torch.testing.assert_close(both.context_ND, same)
        torch.testing.assert_close(both.token_loss_B1, alone[0].token_loss_B1 + alone[1].token_loss_B1)
    else:
        torch.testing.assert_close(both.context_ND[:1], same[:1])
        assert (both.context_ND[1:] - same[1:]).abs().max() > 1e-3


def test_a_context_has_read_nothing_behind_its_place():
    model = tiny.method().eval()
    one, other = documents([laid(5, 6, IMAGE, 7, 8)]), documents([laid(5, 6, IMAGE, 20, 21)])
    torch.testing.assert_close(model(one).context_ND, model(other).context_ND)
    changed = replace(one, image=255 - one.image)
    torch.testing.assert_close(model(one).context_ND, model(changed).context_ND)
    assert not torch.allclose(model(one).token_loss_B1, model(changed).token_loss_B1)


def test_what_is_predicted():
    """Words, <BoI> and <eos>, each from the place before it; the word behind an image from <EoI>."""
    batch = documents([laid(5, IMAGE, 6)])
    predicted = batch.token_ids[0][batch.target[0]].tolist()
    assert predicted == [5, IDS.boi, 6, IDS.eos]
    model = tiny.method().double().eval()
    batch = tiny.double(batch)
    tokens = model.images(batch.image)[1]
    hidden = model.read(batch, tokens)
    logits = model.head(hidden)
    at = torch.nonzero(batch.target[0]).flatten()
    expected = functional.cross_entropy(logits[0, at - 1], batch.token_ids[0, at], reduction="sum")
    torch.testing.assert_close(model(batch).token_loss_B1[0, 0], expected)


def test_which_images_are_compared():
    batch = documents([laid(5, IMAGE), laid(IMAGE, 5), laid(5, 6)])
    no_bos = laid(IMAGE, 5)[1:]
    batch = documents([laid(5, IMAGE), laid(IMAGE, 5), no_bos])
    assert tiny.method().compared(batch).tolist() == [True, False, False]
    assert tiny.method(unpreceded="authors").compared(batch).tolist() == [True, True, False]
    broken = replace(batch, image_valid=torch.tensor([False, True, True]))
    assert tiny.method(unpreceded="authors").compared(broken).tolist() == [False, True, False]


def test_the_contrastive_part_by_hand():
    """Images of the same document are negatives of each other."""
    model = tiny.method(contrastive_weight=1.0).double().eval()
    batch = tiny.double(documents([laid(5, IMAGE, 6, IMAGE), laid(7, IMAGE), laid(IMAGE, 8)]))
    features = model(batch)
    image, context = features.image_ND[:3], features.context_ND[:3]
    logits = image @ context.T / 0.07
    target = torch.arange(3)
    expected = 0.5 * (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target))
    losses = model.losses(features, batch)
    torch.testing.assert_close(losses.parts["contrastive"], expected)
    assert float(losses.reports["infonce_bound"]) == pytest.approx(math.log(3) - float(expected))


@pytest.mark.parametrize("weights", [(0.1, 1.0), (0.0, 1.0), (1.0, 0.0)])
def test_a_part_without_weight_gives_no_gradient(weights):
    model = tiny.method(contrastive_weight=weights[0], generation_weight=weights[1])
    batch = tiny.some(6)
    losses = model.losses(model(batch), batch)
    assert set(losses.parts) == {"contrastive", "generation"}
    assert bool(losses.parts["contrastive"]) == (weights[0] > 0)
    sum(losses.parts.values()).backward()
    used = {"contrastive": model.context[1].weight, "generation": model.head[1].weight}
    for (_, parameter), weight in zip(used.items(), weights, strict=True):
        assert bool(parameter.grad.abs().max() > 0) == (weight > 0)


def test_a_picture_that_is_missing_leaves_the_text():
    model = tiny.method().eval()
    batch = documents([laid(5, IMAGE, 6, 7), laid(8, IMAGE)])
    missing = replace(batch, image_valid=torch.tensor([False, True]))
    changed = replace(missing, image=torch.cat([255 - batch.image[:1], batch.image[1:]]))
    torch.testing.assert_close(model(missing).token_loss_B1, model(changed).token_loss_B1)
    assert int(model.losses(model(missing), missing).parts["generation"].isfinite())


def test_without_any_image_everything_keeps_its_graph():
    model = tiny.method()
    batch = documents([laid(5, 6, 7)])
    losses = model.losses(model(batch), batch)
    assert float(losses.parts["contrastive"]) == 0
    sum(losses.parts.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_places_and_tokens_must_agree():
    model = tiny.method()
    batch = documents([laid(5, IMAGE, 6)])
    with pytest.raises(CornerstoneError, match="4 places for image tokens, and the tower gives 8"):
        model(replace(batch, image=batch.image.repeat(2, 1, 1, 1), image_valid=torch.ones(2, dtype=torch.bool)))
    with pytest.raises(CornerstoneError, match="2 images, but the documents' token ids have 1 places"):
        sequence_batch(batch.image.repeat(2, 1, 1, 1), batch.token_ids, IDS)
    with pytest.raises(
        CornerstoneError, match="A sequence of 80 tokens does not fit the language model's 64 positions"
    ):
        model(documents([laid(*range(3, 20), *range(3, 40), *range(3, 27))], length=80))


def test_micro_batches_give_the_same_gradients():
    batch = tiny.double(tiny.some(7))
    gradients = []
    for micro in (0, 3, 1):
        model = tiny.method().double()
        forward_backward(model, batch, micro, model, lambda loss, last: loss.backward())
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for other in gradients[1:]:
        for name, value in gradients[0].items():
            torch.testing.assert_close(other[name], value, msg=name)
