"""What every method on pairs keeps: it learns, micro-batches change nothing, a run goes on, it comes back from disk."""

from __future__ import annotations

import pytest
import tiny_pairs as tiny
import torch

from cornerstone.inference.saved_model import load, save_model
from cornerstone.models.image_tower import build_image_tower
from cornerstone.models.method import Inputs
from cornerstone.recipes.method import implementation_of
from cornerstone.recipes.recipe import Optimization
from cornerstone.training.engine import PlainEngine
from cornerstone.training.step import forward_backward

EVERY = pytest.mark.parametrize("kind", [kind for kind in tiny.KINDS if kind not in ("coca", "clip")])


@EVERY
def test_it_learns_and_every_parameter_gets_a_gradient(kind):
    model, given = tiny.method(kind=kind), tiny.some(12)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    found = []
    for _ in range(15):
        losses = model.losses(model(given), given)
        optimizer.zero_grad()
        sum(losses.parts.values()).backward()
        assert [n for n, p in model.named_parameters() if p.grad is None and p.requires_grad] == []
        optimizer.step()
        found.append(sum(float(part.detach()) for part in losses.parts.values()))
    assert found[-1] < 0.8 * found[0]


@EVERY
def test_micro_batches_give_the_gradients_of_one_pass(kind):
    given, found = tiny.double(tiny.some(12)), []
    for micro in (0, 5):
        model = tiny.method(kind=kind).double()
        losses = forward_backward(model, given, micro, model, lambda loss, last: loss.backward())
        gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        found.append((losses.parts, gradients))
    torch.testing.assert_close(found[1], found[0], rtol=1e-8, atol=1e-10)


@EVERY
def test_a_run_goes_on_from_its_checkpoint(tmp_path, kind):
    """Four steps are two, a checkpoint, and two more by a new process's engine, bit by bit."""
    optimization = Optimization(steps=4, warmup_steps=0, learning_rate=1e-2)

    def trained(engine, steps):
        for step in steps:
            engine.step(tiny.some(6, seed=step), 1e-2)
        return engine.weights()

    expected = trained(PlainEngine(tiny.method(kind=kind), optimization), range(4))
    first = PlainEngine(tiny.method(kind=kind), optimization)
    trained(first, range(2))
    first.save(str(tmp_path), 2)
    second = PlainEngine(tiny.method(seed=0, kind=kind), optimization)
    assert second.load(str(tmp_path)) == 2
    found = trained(second, range(2, 4))
    assert {name: value.tolist() for name, value in found.items()} == {n: v.tolist() for n, v in expected.items()}
    assert not torch.equal(found["logit_scale"], tiny.method(kind=kind).state_dict()["logit_scale"])


@EVERY
def test_it_comes_back_from_disk_as_itself(tmp_path, kind, wordpiece):
    from cornerstone.data.texts import plain_tokenizer, vocabulary_size

    tokenizer, config, given = wordpiece.read_text(), tiny.KINDS[kind](), tiny.some(6)
    vocab = vocabulary_size(plain_tokenizer(tokenizer))
    made = implementation_of(config)
    tower = build_image_tower(config.image)
    model = made.build(config, Inputs(vocab, tower.width, tower), seed=3).eval()
    save_model(str(tmp_path), model, recipe={}, tokenizer_json=tokenizer)
    loaded = load(str(tmp_path))
    assert isinstance(loaded.module, made)
    assert loaded.module.config == config
    image = loaded.encode_image(given.image)
    torch.testing.assert_close(image, model.encode_image(given.image), rtol=0, atol=0)
    form = loaded.text_format
    ids = form.encode_texts(["one two three"])[0]
    text = loaded.encode_text(["one two three"])
    again = model.encode_text(torch.tensor([ids]), torch.tensor([len(ids)]))
    torch.testing.assert_close(text, again, rtol=0, atol=1e-6)
    assert loaded.encoder.similarity(image, text).shape == (6, 1)
    assert loaded.encoder.text_similarity(image, text).shape == (6, 1)
