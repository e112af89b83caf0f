"""FILIP: what is compared with what, in training and in the tasks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny_pairs as tiny
import torch

from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.tasks.classification import classify
from cornerstone.evaluation.tasks.lookalike import choose_among_lookalikes
from cornerstone.evaluation.tasks.retrieval import retrieve
from cornerstone.models.filip import Filip
from cornerstone.models.method import Inputs
from cornerstone.recipes import ImageTower, PairData, Recipe
from cornerstone.recipes.filip import FilipConfig


def encoded(rows=8) -> tuple[Filip, torch.Tensor, torch.Tensor, list[int]]:
    model, given = tiny.method(kind="filip"), tiny.some(rows)
    lengths = given.long_length
    with torch.no_grad():
        return (
            model,
            model.encode_image(given.image),
            model.encode_text(given.long_ids, lengths),
            lengths.clamp(max=tiny.LIMIT).tolist(),
        )


def by_loops(image, text, lengths):
    """Both directions as the paper has them."""
    found = [torch.empty(len(image), len(text)) for _ in range(2)]
    for i, patches in enumerate(image):
        for j, (tokens, length) in enumerate(zip(text, lengths, strict=True)):
            cosine = patches @ tokens[:length].T
            found[0][i, j], found[1][i, j] = cosine.amax(1).mean(), cosine.amax(0).mean()
    return found


def test_an_image_is_its_patches_and_a_text_its_tokens():
    model, image, text, lengths = encoded()
    assert image.shape == (8, 4, 10)  # 16 pixels in patches of 8, no class token
    assert text.shape == (8, tiny.LIMIT, 10)
    for tokens, length in zip(text, lengths, strict=True):
        torch.testing.assert_close(tokens[:length].norm(dim=-1), torch.ones(length))
        assert not tokens[length:].any()
    expected = by_loops(image, text, lengths)
    torch.testing.assert_close(model.similarity(image, text), expected[0])
    torch.testing.assert_close(model.text_similarity(image, text), expected[1])
    assert (expected[0] - expected[1]).abs().max() > 0.01


def test_the_tasks_compare_by_the_late_interaction():
    model, image, text, lengths = encoded()
    by_image, by_text = by_loops(image, text, lengths)
    own = torch.arange(8)
    found = retrieve(image, text, own, chunk=3, similarity=model.similarity, text_similarity=model.text_similarity)
    for name, table in (("i2t_r1", by_image), ("t2i_r1", by_text.T)):
        expected = (table >= table.diagonal()[:, None]).sum(1) == 1
        assert torch.equal(found.correct[name], expected), name
    groups = [0, 0, 0, 1, 1, 1, 1, 1]
    near = choose_among_lookalikes(image, text, groups, similarity=model.text_similarity)
    for place in range(8):
        group = [i for i in range(8) if groups[i] == groups[place]]
        assert near.correct["accuracy"][place] == (max(group, key=lambda i: by_text[i, place]) == place)


def test_prompts_are_combined_by_the_mean_of_their_similarities():
    model, image, text, lengths = encoded()
    label = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    found = classify(image, text.view(4, 2, *text.shape[1:]), label, similarity=model.similarity)
    table = by_loops(image, text, lengths)[0].view(8, 4, 2).mean(-1)
    assert torch.equal(found.correct["top1"], table.argmax(1) == label)


def test_the_pooled_head_is_left_alone():
    model = tiny.method(kind="filip")
    idle = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert idle == ["text.bert.pooler.dense.weight", "text.bert.pooler.dense.bias", "text.project.weight"]


def test_length_buckets_change_no_number():
    given = tiny.double(tiny.some(12))
    plain, bucketed = (tiny.method(kind="filip", buckets=n).double()(given) for n in (1, 3))
    for one, other in zip(plain, bucketed, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


WRONG = {
    r"FILIP pools the patches itself.*pooling none": lambda: FilipConfig(image=ImageTower()),
    r"Width 0: expected 1 or more": lambda: FilipConfig(embedding=0),
    r"0 sub-captions leave no long caption": lambda: Recipe("x", tiny.filip(captions="long"), PairData(sub_captions=0)),
    r"trains its own pooling on the patches": lambda: Recipe(
        "x",
        replace(tiny.filip(), image=replace(tiny.TOWER, locked=True)),
        PairData(features="stored", crop_scale=(1.0, 1.0)),
    ),
    r"needs an image tower": lambda: Filip.build(
        replace(tiny.filip(), image=replace(tiny.TOWER, locked=True)), Inputs(9, 24), 0
    ),
    r"Pooled features were given": lambda: tiny.method(kind="filip").encode_image(torch.zeros(2, 24)),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_wrong_is_refused(message):
    with pytest.raises(CornerstoneError, match=message):
        WRONG[message]()
