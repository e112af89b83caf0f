"""Which text stands for the raw caption (LaCLIP draws it or a rewrite)."""

from __future__ import annotations

from collections import Counter

import numpy as np
from scipy import stats

from cornerstone.data.pairs.drawing import TextDraws


def captions(*rewrites, raw=("a raw one",)):
    found = [{"source": "alt", "role": "raw", "text": text} for text in raw]
    found += [{"source": f"r{n}", "role": "rewrite", "text": text} for n, text in enumerate(rewrites)]
    return [*found, {"source": "A", "role": "long", "text": "One. Two. Three."}]


def drawn(of_row, number=4000, **draws) -> list[tuple[list[str], list[str]]]:
    rows = np.arange(number)
    return TextDraws(0, 2, **draws).of([of_row] * number, rows % 3, rows)


def test_the_raw_caption_and_its_rewrites_are_as_likely():
    texts = ["a raw one", *(f"rewrite number {n}" for n in range(4))]
    counts = Counter(raw[0] for raw, _ in drawn(captions(*texts[1:]), rewrites=True))
    assert set(counts) == set(texts)
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_rewrites_shift_no_other_draw_and_are_not_drawn_unasked():
    of_row = captions("rewrite one", raw=("a raw one", "another raw"))
    plain, rewritten = drawn(of_row), drawn(of_row, rewrites=True)
    assert [long for _, long in plain] == [long for _, long in rewritten]
    assert {raw[0] for raw, _ in plain} == {"a raw one", "another raw"}
    kept = [(one[0], other[0]) for (one, _), (other, _) in zip(plain, rewritten, strict=True)]
    assert all(one == other or other == "rewrite one" for one, other in kept)


def test_a_rewrite_of_one_word_is_replaced_by_the_raw_caption():
    assert {raw[0] for raw, _ in drawn(captions("word"), 200, rewrites=True)} == {"a raw one"}


def test_a_row_may_lack_the_raw_caption_or_both():
    assert {raw[0] for raw, _ in drawn(captions("rewrite one", raw=()), 200, rewrites=True)} == {"rewrite one"}
    assert {tuple(raw) for raw, _ in drawn(captions(raw=()), 20, rewrites=True)} == {()}
