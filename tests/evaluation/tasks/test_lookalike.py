from __future__ import annotations

import pytest
import torch

from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.tasks.lookalike import choose_among_lookalikes


def features(n, seed=0):
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("chunk", [2, 1000])
def test_equals_the_loop(chunk):
    groups = ["a", "b", None, "a", "c", "b", "b", "a", "", "a", "b"]
    image = features(len(groups))
    text = image + features(len(groups), seed=1)
    result = choose_among_lookalikes(image, text, groups, chunk=chunk)
    judged = [n for n, group in enumerate(groups) if group in ("a", "b")]
    unit = image / image.norm(dim=-1, keepdim=True)
    expected = []
    for n in judged:
        rivals = [i for i in judged if groups[i] == groups[n] and i != n]
        expected.append(all(float(unit[i] @ text[n]) < float(unit[n] @ text[n]) for i in rivals))
    assert result.correct["accuracy"].tolist() == expected
    assert 0 < sum(expected) < len(expected)
    assert result.metrics["accuracy"] == pytest.approx(100 * sum(expected) / len(expected))
    assert result.chance["accuracy"] == pytest.approx(25)
    assert result.counts == {"images": 8, "groups": 2, "images_left_out": 3}
    assert result.cluster["accuracy"].tolist() == [0 if groups[n] == "a" else 1 for n in judged]


def test_only_images_of_the_same_group_are_compared():
    image = torch.eye(6)
    text = image + 2 * torch.eye(6)[[3, 4, 5, 0, 1, 2]]  # every text is nearest to an image of the other group
    assert choose_among_lookalikes(image, text, [0, 0, 0, 1, 1, 1]).metrics["accuracy"] == 100
    assert choose_among_lookalikes(image, text, [0] * 6).metrics["accuracy"] == 0


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan")])
def test_a_collapsed_model_is_never_right(value):
    same = torch.full((8, 5), value)
    assert choose_among_lookalikes(same, same, [n // 4 for n in range(8)]).metrics["accuracy"] == 0


def test_a_text_that_a_group_shares_gives_chance_accuracy():
    groups = [n // 4 for n in range(400)]
    shared = features(100, seed=2).repeat_interleave(4, 0)
    result = choose_among_lookalikes(features(400), shared, groups)
    assert (
        result.metrics["accuracy"] == result.chance["accuracy"] == 25
    )  # one image of four is nearest, for all four texts


def test_mistakes_are_named():
    with pytest.raises(CornerstoneError, match="4 images, 4 texts, 3 groups"):
        choose_among_lookalikes(torch.eye(4), torch.eye(4), [0, 0, 0])
    with pytest.raises(CornerstoneError, match="no look-alikes"):
        choose_among_lookalikes(torch.eye(4), torch.eye(4), ["a", "b", None, ""])


def test_images_may_have_several_features_and_a_similarity_of_their_own():
    def largest(image_NQD, text_TD):
        return (image_NQD @ text_TD.T).amax(1)

    groups = [0, 1, 1, 0, 0, 2, 2, 1]
    text = features(8)
    image = text[:, None] + torch.stack([features(8, seed=seed) for seed in (1, 2)], dim=1)
    result = choose_among_lookalikes(image, text, groups, similarity=largest, chunk=3)
    unit, words = (x / x.norm(dim=-1, keepdim=True) for x in (image, text))
    expected = []
    for n in range(8):
        group = [i for i in range(8) if groups[i] == groups[n]]
        expected.append(max(group, key=lambda i: float((unit[i] @ words[n]).max())) == n)
    assert result.correct["accuracy"].tolist() == expected
    assert 0 < sum(expected) < 8
