"""LLaVA-1.5's model: the loss is the answers' alone, patches stand where <image> was, answers are greedy."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
)
from transformers import OPTForCausalLM as Opt

from cornerstone.data.conversations.batch import ConversationBatch
from cornerstone.errors import CornerstoneError
from cornerstone.models.dialogue_transfer import DialogueTransfer
from cornerstone.models.language_model import LanguageModel, without_dropout
from cornerstone.models.method import Inputs
from cornerstone.recipes.dialogue_transfer import DialogueTransferConfig
from cornerstone.transfer.towers import open_tower

SMALL = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
ENDS = {"bos_token_id": 2, "eos_token_id": 3}


def opt():
    sizes = {"word_embed_proj_dim": 32, "ffn_dim": 64, "max_position_embeddings": 64, "pad_token_id": None}
    return Opt(OPTConfig(**SMALL, **sizes, **ENDS, init_std=0.5))


def llama():
    return LlamaForCausalLM(
        LlamaConfig(**SMALL, intermediate_size=64, max_position_embeddings=64, initializer_range=0.5, **ENDS)
    )


def gpt2():
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.5, **ENDS)
    )


@pytest.fixture(params=[opt, llama, gpt2])
def language(request):
    torch.manual_seed(0)
    return LanguageModel(request.param()).eval()


def built(tiny_tower, language, **changes):
    tower = open_tower(tiny_tower)
    inputs = Inputs(40, tower.width, tower, language_model=language)
    return DialogueTransfer.build(DialogueTransferConfig(**changes), inputs, 0).eval()


def batch(rows, places, valid=None, seed=0, pad=0):
    """Rows of (ids, learnt places)."""
    width = max(len(ids) for ids, _ in rows) + pad
    ids, target = torch.zeros(len(rows), width, dtype=torch.int64), torch.zeros(len(rows), width, dtype=torch.bool)
    for row, (listed, learnt) in enumerate(rows):
        ids[row, : len(listed)] = torch.tensor(listed)
        target[row, list(learnt)] = True
    lengths = torch.tensor([len(listed) for listed, _ in rows])
    valid = torch.ones(len(rows), dtype=torch.bool) if valid is None else torch.tensor(valid)
    image = torch.rand(len(rows), 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    number = torch.arange(len(rows))
    return ConversationBatch(0, number, valid, (), ids, lengths, target, torch.tensor(places), image)


ROWS = [([2, 11, 12, 13, 3], (3, 4)), ([2, 14, 15, 3], (2, 3)), ([2, 16, 17, 18, 19, 20, 3], (4, 5, 6))]
PLACES = [1, -1, 3]


def by_hand(model, one):
    """Of each learnt token the loss, from the logits of what stands before it, read alone."""
    language, losses = model.language, []
    tokens = model.projector(model.patches(one.image))
    for row, (listed, learnt) in enumerate(ROWS):
        x, place = language.embed(torch.tensor(listed)), PLACES[row]
        for target in learnt:
            parts = [x[:target]] if place < 0 else [x[:place], tokens[row], x[place:target]]
            logits = language.model(inputs_embeds=torch.cat(parts)[None]).logits[0, -1]
            losses.append((row, functional.cross_entropy(logits[None], torch.tensor([listed[target]]))))
    return losses


def test_the_loss_is_the_mean_over_the_learnt_tokens(tiny_tower, language):
    model = built(tiny_tower, language)
    one = batch(ROWS, PLACES)
    losses = by_hand(model, one)
    found = model.losses(model(one), one)
    torch.testing.assert_close(found.parts["generation"], torch.stack([x for _, x in losses]).mean())
    padded = batch(ROWS, PLACES, pad=5)
    torch.testing.assert_close(model.losses(model(padded), padded).parts, found.parts)
    alone = batch(ROWS, PLACES, valid=[True, False, True])
    without = torch.stack([x for row, x in losses if row != 1]).mean()
    torch.testing.assert_close(model.losses(model(alone), alone).parts["generation"], without)


def test_a_first_token_behind_the_image_is_learnt(tiny_tower):
    """Language models without a token that begins a text: the caption's first token follows the patches."""
    torch.manual_seed(0)
    model = built(tiny_tower, LanguageModel(llama()))
    one = batch([([11, 12], (0, 1))], [0])
    logits = model.language.model(
        inputs_embeds=torch.cat([model.projector(model.patches(one.image))[0], model.language.embed(one.ids[0])])[None]
    ).logits[0]
    patches = len(logits) - 2
    expected = functional.cross_entropy(logits[patches - 1 : patches + 1], one.ids[0])
    torch.testing.assert_close(model.losses(model(one), one).parts["generation"], expected)


def test_an_image_matters_to_the_answers_behind_it_alone(tiny_tower, language):
    model = built(tiny_tower, language)
    first, second = (model(batch(ROWS, PLACES, seed=seed)).token_loss_B1 for seed in (0, 1))
    assert (first != second).flatten().tolist() == [True, False, True]


def test_answers_together_are_the_greedy_ones_of_each_alone(tiny_tower, language):
    model = built(tiny_tower, language)
    one = batch(ROWS, PLACES)
    found = model.generate(one.image, one.ids, one.length, one.image_place, last=3, longest=6)
    tokens = model.projector(model.patches(one.image))
    for row, (listed, _) in enumerate(ROWS):
        written = list(listed)
        for _ in range(6):
            x, place = language.embed(torch.tensor(written)), PLACES[row]
            parts = [x] if place < 0 else [x[:place], tokens[row], x[place:]]
            written.append(int(language.model(inputs_embeds=torch.cat(parts)[None]).logits[0, -1].argmax()))
        expected = written[len(listed) :]
        assert found[row] == expected[: [*expected, 3].index(3)]


@pytest.mark.parametrize("frozen", [True, False])
def test_the_projector_learns_first_then_the_rest(tiny_tower, frozen):
    model = built(tiny_tower, LanguageModel(opt()), frozen=frozen).train()
    one = batch(ROWS, PLACES)

    def learnt():
        model.zero_grad()
        model.losses(model(one), one).parts["generation"].backward()
        held = {"projector": model.projector, "language": model.language, "tower": model.image_tower}
        return {name for name, part in held.items() if any(p.grad is not None for p in part.parameters())}

    model.learn("projector")
    assert learnt() == {"projector"}
    model.learn("instructions")
    assert learnt() == {"projector", "language"} | (set() if frozen else {"tower"})
    rates = {group.lr_scale for group in model.parameter_groups() if group.parameters}
    assert rates == ({1.0} if frozen else {1.0, 0.1})


def test_a_module_is_rebuilt_from_what_it_describes(tiny_tower, language):
    model = built(tiny_tower, language)
    again = DialogueTransfer.rebuilt(model.config, model.described(), open_tower(tiny_tower)).eval()
    again.load_state_dict(model.state_dict())
    one = batch(ROWS, PLACES)
    torch.testing.assert_close(again(one), model(one))


def test_models_that_see_what_they_predict_or_change_their_logits_are_refused():
    bert = BertLMHeadModel(BertConfig(**SMALL, intermediate_size=64, is_decoder=False))
    with pytest.raises(CornerstoneError, match="sees the tokens that it has to predict"):
        LanguageModel(bert)
    from transformers import GraniteConfig, GraniteForCausalLM

    scaled = GraniteForCausalLM(GraniteConfig(**SMALL, intermediate_size=64, logits_scaling=8.0, initializer_range=1.0))
    with pytest.raises(CornerstoneError, match="changes its logits"):
        LanguageModel(scaled)


def test_no_dropout_is_left():
    config = without_dropout(GPT2Config(**ENDS))
    assert {config.attn_pdrop, config.embd_pdrop, config.resid_pdrop} == {0.0}
    assert without_dropout(OPTConfig()).dropout == 0.0
