"""Retrieval against a plain loop in float64, and the traps that make a bad model look good."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.tasks.retrieval import retrieve


def features(n, width=6, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def looped(image, text, owner, keys, at):
    """(i2t, t2i) hits by definition: one query, one candidate at a time."""
    image = [v / v.norm() for v in image.double()]
    text = [v / v.norm() for v in text.double()]
    owner, keys = owner.tolist(), keys.tolist()
    has = [{keys[t] for t in range(len(text)) if owner[t] == i} for i in range(len(image))]
    i2t, t2i = [], []
    for i in range(len(image)):
        if has[i]:
            best = max(float(image[i] @ text[t]) for t in range(len(text)) if keys[t] in has[i])
            wrong = [t for t in range(len(text)) if keys[t] not in has[i] and float(image[i] @ text[t]) >= best]
            i2t.append(len(wrong) < at)
    for t in range(len(text)):
        best = max(float(image[i] @ text[t]) for i in range(len(image)) if keys[t] in has[i])
        wrong = [i for i in range(len(image)) if keys[t] not in has[i] and float(image[i] @ text[t]) >= best]
        t2i.append(len(wrong) < at)
    return i2t, t2i


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("same", [False, True])
def test_equals_the_loop(chunk, same):
    owner = torch.randint(0, 19, (60,), generator=torch.Generator().manual_seed(1))  # 0 to 7 texts an image, unsorted
    keys = torch.randint(0, 30, (60,), generator=torch.Generator().manual_seed(2)) if same else torch.arange(60)
    words = features(30 if same else 60, seed=4)
    image = features(20, seed=3) + 0.0
    text = words[keys] + (0 if same else 1.5 * image[owner])
    result = retrieve(image, text, owner, text_keys=keys if same else None, chunk=chunk)
    for k in (1, 5):
        i2t, t2i = looped(image, text, owner, keys, k)
        assert result.correct[f"i2t_r{k}"].tolist() == i2t
        assert result.correct[f"t2i_r{k}"].tolist() == t2i
        assert result.metrics[f"i2t_r{k}"] == pytest.approx(100 * sum(i2t) / len(i2t))
        assert result.metrics[f"t2i_r{k}"] == pytest.approx(100 * sum(t2i) / len(t2i))
    assert 0 < result.metrics["t2i_r1"] < 100
    assert result.counts == {
        "images": 20, "texts": 60, "pools": 1, "images_left_out": 0, "images_without_text": 20 - len(owner.unique()),
    }  # fmt: skip
    assert result.cluster["t2i_r1"].tolist() == owner.tolist()
    assert result.cluster["i2t_r5"].tolist() == sorted(set(owner.tolist()))


@pytest.mark.parametrize("n", [2, 5, 6, 9, 33, 257])  # 5 and 9: one column is left over after blocking
@pytest.mark.parametrize("value", [0.0, 0.37, float("nan")])
def test_a_collapsed_model_finds_nothing(n, value):
    same = (features(1, 96) if value else torch.zeros(1, 96)).float().expand(n, 96) * value
    metrics = retrieve(same, same.clone(), torch.arange(n)).metrics
    assert metrics["i2t_r1"] == metrics["t2i_r1"] == 0
    assert (metrics["i2t_r5"] > 0) == (n <= 5)  # with five or fewer candidates everything is among the first five


def test_a_collapsed_text_side_finds_nothing():
    metrics = retrieve(features(40), torch.ones(40, 6), torch.arange(40)).metrics
    assert metrics["i2t_r1"] == 0
    assert metrics["t2i_r1"] == pytest.approx(100 / 40)  # every text picks the same image, once rightly


def test_a_nan_feature_fails_only_its_own_queries():
    image, text = torch.eye(8), torch.eye(8)
    image[3] = torch.nan
    result = retrieve(image, text, torch.arange(8))
    assert result.correct["i2t_r1"].tolist() == [n != 3 for n in range(8)]
    assert not result.correct["t2i_r1"][3]


def test_half_precision_features_are_compared_in_fp32():
    """Similarities of stored fp16 features tie and swap where they are multiplied in fp16."""
    n = 400
    image = torch.nn.functional.normalize(1 + 0.01 * features(n, 64), dim=-1).half()
    text = torch.nn.functional.normalize(image.double() + 0.0003 * features(n, 64, seed=5), dim=-1).half()
    expected, _ = looped(image, text, torch.arange(n), torch.arange(n), 1)
    assert retrieve(image, text, torch.arange(n)).correct["i2t_r1"].tolist() == expected
    similarity = image @ text.T
    naive = (similarity >= similarity.diagonal()[:, None]).sum(1) == 1
    assert (naive != torch.tensor(expected)).float().mean() > 0.05


def test_the_norms_of_features_do_not_matter():
    image, text, owner = features(30), features(30) + 0.8 * features(30, seed=9), torch.arange(30)
    scaled = retrieve(image * torch.rand(30, 1) * 9, text * torch.rand(30, 1), owner)
    assert scaled.metrics == retrieve(image, text, owner).metrics


def test_identical_texts_are_one_text():
    """Images 0 and 1 have the same caption; image 1 is a little nearer to it."""
    image = torch.tensor([[1.0, 0.1, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    text = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    owner = torch.arange(3)
    one = retrieve(image, text, owner, text_keys=torch.tensor([5, 5, 9]))
    assert one.metrics["i2t_r1"] == one.metrics["t2i_r1"] == 100
    apart = retrieve(image, text, owner)
    assert apart.correct["i2t_r1"].tolist() == [False, False, True]  # the copy ties
    assert apart.correct["t2i_r1"].tolist() == [False, True, True]


def test_image_to_text_takes_any_of_five_and_text_to_image_asks_every_text():
    image = torch.eye(10)
    text = torch.roll(torch.eye(10), 1, 0).repeat_interleave(5, 0)  # the text of another image
    text[::5] = torch.eye(10)  # except for one text of five
    result = retrieve(image, text + 0.01, torch.arange(10).repeat_interleave(5))
    assert result.counts["texts"] == len(result.correct["t2i_r1"]) == 50
    assert result.metrics["t2i_r1"] == 20
    assert result.metrics["i2t_r1"] == 0  # four wrong texts tie with its own one
    assert result.metrics["i2t_r5"] == 100


def test_pools_are_judged_alone_and_averaged():
    image = features(25)
    text = image + 1.2 * features(25, seed=8)
    pooled = retrieve(image, text, torch.arange(25), pool=10)
    parts = [retrieve(image[s : s + 10], text[s : s + 10], torch.arange(10)) for s in (0, 10)]
    for name, value in pooled.metrics.items():
        assert value == pytest.approx(sum(part.metrics[name] for part in parts) / 2)
        assert torch.equal(pooled.correct[name], torch.cat([part.correct[name] for part in parts]))
    assert pooled.counts["pools"] == 2
    assert (pooled.counts["images"], pooled.counts["images_left_out"]) == (20, 5)
    assert pooled.cluster["i2t_r1"].tolist() == list(range(20))
    assert pooled.metrics["i2t_r1"] > retrieve(image, text, torch.arange(25)).metrics["i2t_r1"]
    alone = retrieve(image, text, torch.arange(25), pool=1000)
    assert alone.metrics == retrieve(image, text, torch.arange(25)).metrics
    assert alone.counts["images_left_out"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"owner_T": torch.arange(3)}, "4 text features with 3 owners"),
        ({"owner_T": torch.tensor([0, 1, 2, 4])}, "Owners from 0 to 4: expected 0 to 3"),
        ({"text_keys": torch.arange(2)}, "with 2 keys"),
        ({"pool": 0}, "Pools of 0"),
        ({"image_ND": torch.zeros(0, 6)}, "0 images"),
        ({"image_ND": torch.ones(4, 5)}, "widths 5 and 6"),
    ],
)
def test_mistakes_are_named(change, message):
    given = {"image_ND": torch.ones(4, 6), "text_TD": torch.ones(4, 6), "owner_T": torch.arange(4), **change}
    with pytest.raises(CornerstoneError, match=message):
        retrieve(**given)


def largest(image_NQD, text_TD):
    return torch.einsum("nqd,td->nqt", image_NQD, text_TD).amax(1)


@pytest.mark.parametrize("chunk", [3, 1000])
def test_images_may_have_several_features_and_a_similarity_of_their_own(chunk):
    text = F.normalize(features(20), dim=-1)
    image = F.normalize(text[:, None] + torch.stack([features(20, seed=seed) for seed in (1, 2, 3)], dim=1), dim=-1)
    result = retrieve(image, text, torch.arange(20), chunk=chunk, similarity=largest)
    table = largest(image, text)
    wanted = {"i2t_r1": (table >= table.diagonal()[:, None]).sum(1) == 1}
    wanted["t2i_r1"] = (table >= table.diagonal()).sum(0) == 1
    for name, expected in wanted.items():
        assert 0 < expected.sum() < 20
        assert torch.equal(result.correct[name], expected), name
