"""CoCa and CLIP on pairs: the public code's numbers, what a token sees, and what is a target."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import safetensors
import safetensors.torch
import tiny_pairs as tiny
import torch
from open_clip.transformer import VisionTransformer

from cornerstone.data.pairs.batch import PairBatch
from cornerstone.errors import CornerstoneError
from cornerstone.inference.saved_model import load, save_model
from cornerstone.models.clip_text import ClipTextTransformer
from cornerstone.models.coca import Coca
from cornerstone.models.image_tower import build_image_tower
from cornerstone.models.method import Inputs
from cornerstone.objectives import coca_loss, contrastive_loss
from cornerstone.recipes import PairData, Recipe
from cornerstone.recipes.coca import CocaConfig, CocaLoss
from cornerstone.recipes.towers import ClipText, ImageTower

RENAMED = {
    "visual.attn_pool.": "poolers.pool.",
    "visual.attn_pool_contrastive.": "poolers.contrastive.",
    "text_decoder.": "decoder.",
}
FORM = {"parallel": "parallel", "released": "shared"}


@pytest.fixture(scope="module")
def reference(test_data):
    path = test_data / "reference" / "coca_tiny.safetensors"
    if not path.exists():
        pytest.skip(f"no {path}")
    with safetensors.safe_open(path, "pt") as file:
        sizes = json.loads(file.metadata()["config"])
    return sizes, safetensors.torch.load_file(path)


def public(reference, form: str, mask: str) -> tuple[Coca, VisionTransformer, dict]:
    """The model in float64 with the public weights, the public ViT, which stands for the tower, and what came out."""
    sizes, tensors = reference
    weights = {k.removeprefix(f"{form}.model."): x for k, x in tensors.items() if k.startswith(f"{form}.model.")}
    io = {k.removeprefix(f"{form}.io."): x for k, x in tensors.items() if k.startswith(f"{form}.io.")}
    io |= {k.removeprefix(f"{mask}."): x for k, x in io.items() if k.startswith(mask)}
    io |= {k.removeprefix("io."): x for k, x in tensors.items() if k.startswith("io.")}
    width, embed, heads = sizes["width"], sizes["embed"], sizes["heads"]
    trunk = VisionTransformer(
        sizes["image"], sizes["patch"], width, sizes["vision_layers"], width // sizes["head_width"], 4
    )
    visual = {k.removeprefix("visual."): x for k, x in weights.items() if k.startswith("visual.")}
    trunk.load_state_dict({**visual, "proj": trunk.proj}, strict=False)
    text = ClipText(
        width=width,
        layers=sizes["text_layers"],
        heads=heads,
        token_limit=sizes["context"] + 1,
        pooling="trailing",
        correct_cls_mask=mask == "correct",
    )
    tower = replace(tiny.TOWER, width=width)
    config = CocaConfig(
        tower,
        text,
        decoder_layers=sizes["decoder_layers"],
        poolers=FORM[form],
        queries=sizes["queries"],
        pooling_heads=sizes["pool_heads"],
    )
    model = Coca.build(config, Inputs(sizes["vocab"], embed, build_image_tower(tower)), seed=0)
    named = {"logit_scale": weights["logit_scale"].reshape(1), "poolers.project.weight": visual["proj"].T}
    named["head.weight"] = weights["text_decoder.text_projection"].T
    if form == "released":
        named |= {f"poolers.norm.{name}": visual[f"ln_post.{name}"] for name in ("weight", "bias")}
    for key, value in weights.items():
        old = next((old for old in RENAMED if key.startswith(old)), None)
        if key.startswith("text."):
            named[key] = value
        elif old and key != "text_decoder.text_projection":
            named[RENAMED[old] + key.removeprefix(old)] = value
    own = {name: value for name, value in model.state_dict().items() if name.startswith("visual.")}
    model.load_state_dict({**own, **named})
    return model.double().eval(), trunk.double().eval(), io


@pytest.mark.parametrize("mask", ["correct", "legacy"])
@pytest.mark.parametrize("form", FORM)
def test_the_public_model(reference, form, mask):
    model, trunk, io = public(reference, form, mask)
    tokens = trunk.transformer(trunk._embeds(io["images"].double()))
    pooled = model.poolers(trunk.ln_post(tokens) if form == "parallel" else tokens)
    image = torch.nn.functional.normalize(pooled.feature_BD, dim=-1)
    same(image, io["image_features"])
    same(pooled.tokens_BQE, io["image_tokens"])
    ids, lengths = io["ids"], (io["ids"] != 0).sum(1)
    assert torch.equal(ids != 0, torch.arange(ids.shape[1]) < lengths[:, None])
    assert 1 < int(lengths.min()) < ids.shape[1]
    text = model.text(ids, lengths, tokens=True)
    same(text.pooled_BD, io["text_features"])
    logits = model.head(model.decoder(pooled.tokens_BQE, text.tokens_BTE))
    real = torch.arange(1, ids.shape[1]) < lengths[:, None]  # positions before a target
    same(logits[:, : ids.shape[1] - 1][real], io["logits"][real])
    losses = model.caption(pooled.tokens_BQE, text.tokens_BTE, ids, lengths)
    parts = coca_loss(image, text.pooled_BD, model.scale(), losses.sum_B1, (lengths - 1).sum())
    same(parts["contrastive"], io["contrastive"])
    same(parts["caption"], io["caption"])


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_the_two_masks_differ_where_there_is_padding():
    """Of a text that fills the limit there is no padding that the trailing token could see."""
    right, wrong = (
        ClipTextTransformer(replace(tiny.coca().text, correct_cls_mask=correct), tiny.WORDS, 16)
        for correct in (True, False)
    )
    ids = torch.randint(1, tiny.WORDS, (2, tiny.LIMIT - 1))
    lengths = torch.tensor([tiny.LIMIT - 1, 4])
    one, other = (tower(ids, lengths).pooled_BD for tower in (right, wrong))
    torch.testing.assert_close(one[0], other[0])
    assert (one[1] - other[1]).abs().max() > 1e-3


@pytest.mark.parametrize("pooling", ["end", "trailing"])
def test_padding_and_other_texts_change_no_feature(pooling):
    tower = ClipTextTransformer(replace(tiny.coca().text, pooling=pooling), tiny.WORDS, 16).double()
    ids, lengths = torch.randint(1, tiny.WORDS, (5, tiny.LIMIT - 1)), torch.tensor([11, 3, 8, 5, 9])
    found = tower(ids, lengths, tokens=True)
    for row, length in enumerate(lengths.tolist()):
        alone = tower(ids[row : row + 1, :length], lengths[row : row + 1], tokens=True)
        torch.testing.assert_close(found.pooled_BD[row], alone.pooled_BD[0])
        torch.testing.assert_close(found.tokens_BTE[row, :length], alone.tokens_BTE[0, :length])
    bucketed = tower(ids, lengths, tokens=True, buckets=3)
    torch.testing.assert_close(bucketed.pooled_BD, found.pooled_BD)
    changed = ids.clone()
    changed[0, 6] += 1 - 2 * (changed[0, 6] == tiny.WORDS - 1).long()
    before = tower(changed, lengths, tokens=True).tokens_BTE
    torch.testing.assert_close(before[0, :6], found.tokens_BTE[0, :6])  # causal
    assert (before[0, 6:] - found.tokens_BTE[0, 6:]).abs().amax(-1).min() > 1e-4


def test_targets_are_all_tokens_but_the_first_of_the_rows_that_count():
    """A word of id 0 is one, a masked row has none."""
    model, given = tiny.method().double(), tiny.double(tiny.some(12))
    given.raw_ids[0, 1] = 0
    features = model(given)
    losses = model.losses(features, given)
    counted = given.valid & (given.raw_length > 0)
    tokens = int((given.raw_length - 1)[counted].sum())
    assert features.token_loss_B1.squeeze(1).ne(0).equal(counted)
    caption = features.token_loss_B1.sum() / tokens
    torch.testing.assert_close(losses.parts["caption"], 2 * caption)
    torch.testing.assert_close(losses.reports["generation"], caption.detach())
    contrastive = contrastive_loss(features.image_BD, features.text_BD, 1 / 0.07, row_ids_B=given.row, valid_B=counted)
    torch.testing.assert_close(losses.parts["contrastive"], contrastive, rtol=1e-6, atol=0)
    pooled, text = model.poolers(model.patches(given.image)), model.text(given.raw_ids, given.raw_length, tokens=True)
    logits = model.head(model.decoder(pooled.tokens_BQE, text.tokens_BTE)).log_softmax(-1)
    first = -sum(logits[0, i - 1, given.raw_ids[0, i]] for i in range(1, int(given.raw_length[0])))
    torch.testing.assert_close(features.token_loss_B1[0, 0], first)


@pytest.mark.parametrize("captions", ["raw", "long"])
@pytest.mark.parametrize(("kind", "changes"), [("coca", {}), ("coca", {"poolers": "shared"}), ("clip", {})])
def test_it_learns_and_every_parameter_gets_a_gradient(kind, changes, captions):
    model, given = tiny.method(kind=kind, captions=captions, **changes), tiny.some(12)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    found = []
    for _ in range(12):
        losses = model.losses(model(given), given)
        total = sum(losses.parts.values())
        optimizer.zero_grad()
        total.backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []
        optimizer.step()
        found.append({name: float(part.detach()) for name, part in losses.parts.items()})
    assert set(found[0]) == ({"contrastive", "caption"} if kind == "coca" else {"contrastive"})
    assert all(found[-1][name] < 0.8 * found[0][name] for name in found[0])


@pytest.mark.parametrize("kind", ["coca", "clip"])
def test_it_learns_what_new_images_show(kind):
    """Pictures of eight colours in noise, captions of a random word and the colour: chance is ln 32, the floor about ln 4."""
    model, draw = tiny.method(kind=kind), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(80):
        given = colours(32, draw)
        losses = model.losses(model(given), given)
        optimizer.zero_grad()
        sum(losses.parts.values()).backward()
        optimizer.step()
    assert losses.parts["contrastive"] < 1.8
    if kind == "coca":  # of three targets the colour and the end can be known
        assert losses.reports["token_accuracy"] > 0.6


def colours(number: int, draw: torch.Generator) -> PairBatch:
    colour = torch.randint(8, (number,), generator=draw)
    shown = torch.stack([(colour >> bit & 1) * 200 for bit in range(3)], dim=1)[..., None, None]
    noise = torch.randint(56, (number, 3, tiny.SIDE, tiny.SIDE), generator=draw)
    ids = torch.full((number, 4), 1)
    ids[:, 1], ids[:, 2], ids[:, 3] = torch.randint(20, 39, (number,), generator=draw), colour + 3, 2
    every = {"row": torch.arange(number), "valid": torch.ones(number, dtype=torch.bool)}
    texts = {"raw_ids": ids, "raw_length": torch.full((number,), 4)}
    return replace(tiny.some(number), image=(shown + noise).to(torch.uint8), **every, **texts)


def test_clip_has_no_decoder():
    names = [name for name, _ in tiny.method(kind="clip").named_parameters()]
    assert not any(name.startswith(("decoder.", "head.", "poolers.pool.")) or "cls_emb" in name for name in names)
    assert tiny.clip().chance_loss(8) == pytest.approx(2.0794, abs=1e-4)
    assert tiny.coca().chance_loss(8) is None


def test_buckets_change_no_number():
    given = tiny.double(tiny.some(12))
    plain, bucketed = (tiny.method(buckets=n).double()(given) for n in (1, 3))
    for one, other in zip(plain, bucketed, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_a_frozen_tower_is_left_alone():
    config = replace(tiny.coca(), image=replace(tiny.TOWER, locked=True))
    model = Coca.build(config, Inputs(tiny.WORDS, 24, build_image_tower(config.image)), seed=0)
    assert not any(name.startswith("visual.") for name, _ in model.named_parameters())
    given = tiny.some(6)
    sum(model.losses(model(given), given).parts.values()).backward()
    assert model.poolers.contrastive.query.grad.abs().max() > 0
    assert all(p.grad is None for p in model.image_tower.parameters())


@pytest.mark.parametrize("kind", ["coca", "clip"])
def test_it_comes_back_from_disk_as_itself(tmp_path, kind, wordpiece):
    from cornerstone.data.texts import plain_tokenizer, vocabulary_size

    tokenizer = wordpiece.read_text()
    config = tiny.KINDS[kind]()
    vocab = vocabulary_size(plain_tokenizer(tokenizer))
    model = Coca.build(config, Inputs(vocab, 24, build_image_tower(config.image)), seed=0).eval()
    save_model(str(tmp_path), model, recipe={}, tokenizer_json=tokenizer)
    loaded = load(str(tmp_path))
    assert isinstance(loaded.module, Coca)
    assert loaded.module.config == config
    given = tiny.some(6)
    same = {"rtol": 0, "atol": 0}
    torch.testing.assert_close(loaded.encode_image(given.image), model.encode_image(given.image), **same)
    form = loaded.text_format
    ids = form.encode_texts(["one two three"])[0]
    assert [ids[0], ids[-1]] == form.empty
    as_ids = loaded.encode_text(torch.tensor([ids]))
    torch.testing.assert_close(loaded.encode_text(["one two three"]), as_ids, **same)
    assert loaded.encode_text(["one", "raw picture by two"], corners=True).shape == (2, 1, 24)
    longest = form.encode_texts(["one two three four five " * 9])[0]
    assert len(longest) == tiny.LIMIT - (kind == "coca")
    assert loaded.encode_text(torch.tensor([longest])).norm().item() == pytest.approx(1)


WRONG = {
    r"CoCa pools the patches itself.*--recipe.method.image.pooling none": lambda: CocaConfig(image=ImageTower()),
    r"no projection to 8 changes: set --recipe.method.image.projection 0": lambda: CocaConfig(
        image=replace(tiny.TOWER, projection=8)
    ),
    r"decoder_layers 0 of CoCa: expected 1 or more.*--recipe.method.decoder-layers": lambda: tiny.coca(
        decoder_layers=0
    ),
    r"queries 1 of CoCa: expected 2 or more": lambda: tiny.coca(poolers="shared", queries=1),
    r"5 heads of CoCa's poolers: expected a divisor of the text tower's width 16": lambda: tiny.coca(pooling_heads=5),
    r"contrastive 0 and caption 0": lambda: CocaLoss(contrastive_weight=0, caption_weight=0),
    r"no effect on a text that is pooled at its end": lambda: ClipText(correct_cls_mask=False),
    r"weights of 'x' have no trailing token": lambda: ClipText(name="x", pooling="trailing"),
    r"has no dropout": lambda: ClipText(dropout=0.1),
    r"0 sub-captions leave no long caption": lambda: Recipe("x", tiny.coca(captions="long"), PairData(sub_captions=0)),
    r"trains its own pooling on the patches": lambda: Recipe(
        "x",
        replace(tiny.coca(), image=replace(tiny.TOWER, locked=True)),
        PairData(features="stored", crop_scale=(1.0, 1.0)),
    ),
    r"An image tower|needs an image tower": lambda: Coca.build(
        replace(tiny.coca(), image=replace(tiny.TOWER, locked=True)), Inputs(9, 24), 0
    ),
    r"Pooled features were given": lambda: tiny.method().encode_image(torch.zeros(2, 24)),
    r"A text of 12 tokens does not fit the text tower's 11 positions": lambda: tiny.method().text(
        torch.ones(1, 12, dtype=torch.long), torch.tensor([12])
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_wrong_is_refused(message):
    with pytest.raises(CornerstoneError, match=message):
        WRONG[message]()
