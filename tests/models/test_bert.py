from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel, T5Config

from cornerstone.errors import CornerstoneError
from cornerstone.models.bert import bert_config, bert_flops, bert_from, build_bert
from cornerstone.models.clip_text import ClipTextTransformer
from cornerstone.models.corner_text import CornerBert
from cornerstone.models.qformer import QFormer
from cornerstone.models.t5_text import T5TextTower
from cornerstone.recipes.blip2 import QFormerText
from cornerstone.recipes.towers import ClipText, CornerText, T5Text

SMALL = CornerText(name="", width=16, layers=1, heads=2, token_limit=32)


@pytest.fixture
def folder(tmp_path):
    """A saved BERT of 30 tokens and 24 positions, with dropout in its own configuration."""
    config = BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=24,
    )
    BertModel(config).save_pretrained(tmp_path)
    return str(tmp_path)


def test_a_new_tower_has_the_sizes_of_the_recipe():
    config = build_bert(SMALL, 30, seed=0).config
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (30, 16, 64)
    assert config.max_position_embeddings == 512
    assert (
        build_bert(
            CornerText(name="", width=16, layers=1, heads=2, token_limit=600), 30, 0
        ).config.max_position_embeddings
        == 600
    )


def test_a_named_tower_brings_its_weights_and_the_recipe_its_dropout(folder):
    bert = build_bert(CornerText(name=folder, token_limit=24, dropout=0.25), 30, seed=0)
    for name, value in BertModel.from_pretrained(folder).state_dict().items():
        assert torch.equal(bert.state_dict()[name], value), name
    assert bert.encoder.layer[0].attention.self.dropout.p == bert.embeddings.dropout.p == 0.25


def test_a_described_tower_has_the_same_shape():
    bert = build_bert(SMALL, 30, seed=0)
    again = bert_from(bert.config.to_dict())
    again.load_state_dict(bert.state_dict())
    assert again.config.pad_token_id is None


def test_a_tower_of_another_vocabulary_or_too_few_positions_is_refused(folder):
    with pytest.raises(CornerstoneError, match="knows 30 token ids, but the tokenizer has 31"):
        build_bert(CornerText(name=folder, token_limit=24), 31, seed=0)
    with pytest.raises(CornerstoneError, match="has 24 positions, fewer than the token limit 25"):
        build_bert(CornerText(name=folder, token_limit=25), 30, seed=0)


def test_what_is_no_bert_or_cannot_be_read_is_refused(tmp_path, monkeypatch):
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(CornerstoneError, match="is a t5, not a BERT"):
        build_bert(CornerText(name=str(tmp_path)), 30, seed=0)

    def silent(name):
        raise OSError("We couldn't connect.\nmore")

    monkeypatch.setattr(BertConfig, "get_config_dict", silent)
    with pytest.raises(CornerstoneError, match="Cannot load the text tower 'bert-base-uncased': We couldn't connect"):
        build_bert(CornerText(), 30522, seed=0)


def test_a_text_tower_comes_from_another_run(tmp_path):
    from cornerstone.inference.saved_model import save_model
    from cornerstone.models.lotlip import Lotlip
    from cornerstone.models.method import Inputs
    from cornerstone.recipes import ImageTower, LotlipConfig

    method = LotlipConfig(image=ImageTower("test_vit", pretrained=False, size=64), text=SMALL)
    model = Lotlip.build(method, Inputs(30, 64), seed=3)
    save_model(str(tmp_path / "model"), model, recipe={}, tokenizer_json="{}")
    bert = build_bert(replace(SMALL, name=str(tmp_path / "model"), dropout=0.25), 30, seed=0)
    for name, value in model.text.bert.state_dict().items():
        assert torch.equal(bert.state_dict()[name], value), name
    assert bert.config.hidden_dropout_prob == 0.25
    with pytest.raises(CornerstoneError, match="knows 30 token ids, but the tokenizer has 31"):
        build_bert(replace(SMALL, name=str(tmp_path / "model")), 31, seed=0)


@pytest.mark.parametrize(("corners", "masked"), [(0, True), (2, True), (2, False)])
@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
def test_the_formula_counts_the_operations_that_torch_counts(corners, masked, extra, layers):
    config = CornerText("", width=16, layers=layers, heads=2, token_limit=32, corner_tokens=corners, corner_mask=masked)
    tower = CornerBert.build(config, 30, width=12, seed=0).eval()
    tokens = 20
    ids, length = torch.ones(1, tokens, dtype=torch.int64), torch.tensor([tokens])
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        tower(ids, length, extra=extra)
    computed = corners if extra or not masked else 0
    found = bert_flops(bert_config(config), tokens, 12, computed, masked=masked, extra=extra)
    assert found == counter.get_total_flops()
    if not extra:
        assert CornerBert.flops(config, tokens + corners, 12) == found


def test_the_architecture_of_a_named_tower_is_read_without_its_weights(folder, tmp_path):
    (tmp_path / "model.safetensors").unlink()
    config = CornerText(name=folder, token_limit=24)
    assert bert_config(config).intermediate_size == 8
    assert CornerBert.most_tokens(config) == 24
    assert CornerBert.flops(config, 24, 12) == bert_flops(bert_config(config), 22, 12, extra=False)
    assert CornerBert.most_tokens(SMALL) == 512
    assert ClipTextTransformer.most_tokens(ClipText(token_limit=40)) == 40
    assert T5TextTower.most_tokens(T5Text()) is None
    assert QFormer.most_tokens(QFormerText(name=folder, token_limit=24)) == 24
