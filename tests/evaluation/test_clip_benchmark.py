"""Recall and accuracy are those of clip-benchmark, from the same features, on random ones without ties."""

from __future__ import annotations

import pytest
import torch

from cornerstone.evaluation.tasks.classification import classify
from cornerstone.evaluation.tasks.retrieval import retrieve

IMAGES, TEXTS_OF_EACH, WIDTH, CLASSES, TEMPLATES = 60, 5, 16, 12, ["a photo of {c}", "the {c}", "{c}"]


class Fixed:
    """Images are their own features; a text is the place of its feature."""

    def __init__(self, texts):
        self.texts = texts

    def encode_image(self, images):
        return images

    def encode_text(self, places):
        return self.texts[places]


def features(*sizes):
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(len(sizes) + sizes[0]))


def test_retrieval_with_several_texts_of_an_image():
    theirs = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval", reason="clip-benchmark is not installed")
    owner = torch.arange(IMAGES).repeat_interleave(TEXTS_OF_EACH)
    images = features(IMAGES, WIDTH)
    texts = images[owner] + 1.5 * features(len(owner), WIDTH)
    names = [str(i) for i in range(len(texts))]
    parted = [names[i : i + TEXTS_OF_EACH] for i in range(0, len(names), TEXTS_OF_EACH)]
    loader = [(images[i : i + 20], parted[i : i + 20]) for i in range(0, IMAGES, 20)]

    def tokenizer(names):
        return torch.tensor([int(name) for name in names])

    expected = theirs.evaluate(Fixed(texts), loader, tokenizer, "cpu", amp=False, recall_k_list=[1, 5])
    found = retrieve(images, texts, owner).metrics
    for ours, name in (("i2t", "text_retrieval"), ("t2i", "image_retrieval")):
        for k in (1, 5):
            assert found[f"{ours}_r{k}"] == pytest.approx(100 * expected[f"{name}_recall@{k}"], abs=1e-4)
            assert 5 < found[f"{ours}_r{k}"] < 100


def test_classification_with_averaged_prompts():
    theirs = pytest.importorskip(
        "clip_benchmark.metrics.zeroshot_classification", reason="clip-benchmark is not installed"
    )
    centre = features(CLASSES, WIDTH)
    labels = torch.arange(CLASSES * 10) % CLASSES
    images = centre[labels] + 1.2 * features(len(labels), WIDTH)
    prompts = 3 * features(CLASSES, len(TEMPLATES), WIDTH) * torch.tensor([0.1, 0.3, 0.9])[:, None] + centre[:, None]
    names = [f"class {c}" for c in range(CLASSES)]
    texts = [template.format(c=name) for name in names for template in TEMPLATES]

    def tokenizer(given):
        return torch.tensor([texts.index(text) for text in given])

    model = Fixed(prompts.flatten(0, 1))
    classifier = theirs.zero_shot_classifier(model, tokenizer, names, TEMPLATES, "cpu", amp=False)
    logits, target = theirs.run_classification(model, classifier, [(images, labels)], "cpu", amp=False)
    # Its `accuracy` converts an array of one number, which NumPy 2.4 refuses: the same by hand from its logits.
    expected = [(logits.topk(k).indices == target[:, None]).any(1).float().mean().item() for k in (1, 5)]
    found = classify(images, prompts, labels).metrics
    assert [found["top1"], found["top5"]] == pytest.approx([100 * value for value in expected], abs=1e-4)
    assert 10 < found["top1"] < 95
