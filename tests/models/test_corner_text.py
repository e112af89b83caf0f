"""The text tower against Hugging Face's own BERT under a mask written from the paper's table, in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from cornerstone.errors import CornerstoneError
from cornerstone.models.bert import build_bert
from cornerstone.models.corner_text import CornerBert, _run, visible
from cornerstone.recipes import preset
from cornerstone.recipes.towers import CornerText

VOCABULARY, TOKENS, WIDTH = 40, 11, 12
LENGTHS = [7, 11, 3, 1, 9]


class Flat(CornerBert):
    """The tower, with its pooled and extra features as one tensor (B, 1 + m, D)."""

    def forward(self, ids, length, *, corners=True, **options):
        return super().forward(ids, length, extra=corners, **options).all_BMD


def tower(corners: int, masked: bool = True, layers: int = 2, seed: int = 0, dropout: float = 0.0) -> CornerBert:
    config = CornerText(
        name="", width=16, layers=layers, heads=2, corner_tokens=corners, token_limit=64, dropout=dropout
    )
    bert = build_bert(config, VOCABULARY, seed)
    model = Flat(bert, corners=corners, masked=masked, width=WIDTH, seed=seed).double().eval()
    with torch.no_grad():  # biases start at 0 and norms at 1: moved, so that a wrong use of them shows
        generator = torch.Generator().manual_seed(5)
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def texts(tokens: int = TOKENS):
    ids = torch.randint(1, VOCABULARY, (len(LENGTHS), tokens), generator=torch.Generator().manual_seed(1))
    length = torch.tensor(LENGTHS)
    return ids * (torch.arange(tokens) < length[:, None]), length


def loss_of(features: torch.Tensor) -> torch.Tensor:
    """A scalar to which every feature of every text matters differently."""
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return (features * weights).sum()


def gradients(model: CornerBert, features: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss_of(features).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(model: CornerBert, ours: torch.Tensor, theirs: torch.Tensor, but: tuple[str, ...] = ()) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    first, second = gradients(model, ours), gradients(model, theirs)
    assert first.keys() | set(but) == second.keys() | set(but) == dict(model.named_parameters()).keys() | set(but)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


KINDS = ("CLS", "corner", "text", "PAD")
ATTENDS_TO = {  # query → what it attends to, from the paper's A(q, k); a corner's entry for corners is itself alone
    "CLS": {"CLS", "text"},
    "corner": {"itself", "text"},
    "text": {"CLS", "text"},
}


def table(kinds: list[str]) -> torch.Tensor:
    """The mask in the order of `kinds`, entry by entry; padding reads as text does."""
    rows = []
    for q, query in enumerate(kinds):
        reads = ATTENDS_TO["text" if query == "PAD" else query]
        rows.append(
            [key in reads if key != "corner" else (q == k and "itself" in reads) for k, key in enumerate(kinds)]
        )
    return torch.tensor(rows)


def kinds_of(length: int, corners: int, tokens: int, natural: bool = True) -> list[str]:
    text = ["text"] * (length - 1) + ["PAD"] * (tokens - length)
    return ["CLS", *["corner"] * corners, *text] if natural else [*["corner"] * corners, "CLS", *text]


def hugging_face(model: CornerBert, ids: torch.Tensor, length: torch.Tensor, masked: bool) -> torch.Tensor:
    """Features by `BertModel.forward` itself: corners in their natural places, and a mask for every pair of places."""
    m, tokens = model.count, ids.shape[1]
    words = model.bert.embeddings.word_embeddings(ids)
    corners = [model.corners.expand(len(ids), -1, -1)] if m else []
    embedded = torch.cat([words[:, :1], *corners, words[:, 1:]], dim=1)
    kinds = [kinds_of(n, m, tokens) for n in length.tolist()]
    real = torch.tensor([[kind != "PAD" for kind in row] for row in kinds])
    mask = torch.stack([table(row) for row in kinds])[:, None] if masked else real
    hidden = model.bert(inputs_embeds=embedded, attention_mask=mask).last_hidden_state[:, : 1 + m]
    return F.normalize(model.project(torch.tanh(model.bert.pooler.dense(hidden))), dim=-1)


@pytest.mark.parametrize("corners", [1, 2, 3])
def test_the_dense_mask_is_the_papers_table(corners):
    tokens, lengths = 5, [5, 3, 1]
    mask = visible(torch.tensor(lengths), corners, tokens)
    for i, length in enumerate(lengths):
        kinds = kinds_of(length, corners, tokens, natural=False)
        expected = table(kinds)
        for q, query in enumerate(kinds):
            for k, key in enumerate(kinds):
                assert mask[i, q, k] == expected[q, k] or query == "PAD", f"{query} {q} → {key} {k}"


@pytest.mark.parametrize("form", ["split", "dense", "no mask"])
def test_what_attends_to_what_in_one_layer(form):
    """A place reads another exactly where moving the other moves its output (its own it reads as residual anyway)."""
    corners, tokens, lengths = 2, 6, torch.tensor([6, 4])
    model = tower(corners, masked=form != "no mask", layers=1)
    x = torch.randn(2, corners + tokens, 16, dtype=torch.float64, requires_grad=True)
    views = model._calls(lengths, corners, tokens, "dense" if form == "dense" else "split")
    assert len(views) == (2 if form == "split" else 1)
    out = _run(model.bert.encoder.layer[0], x, views, corners + tokens)
    for i, length in enumerate(lengths.tolist()):
        kinds = kinds_of(length, corners, tokens, natural=False)
        for q, query in enumerate(kinds):
            if query == "PAD":
                continue
            moved = torch.autograd.grad(out[i, q].square().sum(), x, retain_graph=True)[0][i].abs().amax(-1) > 1e-9
            for k, key in enumerate(kinds):
                sees = table(kinds)[q, k] if form != "no mask" else key != "PAD"
                assert moved[k] == (bool(sees) or q == k), f"{query} {q} → {key} {k}"


@pytest.mark.parametrize("corners", [0, 1, 2, 4])
@pytest.mark.parametrize("form", ["split", "dense"])
def test_values_and_gradients_are_those_of_a_masked_bert(corners, form):
    model = tower(corners)
    ids, length = texts()
    ours = model(ids, length, form=form)
    assert ours.shape == (len(LENGTHS), 1 + corners, WIDTH)
    assert_same(model, ours, hugging_face(model, ids, length, masked=True))


@pytest.mark.parametrize("corners", [1, 3])
def test_split_and_dense_agree_in_three_layers(corners):
    model = tower(corners, layers=3)
    ids, length = texts()
    assert_same(model, model(ids, length, form="split"), model(ids, length, form="dense"))


@pytest.mark.parametrize("corners", [1, 2])
def test_without_the_mask_corners_are_ordinary_tokens(corners):
    model = tower(corners, masked=False)
    ids, length = texts()
    assert_same(model, model(ids, length), hugging_face(model, ids, length, masked=False))
    everything, first = model(ids, length), model(ids, length, corners=False)
    torch.testing.assert_close(first, everything[:, :1], rtol=0, atol=1e-12)


def test_without_corners_it_is_plain_bert():
    model = tower(0)
    ids, length = texts()
    mask = torch.arange(TOKENS) < length[:, None]
    pooled = model.bert(input_ids=ids, attention_mask=mask).pooler_output
    assert_same(model, model(ids, length)[:, 0], F.normalize(model.project(pooled), dim=-1))


def test_cls_needs_no_corners_but_their_places():
    model, plain = tower(2), tower(0)
    ids, length = texts()
    alone = model(ids, length, corners=False)
    assert_same(model, alone, model(ids, length)[:, :1] + 0 * model.corners.sum(), but=("corners",))
    assert not torch.allclose(alone, plain(ids, length)), "text is shifted by the corners' places"
    with torch.no_grad():
        positions, shifted = (m.bert.embeddings.position_embeddings.weight for m in (plain, model))
        plain.load_state_dict({k: v for k, v in model.state_dict().items() if k != "corners"})
        positions[1:-2] = shifted[3:].clone()
    torch.testing.assert_close(plain(ids, length), alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("masked", [True, False])
def test_padding_changes_nothing(masked):
    model = tower(2, masked)
    ids, length = texts()
    features = model(ids, length)
    wide = torch.randint(1, VOCABULARY, (len(LENGTHS), 30))
    wide = torch.where(torch.arange(30) < length[:, None], F.pad(ids, (0, 19)), wide)
    torch.testing.assert_close(model(wide, length), features, rtol=0, atol=1e-12)
    for i, n in enumerate(LENGTHS):
        torch.testing.assert_close(model(ids[i : i + 1, :n], length[i : i + 1])[0], features[i], rtol=0, atol=1e-12)


@pytest.mark.parametrize("buckets", [2, 3, 5, 9])
def test_buckets_keep_order_values_and_gradients(buckets):
    model = tower(2)
    ids, length = texts()
    assert_same(model, model(ids, length, buckets=buckets), model(ids, length))


def test_all_workers_call_equally_often():
    model, calls = tower(2), []
    model.bert.encoder.layer[0].intermediate.dense.register_forward_hook(lambda *_: calls.append(1))
    for lengths in ([1, 1, 1, 1, 1], [11, 2, 2, 2, 2], [0, 0, 11, 11, 11]):
        model(texts()[0], torch.tensor(lengths), buckets=3)
    assert len(calls) == 9


def test_an_absent_text_gives_finite_numbers():
    model = tower(2)
    features = model(torch.zeros(3, 4, dtype=torch.long), torch.tensor([0, 0, 0]))
    assert features.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients(model, features).values())


def test_every_parameter_gets_a_gradient():
    model = tower(2)
    assert gradients(model, model(*texts())).keys() == dict(model.named_parameters()).keys()


def test_the_number_of_corners_shifts_no_other_initial_value():
    before = torch.random.get_rng_state()
    config = CornerText(name="", width=16, layers=1, heads=2, token_limit=32)
    states = [
        CornerBert(build_bert(config, VOCABULARY, seed=7), corners=m, masked=True, width=WIDTH, seed=7).state_dict()
        for m in (0, 1, 3)
    ]
    assert torch.equal(torch.random.get_rng_state(), before), "torch's own generator is left alone"
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
        assert torch.equal(value, states[2][name]), name
    assert torch.equal(states[1]["corners"], states[2]["corners"][:1])
    assert 0.01 < states[2]["corners"].std() < 0.03
    assert not torch.equal(states[2]["corners"][0], states[2]["corners"][1])
    other = CornerBert(build_bert(config, VOCABULARY, seed=8), corners=1, masked=True, width=WIDTH, seed=8).state_dict()
    for name in ("corners", "project.weight", "bert.embeddings.word_embeddings.weight"):
        assert not torch.equal(other[name], states[1][name])


def test_texts_up_to_the_last_position_fit_and_longer_ones_are_refused():
    model = tower(2, layers=1)
    positions = model.bert.config.max_position_embeddings
    ids = torch.ones(1, positions, dtype=torch.long)
    full = model(ids, torch.tensor([positions - 2]), corners=False)  # its padding would lie beyond the last position
    torch.testing.assert_close(
        full, model(ids[:, :-2], torch.tensor([positions - 2]), corners=False), rtol=0, atol=1e-12
    )
    with pytest.raises(CornerstoneError, match=f"does not fit the text tower's {positions} positions"):
        model(ids, torch.tensor([positions - 1]), corners=False)


@pytest.mark.parametrize("where", ["attention.self.dropout", "attention.output.dropout", "embeddings.dropout"])
def test_dropout_acts_in_training_alone(where):
    model = tower(1, dropout=0.3)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout) and not name.endswith(where):
            module.p = 0.0
    ids, length = texts()
    torch.testing.assert_close(model(ids, length), model(ids, length), rtol=0, atol=0)
    model.train()
    assert not torch.allclose(model(ids, length), model(ids, length))


@pytest.mark.parametrize("corners", [0, 2])
@pytest.mark.parametrize("buckets", [1, 2])
def test_tokens_are_the_last_hidden_state_and_change_no_feature(corners, buckets):
    model, (ids, length) = tower(corners), texts()
    found = CornerBert.forward(model, ids, length, tokens=True, buckets=buckets)
    torch.testing.assert_close(found.all_BMD, model(ids, length), rtol=0, atol=1e-12)
    assert found.tokens_BTE.shape[:2] == ids.shape
    place = torch.arange(ids.shape[1])
    if corners == 0:
        mask = place < length[:, None]
        expected = model.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(found.tokens_BTE[:, : ids.shape[1]][mask], expected[mask], rtol=0, atol=1e-10)
    pooled = F.normalize(model.project(torch.tanh(model.bert.pooler.dense(found.tokens_BTE[:, 0]))), dim=-1)
    torch.testing.assert_close(pooled, found.pooled_BD, rtol=0, atol=1e-12)


def test_a_plain_tower_has_no_extra_feature():
    model, (ids, length) = tower(0), texts()
    assert CornerBert.forward(model, ids, length).extra_BmD is None
    assert model.reserved_tokens == 0
    assert tower(3).reserved_tokens == 3


def test_register_tokens_are_ordinary_tokens_whose_outputs_are_thrown_away():
    """The features of the corners without the mask, but for those of the corners, which are not read."""
    model, (ids, length) = tower(2, masked=False), texts()
    with_corners = CornerBert.forward(model, ids, length)
    model.registers = True
    found = CornerBert.forward(model, ids, length)
    assert found.extra_BmD is None
    assert (model.reserved_tokens, model.extra_features) == (2, 0)
    torch.testing.assert_close(found.pooled_BD, with_corners.pooled_BD, rtol=0, atol=0)
    loss_of(found.pooled_BD).backward()
    assert model.corners.grad.abs().max() > 1e-6, "what attends to them teaches them"


def test_registers_are_an_option_of_the_tower_and_have_no_mask():
    text = CornerText(name="", width=16, layers=1, heads=2, corner_mask=False, registers=True)
    model = CornerBert.build(text, VOCABULARY, WIDTH, 0)
    assert (model.registers, model.masked, model.count) == (True, False, 2)
    assert (text.reserved_tokens, text.extra_features) == (2, 0)
    with pytest.raises(
        CornerstoneError, match=r"Register tokens are ordinary tokens.*--recipe.method.text.no-corner-mask"
    ):
        CornerText(registers=True)
    recipe = preset("scenes").with_text(corner_mask=False, registers=True)
    assert recipe.method.chance_loss(8) == pytest.approx(2 * math.log(8)), "a raw term and a long one"
