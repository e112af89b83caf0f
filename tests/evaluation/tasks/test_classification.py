from __future__ import annotations

import pytest
import torch

from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.tasks.classification import class_features, classify


def features(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("chunk", [3, 1000])
def test_equals_the_definition(chunk):
    prompts, label = features(9, 4, 7), torch.arange(50) % 9
    image = 0.3 * features(9, 7, seed=5)[label] + prompts.mean(1)[label] + 0.5 * features(50, 7, seed=6)
    unit = prompts / prompts.norm(dim=-1, keepdim=True)
    centre = unit.mean(1) / unit.mean(1).norm(dim=-1, keepdim=True)
    order = (image @ centre.T).argsort(dim=1, descending=True)
    result = classify(image, prompts, label, chunk=chunk)
    for k in (1, 5):
        expected = (order[:, :k] == label[:, None]).any(1)
        assert result.correct[f"top{k}"].tolist() == expected.tolist()
        assert result.metrics[f"top{k}"] == pytest.approx(100 * expected.double().mean().item())
    assert 0 < result.metrics["top1"] < result.metrics["top5"]


def test_every_prompt_counts_alike_whatever_its_length():
    prompts = torch.tensor([[[100.0, 0.0], [0.0, 1.0]]])
    assert torch.allclose(class_features(prompts), torch.tensor([[0.5, 0.5]]).sqrt())


def test_classes_are_normalised_again():
    """Prompts that disagree have a short mean; without the second normalisation their class could not win."""
    agreeing = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    disagreeing = torch.tensor([[0.0, 1.0, 0.3], [0.0, -1.0, 0.3]])
    image = torch.tensor([[0.6, 0.0, 0.8]])
    assert classify(image, torch.stack([agreeing, disagreeing]), torch.tensor([1])).metrics["top1"] == 100


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan")])
def test_a_collapsed_model_is_never_right(value):
    result = classify(torch.full((12, 5), value), torch.full((6, 2, 5), value), torch.arange(12) % 6)
    assert result.metrics == {"top1": 0, "top5": 0}


def test_images_without_a_label_are_left_out_and_counted():
    result = classify(torch.eye(4), torch.eye(4)[:, None], torch.tensor([0, -1, 2, 0]))
    assert result.correct["top1"].tolist() == [True, True, False]
    assert result.counts == {"images": 3, "classes": 4, "images_without_label": 1}
    assert result.cluster["top1"].tolist() == [0, 2, 3]


@pytest.mark.parametrize(
    ("label", "message"), [([0, 1], "4 images with 2 labels"), ([-1] * 4, "0 of them set"), ([0, 1, 2, 4], "Label 4")]
)
def test_mistakes_are_named(label, message):
    with pytest.raises(CornerstoneError, match=message):
        classify(torch.eye(4), torch.eye(4)[:, None], torch.tensor(label))
