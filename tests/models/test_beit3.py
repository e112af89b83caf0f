"""The BEiT-3-like baseline: what it hides, what sees what, its targets, and that its blocks are the tower's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny_documents as tiny
import torch
from tiny_documents import IDS, IMAGE, documents, laid

from cornerstone.errors import CornerstoneError
from cornerstone.models.beit3 import Hidden, patch_pixels
from cornerstone.models.image_tower import build_image_tower
from cornerstone.models.method import Inputs
from cornerstone.recipes.beit3 import Beit3Config

MASK = IDS.eoi + 1


def shown(model, batch, alone=False) -> Hidden:
    """Nothing is hidden."""
    images = len(batch.image_row)
    nothing = torch.zeros(images, tiny.PATCHES, dtype=torch.bool)
    return Hidden(torch.zeros_like(batch.target), batch.token_ids, nothing, torch.full((images,), alone))


def test_an_image_alone_is_read_as_the_tower_reads_it():
    model = tiny.method(kind="beit3").double().eval()
    batch = tiny.double(documents([laid(5, 6, IMAGE, 7, IMAGE), laid(IMAGE, 8)]))
    x_BTV, _ = model._read(batch, shown(model, batch, alone=True))
    found = model.visual.model.norm(x_BTV[batch.token_ids == IDS.image]).view(3, tiny.PATCHES, -1)
    torch.testing.assert_close(found, model.visual(batch.image).patches)
    together, _ = model._read(batch, shown(model, batch))
    assert not torch.allclose(together, x_BTV)


def test_text_beside_images_that_are_read_alone_does_not_depend_on_them():
    model = tiny.method(kind="beit3").double().eval()
    batch = tiny.double(documents([laid(5, IMAGE, 6)]))
    other = replace(batch, image=-batch.image)
    text = (batch.token_ids != IDS.image) & (batch.token_ids != IDS.eoi)
    for alone in (True, False):
        found = [model._read(b, shown(model, b, alone))[0][text] for b in (batch, other)]
        assert torch.allclose(*found) == alone


def test_documents_see_nothing_of_each_other():
    model = tiny.method(kind="beit3").double().eval()
    one, other = documents([laid(5, IMAGE, 6)]), documents([laid(7, 8, IMAGE)], seed=1)
    batch = tiny.double(tiny.packed(one, other))
    first = batch.document[0] == 0
    changed = replace(batch, image=torch.cat([batch.image[:1], -batch.image[1:]]))
    x, y = (model._read(b, shown(model, b))[0][0] for b in (batch, changed))
    torch.testing.assert_close(x[first], y[first], rtol=0, atol=0)
    assert not torch.allclose(x[~first & (batch.document[0] == 1)], y[~first & (batch.document[0] == 1)])


def test_masked_patches_are_not_read_and_are_the_targets():
    model = tiny.method(kind="beit3").double().eval()
    batch = tiny.double(documents([laid(5, IMAGE, 6)]))
    patch = torch.tensor([[False, True, False, False]])  # the upper right one of four
    hidden = replace_patches(shown(model, batch), patch)
    other = replace(batch, image=batch.image.clone())
    other.image[:, :, :8, 8:] += torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    x, y = (model._read(b, hidden)[0] for b in (batch, other))
    torch.testing.assert_close(x, y, rtol=0, atol=0)
    losses = [model._pixels(x, b, patch) for b in (batch, other)]
    assert not torch.allclose(*losses)
    x_V = model.visual.model.norm(x[batch.token_ids == IDS.image][1])
    square = batch.image[0, :, :8, 8:]
    wanted = (square - square.mean()) / (square.var() + 1e-6).sqrt()
    torch.testing.assert_close(losses[0][0, 0], (model.to_pixels(x_V) - wanted.flatten()).square().mean())


def replace_patches(hidden: Hidden, patch: torch.Tensor) -> Hidden:
    return hidden._replace(patch_NP=patch)


def test_targets_of_patches_are_in_the_order_of_the_towers_patches():
    image = torch.arange(3 * 16 * 16, dtype=torch.float32).view(1, 3, 16, 16)
    found = patch_pixels(image, 8)
    assert found.shape == (1, 4, 192)
    for number, (top, left) in enumerate([(0, 0), (0, 8), (8, 0), (8, 8)]):
        square = image[0, :, top : top + 8, left : left + 8].flatten()
        torch.testing.assert_close(found[0, number], (square - square.mean()) / square.std(), rtol=1e-4, atol=1e-5)


def test_shares_of_what_is_hidden():
    """Half of the text beside images, 15 % of plain text, 40 % (two of four) patches; 80 % [MASK], 10 % another word."""
    model = tiny.method(kind="beit3")
    words = torch.randint(3, tiny.WORDS, (20,), generator=torch.Generator().manual_seed(0)).tolist()
    batch = documents([laid(*words[:10], IMAGE, *words[10:]), laid(*words)] * 40)
    masked, apart = {True: [], False: []}, []
    read, hidden_ids = [], []
    for epoch in range(5):
        now = replace(batch, epoch=batch.epoch + epoch)
        hidden = model.hidden(now)
        assert (hidden.patch_NP.sum(1) == round(0.4 * tiny.PATCHES)).all()
        assert not (hidden.text_BT & ~batch.target).any()
        alone_B = torch.ones(80, dtype=torch.bool)
        alone_B[::2] = hidden.alone_N
        apart.append(hidden.alone_N)
        for alone in (True, False):
            masked[alone] += hidden.text_BT[alone_B == alone].sum(1).tolist()
        changed = hidden.token_ids_BT != batch.token_ids
        assert not (changed & ~hidden.text_BT).any()
        read.append(hidden.token_ids_BT[hidden.text_BT])
        hidden_ids.append(batch.token_ids[hidden.text_BT])
    assert set(masked[False]) == {round(0.5 * 22)}  # 20 words, <BoI>, <eos>
    assert set(masked[True]) == {round(0.15 * 22), round(0.15 * 21)} == {3}
    assert torch.cat(apart).float().mean() == pytest.approx(0.5, abs=0.12)
    read, own = torch.cat(read), torch.cat(hidden_ids)
    assert (read == MASK).float().mean() == pytest.approx(0.8, abs=0.04)
    assert (read == own).float().mean() == pytest.approx(0.1, abs=0.03)
    assert read[(read != MASK) & (read != own)].max() < tiny.WORDS


def test_draws_belong_to_the_seed_the_epoch_and_the_row():
    model, batch = tiny.method(kind="beit3"), tiny.some(6)
    for one, other in zip(model.hidden(batch), model.hidden(batch), strict=True):
        assert torch.equal(one, other)
    part = model.hidden(batch.rows(2, 5))
    whole = model.hidden(batch)
    mine = (batch.image_row >= 2) & (batch.image_row < 5)
    assert torch.equal(part.text_BT, whole.text_BT[2:5])
    assert torch.equal(part.patch_NP, whole.patch_NP[mine])
    assert torch.equal(part.alone_N, whole.alone_N[mine])
    later = model.hidden(replace(batch, epoch=batch.epoch + 1))
    assert not torch.equal(later.text_BT, whole.text_BT)
    assert not torch.equal(later.patch_NP, whole.patch_NP)
    assert not torch.equal(tiny.method(seed=1, kind="beit3").hidden(batch).text_BT, whole.text_BT)


def test_reading_predicts_every_text_target_once():
    model, batch = tiny.method(kind="beit3"), tiny.some(5)
    predicted = []
    words = model._words
    model._words = lambda x, b, text_BT: predicted.append(text_BT) or words(x, b, text_BT)
    model.reading(batch)
    assert torch.equal(sum(x.int() for x in predicted), batch.target.int())
    del model._words


def test_a_transfer_run_takes_the_tower_that_was_trained():
    model = tiny.method(kind="beit3")
    assert model.image_tower is model.visual
    names = {name for name, _ in model.named_parameters() if name.startswith("visual.")}
    assert names == {f"visual.{name}" for name, _ in model.visual.named_parameters()}
    assert not any("blocks" in name for name, _ in model.named_parameters() if not name.startswith("visual."))


def test_what_it_cannot_read_is_refused():
    with pytest.raises(CornerstoneError, match=r"masked_text 1.0 of BEiT-3.*--recipe.method.masked-text"):
        Beit3Config(masked_text=1.0)
    with pytest.raises(CornerstoneError, match=r"apart 2 of BEiT-3: expected 0 to 1"):
        Beit3Config(apart=2)
    with pytest.raises(CornerstoneError, match=r"min_block 0 of BEiT-3.*--recipe.method.min-block"):
        Beit3Config(min_block=0)
    model = tiny.method(kind="beit3", positions=8)
    batch = tiny.some(2)
    with pytest.raises(CornerstoneError, match=r"does not fit the 8 positions: raise --recipe.method.positions"):
        model(batch)


def test_a_tower_without_a_class_token_is_refused():
    config = tiny.beit3()
    config = replace(config, image=replace(config.image, name="vit_base_patch16_siglip_224"))
    tower = build_image_tower(config.image)
    from cornerstone.models.beit3 import Beit3

    with pytest.raises(CornerstoneError, match=r"BEiT-3 reads a class token.*--recipe.method.image.name"):
        Beit3.build(config, Inputs(tiny.WORDS, tower.width, tower, special_ids=IDS), 0)


def test_a_token_is_predicted_from_its_own_place():
    model, batch = tiny.method(kind="beit3"), documents([laid(5, 6, IMAGE, 7)])
    x_BTV = torch.randn(1, 40, 24, generator=torch.Generator().manual_seed(0), requires_grad=True)
    only = torch.zeros_like(batch.target)
    only[0, 2] = True
    losses = model._words(x_BTV, batch, only)
    (gradient,) = torch.autograd.grad(losses.sum_B1.sum(), x_BTV)
    assert gradient[0].abs().amax(-1).nonzero().flatten().tolist() == [2]
    log_p = model.head(model.norm(x_BTV[0, 2])).log_softmax(-1)
    torch.testing.assert_close(losses.sum_B1[0, 0], -log_p[6])
