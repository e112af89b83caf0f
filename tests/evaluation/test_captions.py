"""Scores of captions: published values, other implementations by hand, and the two tokenizers against each other."""

from __future__ import annotations

import json
import shutil

import pytest

from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.captions import score_captions
from cornerstone.evaluation.ptb import in_python, tokenizer, with_java

GOOD = (
    "an orange cat and a grey cat are lying together.",
    "a black dog wearing headphones looks at the camera as an orange cat walks in the background.",
)
BAD = (
    "a calico cat and a white cat are lying together.",
    "a black dog wearing a hat looks at the camera as a tabby walks in the background.",
)
"""Candidates of CLIPScore's example (Hessel et al. 2021, MIT)."""
PUBLISHED = {"good": (GOOD, 0.6667, 0.4280, 0.5637), "bad": (BAD, 0.4815, 0.3121, 0.2790)}
"""BLEU@1, ROUGE-L and CIDEr of each."""
java = pytest.mark.skipif(shutil.which("java") is None, reason="there is no Java here")
HARD = {
    "A man's dog isn't on the couch.": "a man 's dog is n't on the couch",
    'A sign reads "Stop, please!" (in red); it cannot be missed.': "a sign reads stop please -lrb- in red -rrb- "
    "it can not be missed",
    "They're at St. John's, 10:30 -- a black-and-white T-shirt.": "they 're at st. john 's 10:30 a black-and-white t-shirt",
    "Two 1/2-inch rolls cost $3.50 & 50%…": "two 1/2-inch rolls cost $ 3.50 & 50 %",
    "Mr. Smith’s “gonna” go": "mr. smith 's gon na go",
    "A U.S. flag from the 1930s, in a bird's-eye view!!": None,
    "": "",
}


@pytest.fixture(scope="module")
def example(test_data):
    path = test_data / "clipscore_example" / "captions.jsonl"
    return [json.loads(line)["captions"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("tokenize", [pytest.param(with_java, marks=java), in_python])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_scores_come_out(example, name, tokenize):
    candidates, bleu, rouge, cider = PUBLISHED[name]
    scores = score_captions(dict(zip("ab", candidates, strict=True)), dict(zip("ab", example, strict=True)), tokenize)
    found = (scores.bleu[0], scores.rouge_l, scores.cider)
    assert found == pytest.approx((100 * bleu, 100 * rouge, 100 * cider), abs=0.005)
    assert scores.cider_N.mean() == pytest.approx(scores.cider)
    assert "not with published values" in scores.notes[0]


def test_bleu_adds_up_over_the_set():
    """By hand: 5 of 6 unigrams, 3 of 4 bigrams, lengths 6 and 6; the mean of the images' BLEU@2 would be another number."""
    scores = score_captions(
        {"a": "a red bus here", "b": "one dog"}, {"a": ["a red bus"], "b": ["one dog there"]}, in_python
    )
    assert scores.bleu[0] == pytest.approx(100 * 5 / 6, abs=1e-4)
    assert scores.bleu[1] == pytest.approx(100 * (5 / 6 * 3 / 4) ** 0.5, abs=1e-4)
    assert scores.metrics["bleu2"] == scores.bleu[1]


def test_an_empty_caption_scores_nothing_and_a_reference_scores_all():
    scores = score_captions(
        {"a": "", "b": "two black cats on a sofa"},
        {"a": ["a green car in the rain"], "b": ["two black cats on a sofa"]},
        in_python,
    )
    assert scores.cider_N == pytest.approx([0, 1000])
    assert scores.rouge_l_N == pytest.approx([0, 100])


def test_images_without_candidate_or_reference_are_refused():
    with pytest.raises(CornerstoneError, match="1 images have a candidate but no reference caption, 'b'"):
        score_captions({"a": "x", "b": "y"}, {"a": ["x"], "b": []})
    with pytest.raises(CornerstoneError, match="1 of 2 images with references have no candidate, 'b'"):
        score_captions({"a": "x"}, {"a": ["x"], "b": ["y"]})
    with pytest.raises(CornerstoneError, match="No candidate captions"):
        score_captions({}, {})


def test_the_rules_in_python_split_as_the_treebank():
    expected = {text: tokens for text, tokens in HARD.items() if tokens is not None}
    assert dict(zip(expected, in_python(list(expected)), strict=True)) == expected


@java
def test_both_tokenizers_agree(test_data):
    assert in_python(list(HARD)) == with_java(list(HARD))
    lines = (test_data / "coco" / "captions.jsonl").read_text().splitlines()
    texts = [caption for line in lines for caption in json.loads(line)["captions"]]
    assert len(texts) > 500
    assert in_python(texts) == with_java(texts)


def test_without_java_the_rules_are_used_and_it_is_said(monkeypatch):
    said = []
    monkeypatch.setattr("cornerstone.evaluation.ptb.shutil.which", lambda name: None)
    assert tokenizer(said.append) is in_python
    assert "There is no Java" in said[0]
