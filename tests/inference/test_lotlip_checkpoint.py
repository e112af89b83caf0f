"""The same numbers as the authors' code, from its weights: a tiny LoTLIP with 2 corners and a limit of 48 tokens.

`fixtures/lotlip_tiny_text.safetensors` is the text half of `reference/lotlip_tiny.safetensors` of the sample data; of
the word embeddings it keeps the rows in use (`rows`, then the corners). The image half is tested where the whole file
is.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from cornerstone.data.pairs.batch import PairBatch
from cornerstone.errors import CornerstoneError
from cornerstone.inference.lotlip_checkpoint import from_checkpoint, without_corners
from cornerstone.models.image_tower import build_image_tower
from cornerstone.models.lotlip import Lotlip
from cornerstone.models.method import Inputs
from cornerstone.recipes.lotlip import LotlipConfig, LotlipLoss
from cornerstone.recipes.towers import CornerText, ImageTower

FIXTURE = Path(__file__).parents[1] / "fixtures" / "lotlip_tiny_text.safetensors"
WORDS = "model.text.transformer.embeddings.word_embeddings.weight"


def read(path: Path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118 - not a mapping


def build(state, about, vocab_size, tower=None):
    weights = from_checkpoint(
        {name: v for name, v in state.items() if name.startswith("model.")}, vocab_size=vocab_size
    )
    if tower is not None:
        tower.model.load_state_dict(weights.image)
    bert = json.loads(about["bert_config"]) | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    bert |= {"vocab_size": vocab_size, "max_position_embeddings": len(state[WORDS.replace("word", "position")])}
    config = LotlipConfig(
        image=ImageTower("test_vit", pretrained=False, size=160),
        text=CornerText(name="", corner_tokens=weights.corners, token_limit=48),
        loss=LotlipLoss(reduction="mean"),
    )
    model = Lotlip(config, Inputs(vocab_size, 64, tower), text_tower=bert)
    model.load_state_dict(weights.method)
    return model.eval()


def a_batch(tokens, vocab_size, image) -> PairBatch:
    texts = [without_corners(tokens[:, i], vocab_size=vocab_size, corners=2) for i in range(2)]
    row = torch.arange(len(tokens))
    return PairBatch(0, row, row >= 0, (), torch.zeros_like(row), *texts[0], *texts[1], image)


def assert_theirs(model, batch, state, about):
    with torch.no_grad():
        features = model(batch)
        losses = model.losses(features, batch)
    texts = torch.cat([features.raw_BD[:, None], features.long_BMD], dim=1)
    torch.testing.assert_close(texts, state["io.text_features"], rtol=0, atol=1e-5)
    torch.testing.assert_close(features.image_BD, state["io.image_features"], rtol=0, atol=1e-5)
    for name, loss in losses.parts.items():
        torch.testing.assert_close(loss.item(), float(about[f"{name}_loss"]), rtol=0, atol=1e-5)
    torch.testing.assert_close(features.scale.item(), float(about["logit_scale"]), rtol=0, atol=1e-5)


def test_text_features_and_losses_are_the_authors():
    state, about = read(FIXTURE)
    rows = state["rows"]
    ids = torch.arange(int(about["corner_tokens"])) + 30522  # in the fixture, word ids are places in `rows`
    tokens = torch.searchsorted(torch.cat([rows, ids]), state["io.tokens"])
    batch = a_batch(tokens, len(rows), state["io.image_features"])
    assert_theirs(build(state, about, len(rows)), batch, state, about)


def test_image_features_are_the_authors_too(test_data):
    path = test_data / "reference" / "lotlip_tiny.safetensors"
    if not path.exists():
        pytest.skip(f"no {path}")
    state, about = read(path)
    model = build(state, about, 30522, build_image_tower(ImageTower("test_vit", pretrained=False, size=160)))
    batch = a_batch(state["io.tokens"], 30522, state["io.images"])
    assert_theirs(model, batch, state, about)
    torch.testing.assert_close(
        model.encode_text(batch.long_ids, batch.long_length), state["io.cls_features"], rtol=0, atol=1e-5
    )


def test_the_fixture_is_cut_from_the_reference(test_data):
    path = test_data / "reference" / "lotlip_tiny.safetensors"
    if not path.exists():
        pytest.skip(f"no {path}")
    (whole, _), (cut, _) = read(path), read(FIXTURE)
    assert torch.equal(cut[WORDS], torch.cat([whole[WORDS][cut["rows"]], whole[WORDS][30522:]]))
    for name in cut.keys() - {WORDS, "rows"}:
        assert torch.equal(cut[name], whole[name][: len(cut[name])] if cut[name].ndim else whole[name]), name


def test_a_checkpoint_of_another_kind_is_refused():
    state, _ = read(FIXTURE)
    state = {name.removeprefix("model."): v for name, v in state.items() if name.startswith("model.")}
    assert (
        from_checkpoint({f"module.{name}": v for name, v in state.items()}, vocab_size=10).corners
        == len(state[WORDS[6:]]) - 10
    )
    assert "text.corners" not in from_checkpoint(state, vocab_size=len(state[WORDS[6:]])).method
    with pytest.raises(CornerstoneError, match=r"missing 1: logit_scale; left over 0: none"):
        from_checkpoint({name: v for name, v in state.items() if name != "logit_scale"}, vocab_size=10)
    with pytest.raises(CornerstoneError, match=r"missing 0: none; left over 1: text\.head\.bias \(1,\)"):
        from_checkpoint(state | {"text.head.bias": torch.zeros(1)}, vocab_size=10)
    with pytest.raises(CornerstoneError, match="fewer than the tokenizer's 30522"):
        from_checkpoint(state, vocab_size=30522)


def test_ids_without_corners():
    ids = torch.tensor([[1, 10, 11, 5, 6, 2, 0, 0], [0] * 8, [1, 10, 11, 0, 6, 2, 0, 0]])
    kept, lengths = without_corners(ids, vocab_size=10, corners=2)
    assert kept.tolist() == [[1, 5, 6, 2, 0, 0], [0] * 6, [1, 0, 6, 2, 0, 0]]
    assert lengths.tolist() == [4, 0, 4]
    assert without_corners(ids[:1, [0, 3, 5]], vocab_size=10, corners=0)[1].tolist() == [3]
    for wrong in (ids[:, [0, 2, 1, 3]], ids[:, [0, 3, 4, 5]], ids[:, :2]):
        with pytest.raises(CornerstoneError, match=r"corner 1 \.\. m"):
            without_corners(wrong, vocab_size=10, corners=2)
    with pytest.raises(CornerstoneError, match="the vocabulary ends at 9"):
        without_corners(torch.tensor([[1, 10, 11, 12]]), vocab_size=10, corners=2)
