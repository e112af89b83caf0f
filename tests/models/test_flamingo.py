"""The Flamingo-like baseline: the public code's numbers, which image a token sees, and gates that begin shut."""

from __future__ import annotations

import pytest
import safetensors.torch
import tiny_documents as tiny
import torch
from tiny_documents import IMAGE, documents, laid
from torch import nn

from cornerstone.errors import CornerstoneError
from cornerstone.models.document_model import latest_image
from cornerstone.models.perceiver import GatedCrossAttention, PerceiverResampler
from cornerstone.recipes import ImageTower
from cornerstone.recipes.flamingo import FlamingoConfig

RENAMED = {
    "norm_media": "norm_patches",
    "attn_gate": "attention_gate",
    "ff_gate": "feed_forward_gate",
    "to_q.": "to_query.",
    "to_kv.": "to_key_value.",
    "to_out.": "out.",
    "attn.norm.": "norm.",
    "attn.": "attention.",
    "ff.": "feed_forward.",
}


def reference(test_data, name: str, case: str) -> tuple[dict, dict]:
    """What was put in and came out, and the weights by the names of this project."""
    path = test_data / "reference" / f"flamingo_{name}.safetensors"
    if not path.exists():
        pytest.skip(f"no {path}")
    mine = {k.removeprefix(f"{case}."): x for k, x in safetensors.torch.load_file(path).items() if k.startswith(case)}
    weights = {k.removeprefix("model."): x for k, x in mine.items() if k.startswith("model.")}
    for old, new in RENAMED.items():
        weights = {k.replace(old, new): x for k, x in weights.items()}
    return mine, weights


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("case", "sizes"), [("case0", (32, 6, 2, 4, 8)), ("case1", (24, 4, 1, 2, 16))])
def test_the_public_resampler(test_data, case, sizes):
    io, weights = reference(test_data, "resampler", case)
    model = PerceiverResampler(*sizes)
    named = {}
    for key, value in weights.items():
        if key.startswith("layers."):
            _, layer, part, rest = key.split(".", 3)
            inside = (
                rest
                if part == "0" and rest.startswith("norm")
                else f"{('attention', 'feed_forward')[int(part)]}.{rest}"
            )
            key = f"layers.{layer}.{inside}"
        named[key] = value
    for number, layer in enumerate(model.layers):  # one case is twice as wide inside instead of four times
        for place in (1, 3):
            weight = named[f"layers.{number}.feed_forward.{place}.weight"]
            layer.feed_forward[place] = nn.Linear(*reversed(weight.shape), bias=False)
    model.load_state_dict(named)
    model.double()
    patches = io["x"].double().requires_grad_()
    found = model(patches.flatten(0, 2)).view_as(io["output"])
    same(found, io["output"])
    (found * io["weight"]).sum().backward()
    same(patches.grad, io["grad_x"])
    same(model.latents.grad, io["grad_latents"])


@pytest.mark.parametrize("case", ["case0", "case1"])
def test_the_public_gated_block(test_data, case):
    io, weights = reference(test_data, "gated", case)
    model = GatedCrossAttention(32, 24, 4, 8)
    model.load_state_dict(weights)
    model.double()
    x, media = (io[name].double().requires_grad_() for name in ("x", "media"))
    seen = io["media_locations"].long().cumsum(1) - 1
    expected = {name.removeprefix("latest."): value for name, value in io.items() if name.startswith("latest.")}
    images = torch.arange(media.shape[1])
    assert torch.equal(seen[..., None] == images, expected["sees"])
    found = model(x, media, seen)
    same(found, expected["output"])
    (found * io["weight"]).sum().backward()
    same(x.grad, expected["grad_x"])
    same(media.grad, expected["grad_media"])
    same(model.attention_gate.grad, expected["grad_attn_gate"])
    same(model.feed_forward_gate.grad, expected["grad_ff_gate"])


def test_a_token_sees_the_latest_image_of_its_document():
    one, other = documents([laid(5, IMAGE, 6, IMAGE, 7)]), documents([laid(8, IMAGE, 9)], seed=1)
    batch = tiny.packed(one, other)
    image = [*[0] * 6, 0, *[1] * 6, 1, 1]  # <BoI>, four places, <EoI>, a word; the same; and <eos>
    wanted = [-1, -1, *image, -1, -1, *[2] * 6, 2, 2]
    assert latest_image(batch)[0].tolist() == wanted
    batch.image_valid[1] = False
    assert latest_image(batch)[0].tolist() == [-1 if x == 1 else x for x in wanted]


def test_images_are_seen_in_their_own_sequence():
    """Sequences with different numbers of images read as they do alone."""
    model = tiny.method(kind="flamingo").double().eval()
    batch = tiny.double(tiny.some(6))
    alone = [model.reading(batch.rows(row, row + 1)).token_loss_B1 for row in range(6)]
    torch.testing.assert_close(model.reading(batch).token_loss_B1, torch.cat(alone))


def test_at_the_start_the_gates_are_shut():
    """The images change nothing, and the tower's gradient is 0 until the gates have moved."""
    model = tiny.method(kind="flamingo")
    with torch.no_grad():
        for block in model.cross:
            block.attention_gate.zero_()
            block.feed_forward_gate.zero_()
    batch = tiny.some(6)
    losses = model.losses(model(batch), batch)
    sum(losses.parts.values()).backward()
    assert all(p.grad.abs().max() == 0 for p in model.visual.parameters())
    assert all(block.attention_gate.grad.abs().max() > 0 for block in model.cross)
    fresh = type(model).build(model.config, model.inputs, 0)
    assert not any(block.attention_gate.any() or block.feed_forward_gate.any() for block in fresh.cross)


def test_blocks_stand_before_every_so_many_layers():
    assert len(tiny.method(kind="flamingo").cross) == 2
    assert len(tiny.method(kind="flamingo", every=2).cross) == 1
    model, batch = tiny.method(kind="flamingo", every=2), tiny.some(6)
    sum(model.losses(model(batch), batch).parts.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_wrong_sizes_are_refused():
    with pytest.raises(CornerstoneError, match=r"resampler_layers 0 of Flamingo.*--recipe.method.resampler-layers"):
        FlamingoConfig(resampler_layers=0)
    with pytest.raises(
        CornerstoneError, match=r"Flamingo pools the patches itself.*--recipe.method.image.pooling none"
    ):
        FlamingoConfig(image=ImageTower())
