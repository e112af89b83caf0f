"""The Emu-like baseline: the public code's causal former and layout, and targets with and without a gradient."""

from __future__ import annotations

import pytest
import safetensors.torch
import tiny_documents as tiny
import torch
from tiny_documents import IMAGE, documents, laid

from cornerstone.data.documents.config import SpecialIds
from cornerstone.errors import CornerstoneError
from cornerstone.models.causal_former import CausalFormer
from cornerstone.models.document_model import inserted
from cornerstone.models.emu import regressed
from cornerstone.objectives import regression_losses
from cornerstone.recipes.emu import EmuConfig

PARTS = {"0.SelfAttention": "self_attention", "1.EncDecAttention": "cross_attention", "2.DenseReluDense": ""}


def reference(test_data, name: str) -> dict[str, torch.Tensor]:
    path = test_data / "reference" / f"emu_{name}.safetensors"
    if not path.exists():
        pytest.skip(f"no {path}")
    return safetensors.torch.load_file(path)


def renamed(name: str) -> str:
    """A weight's name here; "" if the former does not have it."""
    name = name.removeprefix("model.")
    if name.startswith("cformer.block."):
        _, _, number, _, place, part, rest = name.split(".", 6) if name.count(".") > 5 else [*name.split("."), ""]
        if part == "layer_norm":
            return f"layers.{number}.norms.{place}.weight"
        if rest.startswith("relative"):
            return "bias.weight"
        return ".".join(filter(None, ["layers", number, PARTS[f"{place}.{part}"], rest]))
    fixed = {"causal_tokens": "tokens", "cformer.final_layer_norm.weight": "norm.weight"}
    return fixed.get(name, name.replace("projection.", "project.") if name.startswith("projection") else "")


def test_the_public_causal_former(test_data):
    io = reference(test_data, "causal_former")
    weights = {renamed(name): value for name, value in io.items() if name.startswith("model.") and renamed(name)}
    weights["tokens"] = weights["tokens"][0]
    model = CausalFormer(24, 20, tokens=5, width=32, layers=2, heads=4, hidden=48)
    model.load_state_dict(weights)
    model.double()
    x = io["x"].double().requires_grad_()
    found = model(x)
    torch.testing.assert_close(found, io["output"], rtol=0, atol=1e-5)
    (found * io["weight"]).sum().backward()
    torch.testing.assert_close(x.grad, io["grad_x"], rtol=0, atol=1e-5)


def test_the_public_layout(test_data):
    """Which places are regressed, on what, and the squared error with its gradients."""
    io = reference(test_data, "layout")
    ids = SpecialIds(bos=1, eos=2, pad=0, image=3, boi=4, eoi=5)
    source = regressed(io["ids"], ids)
    assert torch.equal(source, io["regress_from"])
    words = io["token_embedding"][io["ids"]]
    x = inserted(words, io["ids"], ids.image, io["image_embeds"], torch.ones(len(io["image_embeds"]), dtype=torch.bool))
    torch.testing.assert_close(x, io["inputs_embeds"])
    hidden, head = io["hidden"].requires_grad_(), io["head"].requires_grad_()
    loss = regression_losses(hidden, x, source, lambda h: h @ head.T).sum() / source.sum()
    torch.testing.assert_close(loss, io["mse"])
    loss.backward()
    torch.testing.assert_close(hidden.grad, io["grad_hidden"])
    torch.testing.assert_close(head.grad, io["grad_head"])


@pytest.mark.parametrize("targets", ["stop-gradient", "live"])
def test_the_regression_by_hand(targets):
    """<BoI> and every embedding predict the next; only live targets take a gradient themselves."""
    model = tiny.method(kind="emu", targets=targets).double()
    batch = tiny.double(documents([laid(5, IMAGE, 6)]))
    tokens = model.former(model.norm_patches(model.patches(batch.image)))
    x = inserted(model.language.embed(batch.token_ids), batch.token_ids, model.ids.image, tokens, batch.image_valid)
    predicted = model.to_next(model.norm(model.language(x, batch.document)))[0, 2:7]
    wanted = x[0, 3:8] if targets == "live" else x[0, 3:8].detach()
    expected = (predicted - wanted).square().mean()
    losses = model.losses(model(batch), batch)
    torch.testing.assert_close(losses.parts["regression"], expected)
    found = torch.autograd.grad(losses.parts["regression"], model.former.project.weight)[0]
    torch.testing.assert_close(found, torch.autograd.grad(expected, model.former.project.weight)[0])


def test_the_embeddings_are_causal():
    model = tiny.method(kind="emu").former
    patches = torch.randn(2, 4, 24)
    before = model(patches)
    with torch.no_grad():
        model.tokens[2] += 1
    after = model(patches)
    torch.testing.assert_close(after[:, :2], before[:, :2])
    assert not torch.allclose(after[:, 2:], before[:, 2:])


def test_wrong_sizes_are_refused():
    with pytest.raises(CornerstoneError, match=r"former_layers 0 of Emu.*--recipe.method.former-layers"):
        EmuConfig(former_layers=0)
    with pytest.raises(CornerstoneError, match=r"width 768 is not a multiple of 7 heads"):
        EmuConfig(former_heads=7)
    with pytest.raises(CornerstoneError, match=r"Regression weight -1.*--recipe.method.regression-weight"):
        EmuConfig(regression_weight=-1)
