"""T5 as a text tower: transformers' own encoder, what attends to what, what a folder loads, and how its texts end."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import T5EncoderModel

from cornerstone.data.texts import TextInput
from cornerstone.errors import CornerstoneError
from cornerstone.models import t5_text
from cornerstone.models.t5_text import T5TextTower, build_t5
from cornerstone.recipes.towers import BertText, T5Text
from cornerstone.training.shared import digest_of_text_tower

WORDS, WIDTH, PLACES = 50, 24, 40
LENGTHS = torch.tensor([40, 3, 17, 1, 29])


def config(corners: int = 2, **changes) -> T5Text:
    return T5Text(**{"width": 16, "layers": 2, "heads": 2, "token_limit": 64, "corner_tokens": corners, **changes})


def tower(corners: int = 2, seed: int = 0, **changes) -> T5TextTower:
    model = T5TextTower.build(config(corners, **changes), WORDS, WIDTH, seed).double().eval()
    with torch.no_grad():  # norms start at 1
        for parameter in model.parameters():
            draw = torch.Generator().manual_seed(parameter.numel())
            parameter += 0.1 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
    return model


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(1, WORDS, (len(LENGTHS), PLACES), generator=torch.Generator().manual_seed(1))
    return ids * (torch.arange(PLACES) < LENGTHS[:, None]), LENGTHS


def of_transformers(model: T5TextTower) -> T5EncoderModel:
    theirs = T5EncoderModel(model.t5.config).double().eval()
    weights = model.t5.state_dict()
    theirs.load_state_dict({**weights, "encoder.embed_tokens.weight": weights["shared.weight"]})
    return theirs


def test_the_text_is_that_of_transformers_where_it_does_not_attend_to_the_sentinels(monkeypatch):
    monkeypatch.setattr(t5_text, "visible", only_text)
    model, (ids, lengths) = tower(), texts()
    found = model(ids, lengths, tokens=True).tokens_BTE
    mask = torch.arange(PLACES) < lengths[:, None]
    expected = of_transformers(model)(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found[mask], expected[mask], rtol=0, atol=1e-10)


def only_text(length_B, m, tokens):
    place = torch.arange(m + tokens)
    return (place > m) & (place < m + length_B[:, None])[:, None].expand(-1, m + tokens, -1)


@pytest.mark.parametrize("corners", [0, 2])
def test_what_attends_to_what_and_where_the_bias_is_0(corners):
    """One layer, by loops over the places: sentinel, corners, text."""
    model = tower(corners, layers=1)
    ids, length = texts()[0][2:3], 17
    block = model.t5.encoder.block[0].layer[0]
    inner, names = block.SelfAttention, ["cls", *["corner"] * corners, *["text"] * length]
    x = torch.cat([model.sentinels, model.t5.shared(ids[0, :length])])
    normed = block.layer_norm(x)
    heads = [layer(normed).view(len(x), 2, -1) for layer in (inner.q, inner.k, inner.v)]
    bias = inner.compute_bias(length, length)[0]  # text alone
    out = torch.zeros_like(heads[0])
    for h in range(2):
        for q, query in enumerate(names):
            scores = torch.full((len(x),), -math.inf, dtype=torch.float64)
            for k, key in enumerate(names):
                if (key == "corner" and k != q) or (query, key) == ("corner", "cls"):
                    continue
                scores[k] = heads[0][q, h] @ heads[1][k, h]
                if query == key == "text":
                    scores[k] += bias[h, q - 1 - corners, k - 1 - corners]
            out[q, h] = scores.softmax(0) @ heads[2][:, h]
    x = model.t5.encoder.block[0].layer[1](x + inner.o(out.flatten(1)))
    read = model.t5.encoder.final_layer_norm(x)[: 1 + corners]
    expected = F.normalize(model.project(read), dim=-1)
    found = model(ids, torch.tensor([length])).all_BMD[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_corners_padding_and_other_texts_change_no_feature():
    model, (ids, lengths) = tower(), texts()
    found = model(ids, lengths)
    assert found.all_BMD.shape == (5, 3, WIDTH)
    torch.testing.assert_close(model(ids, lengths, extra=False).pooled_BD, found.pooled_BD, rtol=0, atol=1e-10)
    torch.testing.assert_close(model(ids, lengths, buckets=3).all_BMD, found.all_BMD, rtol=0, atol=1e-10)
    filled = torch.where(torch.arange(PLACES) < lengths[:, None], ids, 7)
    torch.testing.assert_close(model(filled, lengths).all_BMD, found.all_BMD, rtol=0, atol=1e-10)
    shuffled = ids.clone()
    shuffled[0, :5] = ids[0, :5].flip(0)
    assert (model(shuffled, lengths).pooled_BD[0] - found.pooled_BD[0]).abs().max() > 1e-5, "order matters"


def test_registers_and_no_mask():
    (ids, lengths), plain = texts(), tower(2, corner_mask=False)
    registers = tower(2, corner_mask=False, registers=True)
    one, other = plain(ids, lengths), registers(ids, lengths)
    torch.testing.assert_close(one.pooled_BD, other.pooled_BD, rtol=0, atol=0)
    assert other.extra_BmD is None
    assert (one.pooled_BD - tower()(ids, lengths).pooled_BD).abs().max() > 1e-6


def test_the_number_of_corners_shifts_no_other_initial_value():
    before = torch.random.get_rng_state()
    states = [T5TextTower.build(config(m), WORDS, WIDTH, 3).state_dict() for m in (0, 2)]
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name][:1] if name == "sentinels" else states[1][name]), name


def test_a_folder_is_loaded_with_its_sentinels(tmp_path):
    """Its embeddings may have more rows than the tokenizer has ids, as T5's do."""
    made = build_t5(config(), WORDS + 6, seed=5)
    made.save_pretrained(tmp_path)
    named = config(name=str(tmp_path))
    model = T5TextTower.build(named, WORDS, WIDTH, 0)
    torch.testing.assert_close(model.t5.shared.weight, made.shared.weight)
    torch.testing.assert_close(model.sentinels, made.shared.weight[[WORDS - 1, WORDS - 2, WORDS - 3]])
    digest = digest_of_text_tower(named, WORDS)
    build_t5(config(), WORDS + 6, seed=6).save_pretrained(tmp_path)
    assert digest_of_text_tower(named, WORDS) != digest
    with pytest.raises(CornerstoneError, match=f"knows {WORDS + 6} token ids, but the tokenizer has 99"):
        build_t5(named, 99, seed=0)
    with pytest.raises(CornerstoneError, match="is a t5, not a BERT"):
        digest_of_text_tower(BertText(name=str(tmp_path)), WORDS)
    with pytest.raises(CornerstoneError, match=r"Cannot load the text tower.*Expected a Hugging Face T5"):
        build_t5(config(name=str(tmp_path / "nothing")), WORDS, seed=0)


def tokenizer(*special: str) -> str:
    vocab = {word: n for n, word in enumerate(["<pad>", *special, "one", "two", "<unk>"])}
    made = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    return made.to_str()


def test_a_text_ends_and_does_not_begin():
    form = TextInput.of(config(token_limit=8), tokenizer("</s>")).open()
    assert form.max_tokens == 8 - 3
    assert form.encode([["one", "two two"], []]) == [[2, 4, 3, 3, 1], []]
    assert form.encode([["one two one two one"]]) == [[2, 3, 2, 3, 1]]
    assert form.empty == [1]
    with pytest.raises(CornerstoneError, match="No token begins a text of the format 'ended'"):
        print(form.first)
    with pytest.raises(CornerstoneError, match=r"no token that ends a text.*Use a T5 tokenizer"):
        TextInput.of(config(), tokenizer()).open()
