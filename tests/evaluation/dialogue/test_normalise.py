"""VQA's normalisation, on answers whose normal form follows from its published rules."""

from __future__ import annotations

import pytest

from cornerstone.evaluation.dialogue.normalise import normalised
from cornerstone.evaluation.dialogue.open_answers import soft_accuracy


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("The Dog", "dog"),
        ("a  black and an old one", "black and old 1"),
        ("ten", "10"),
        ("none", "0"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("twas", "'twas"),
        ("oclock", "o'clock"),
        ("yes.", "yes"),
        ("3.5", "3.5"),
        ("u.s.a.", "usa"),
        ("1,000", "1000"),
        ("red-blue", "red blue"),
        ("red, blue", "red blue"),
        ("what?!", "what"),
        ("line\nend", "line end"),
    ],
)
def test_normal_forms(answer, normal):
    assert normalised(answer) == normal


def test_texts_stay_as_they_are_where_all_agree():
    """The published evaluation normalises only where people disagree."""
    assert soft_accuracy("the dog", ["dog"] * 10) == 0
    assert soft_accuracy("the dog", ["dog"] * 9 + ["cat"]) == 1


@pytest.mark.parametrize(("agreeing", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_the_mean_over_nine_of_ten_people(agreeing, expected):
    answers = ["dog"] * agreeing + [f"cat {i}" for i in range(10 - agreeing)]
    assert soft_accuracy("dog", answers) == pytest.approx(expected)
