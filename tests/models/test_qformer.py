"""The Q-Former against the released code's numbers, its initial weights, and what it refuses."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import safe_open
from transformers import Blip2QFormerConfig

from cornerstone.errors import CornerstoneError
from cornerstone.models.bert import build_bert
from cornerstone.models.qformer import QFormer
from cornerstone.objectives import query_contrastive_loss, token_losses
from cornerstone.recipes import QFormerText

RENAMED = {
    "query_tokens": "queries.weight",
    "vision_proj": "to_image_feature",
    "text_proj": "to_text_feature",
    "itm_head": "to_match",
    "Qformer.cls.predictions.bias": "words.bias",
    "Qformer.cls.predictions.transform.": "to_next.",
    "Qformer.bert.embeddings.LayerNorm.": "blocks.layernorm.",
    "Qformer.bert.embeddings.word_embeddings.": "words.",
    "Qformer.bert.embeddings.position_embeddings.": "positions.",
    "Qformer.bert.": "blocks.",
    "attention.self.": "attention.attention.",
}


@pytest.fixture(scope="module")
def reference(test_data):
    """The released code's inputs and outputs, and the tower with its weights."""
    path = test_data / "reference" / "blip2_tiny.safetensors"
    if not path.exists():
        pytest.skip(f"no {path}")
    with safe_open(path, "pt") as file:
        sizes = json.loads(file.metadata()["config"])
    tensors = safetensors.torch.load_file(path)
    tower = QFormer(
        Blip2QFormerConfig(
            vocab_size=sizes["vocab"],
            hidden_size=sizes["hidden"],
            num_hidden_layers=sizes["layers"],
            num_attention_heads=sizes["heads"],
            intermediate_size=sizes["ffn"],
            max_position_embeddings=sizes["positions"],
            cross_attention_frequency=sizes["cross_attention_every"],
            encoder_hidden_size=sizes["vision_width"],
            use_qformer_text_input=True,
        ),
        sizes["queries"],
        sizes["embed"],
    )
    weights = {}
    for name, value in tensors.items():
        name = name.removeprefix("model.")
        if name.startswith("io.") or name in (
            "temp",
            "Qformer.cls.predictions.decoder.bias",
        ):  # the same as its other bias
            continue
        for theirs, mine in RENAMED.items():
            name = name.replace(theirs, mine)
        weights[name] = value[0] if name == "queries.weight" else value
    tower.load_state_dict(weights)
    io = {name.removeprefix("io."): value for name, value in tensors.items() if name.startswith("io.")}
    return tower.double().eval(), io | {"temp": tensors["model.temp"].double()}


def near(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def gradients(tower, io, loss_of) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    image, temp = (io[name].double().clone().requires_grad_() for name in ("image_embeds", "temp"))
    loss = loss_of(image, temp)
    found = torch.autograd.grad(loss, [image, tower.queries.weight, temp], allow_unused=True)
    return loss, dict(zip(("image", "queries", "temp"), found, strict=True))


@pytest.mark.parametrize("full", [True, False])
def test_the_contrastive_loss_of_the_released_code(reference, full):
    tower, io = reference

    def loss_of(image, temp):
        image_feature = tower.images(image)
        text_feature = tower(io["text_ids"], io["text_mask"].sum(1)).pooled_BD
        near(image_feature, io["image_feats"])
        near(text_feature, io["text_feat"])
        smoothed = {"label_smoothing": 0.1, "constant_columns": not full}
        return query_contrastive_loss(image_feature, text_feature, (1 / temp)[None], **smoothed)

    loss, found = gradients(tower, io, loss_of)
    near(loss, io["loss_itc"])
    suffix = "_full" if full else ""
    near(found["image"], io[f"grad_itc_image{suffix}"])
    near(found["queries"][None], io[f"grad_itc_queries{suffix}"])
    near(found["temp"], io[f"grad_itc_temp{suffix}"])


def test_the_captioning_loss_of_the_released_code(reference):
    tower, io = reference
    ids, length = io["text_ids"], io["text_mask"].sum(1)

    def loss_of(image, temp):
        found = tower.captions(image, ids)
        near(found.image_BQD, io["image_feats"])
        seen = io["text_mask"].bool()
        near(tower.next_token(found.hidden_BTE)[seen], io["lm_logits"][seen])
        head = {"head": tower.next_token, "vocabulary": 80, "label_smoothing": 0.1}
        losses = token_losses(found.hidden_BTE, ids, seen, **head)
        return losses.sum_B1.sum() / (length - 1).sum()

    loss, found = gradients(tower, io, loss_of)
    near(loss, io["loss_lm"])
    near(found["image"], io["grad_lm_image"])
    near(found["queries"][None], io["grad_lm_queries"])


def test_the_matching_loss_of_the_released_code(reference):
    tower, io = reference
    ids, length = io["text_ids"], io["text_mask"].sum(1)

    def loss_of(image, temp):
        logits = tower.match(
            torch.cat([image, image[io["negative_image"]], image]),
            torch.cat([ids, ids, ids[io["negative_text"]]]),
            torch.cat([length, length, length[io["negative_text"]]]),
        )
        near(logits, io["itm_logits"])
        return F.cross_entropy(logits, torch.tensor([1] * 4 + [0] * 8))

    loss, found = gradients(tower, io, loss_of)
    near(loss, io["loss_itm"])
    near(found["image"], io["grad_itm_image"])
    near(found["queries"][None], io["grad_itm_queries"])


def tiny(**changes) -> QFormer:
    sizes = {"name": "", "width": 16, "layers": 3, "heads": 2, "token_limit": 16, "queries": 3, "embedding": 8}
    return QFormer.build(QFormerText(**{**sizes, **changes}), 30, 12, seed=0).eval()


def test_it_begins_with_a_berts_weights_and_the_queries_with_a_copy():
    tower = tiny()
    bert = build_bert(QFormerText("", width=16, layers=3, heads=2, token_limit=16), 30, 0)
    for mine, theirs in zip(tower.blocks.encoder.layer, bert.encoder.layer, strict=True):
        assert torch.equal(mine.attention.attention.key.weight, theirs.attention.self.key.weight)
        assert torch.equal(mine.attention.output.dense.weight, theirs.attention.output.dense.weight)
        for part in (mine.intermediate, mine.intermediate_query):
            assert torch.equal(part.dense.weight, theirs.intermediate.dense.weight)
        for part in (mine.output, mine.output_query):
            assert torch.equal(part.dense.weight, theirs.output.dense.weight)
    assert torch.equal(tower.words.weight[:30], bert.embeddings.word_embeddings.weight)
    assert tower.vocabulary == len(tower.words.weight) == 31
    crossed = [layer.has_cross_attention for layer in tower.blocks.encoder.layer]
    assert crossed == [True, False, True]
    assert [layer.has_cross_attention for layer in tiny(cross_every=3).blocks.encoder.layer] == [True, False, False]


def test_the_same_seed_gives_the_same_weights_and_moves_no_generator():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, other = tiny(), tiny()
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert not torch.equal(
        one.queries.weight, QFormer.build(QFormerText("", 16, 3, 2, 16), 30, 12, 1).queries.weight[:3]
    )


def test_padding_is_not_read():
    tower, draw = tiny().double(), torch.Generator().manual_seed(1)
    ids, length = torch.randint(1, 30, (4, 9), generator=draw), torch.tensor([9, 3, 5, 2])
    patches = torch.randn(4, 5, 12, generator=draw, dtype=torch.float64)
    other = torch.where(torch.arange(9) < length[:, None], ids, 7)
    torch.testing.assert_close(tower(ids, length).pooled_BD, tower(other, length).pooled_BD)
    torch.testing.assert_close(tower.match(patches, ids, length), tower.match(patches, other, length))
    captions = tower.captions(patches, ids), tower.captions(patches, other)
    for row, end in enumerate(length):
        torch.testing.assert_close(captions[0].hidden_BTE[row, :end], captions[1].hidden_BTE[row, :end])


def test_too_long_texts_and_wrong_sizes_are_refused():
    with pytest.raises(CornerstoneError, match=r"600 tokens do not fit the 512 positions.*--recipe.method.text"):
        tiny()(torch.ones(1, 600, dtype=torch.long), torch.tensor([600]))
    with pytest.raises(CornerstoneError, match=r"cross_every 0 of the Q-Former.*--recipe.method.text.cross-every"):
        QFormerText(cross_every=0)
