"""Which captions of a row a step sees: every draw belongs to (seed, epoch, row)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cornerstone.data import draws
from cornerstone.data.pairs.views import View
from cornerstone.data.source import Ints
from cornerstone.data.texts import clean, sub_captions

Captions = Sequence[dict[str, str]]
"""The captions of a row as its shard holds them: source, role, text."""
Sentences = list[str]
_SHUFFLE_SEED = 0


@dataclass(frozen=True)
class TextDraws:
    """How the captions of a training step are drawn."""

    seed: int
    sub_captions: int
    """Consecutive sentences of a long caption; 0 draws no long caption."""
    captioners: tuple[str, ...] = ()
    """Sources of long captions to draw from; empty for all."""
    rewrites: bool = False
    """Whether rewrites of the raw caption may stand for it."""

    def of(self, captions: Sequence[Captions], epochs: Ints, rows: Ints) -> list[tuple[Sentences, Sentences]]:
        """For each row the sentences of a drawn raw caption, and k consecutive ones of a drawn long caption (LoTLIP, 4.2)."""
        raw_u = draws.uniform(self.seed, "raw", epochs, rows)
        captioner_u = draws.uniform(self.seed, "captioner", epochs, rows)
        first_u = draws.uniform(self.seed, "first sub-caption", epochs, rows)
        rewrite_u = draws.uniform(self.seed, "rewrite", epochs, rows)
        numbers = zip(captions, *(u.tolist() for u in (raw_u, rewrite_u, captioner_u, first_u)), strict=True)
        return [(self._raw(of_row, u, v), self._long(of_row, w, x)) for of_row, u, v, w, x in numbers]

    def _raw(self, captions: Captions, raw_u: float, rewrite_u: float) -> Sentences:
        texts = [c["text"] for c in captions if c["role"] == "raw"]
        text = texts[int(raw_u * len(texts))] if texts else ""
        if self.rewrites:
            choices = [one for one in (text, *(c["text"] for c in captions if c["role"] == "rewrite")) if one]
            drawn = choices[int(rewrite_u * len(choices))] if choices else ""
            text = drawn if len(drawn.split(" ")) > 1 else text  # as LaCLIP's authors: a single word is no caption
        return sub_captions(text)

    def _long(self, captions: Captions, captioner_u: float, first_u: float) -> Sentences:
        k, wanted = self.sub_captions, self.captioners
        if k == 0:
            return []
        texts = [c["text"] for c in captions if c["role"] == "long" and (not wanted or c["source"] in wanted)]
        if not texts:
            return []
        sentences = sub_captions(texts[int(captioner_u * len(texts))])
        first = int(first_u * max(len(sentences) - k + 1, 1))
        return sentences[first : first + k]


class Viewed(NamedTuple):
    """A text of a row that an evaluation judges."""

    part: int
    """Which of the view's captions it is one of."""
    source: str
    sentences: Sentences


def viewed(captions: Captions, view: View, row: int = 0) -> list[Viewed]:
    """The texts of a row that an evaluation judges, in the order of the view. `row` decides how sentences are shuffled."""
    texts: list[Viewed] = []
    for part, wanted in enumerate(view):
        found = [(c["source"], c["text"]) for c in captions if c["role"] == wanted.role]
        for source, text in found if wanted.every else [next(iter(found), ("", ""))]:
            sentences = sub_captions(clean(text) if wanted.cleaned else text)[: wanted.sentences or None]
            if wanted.shuffled:
                order = draws.permutation(len(sentences), _SHUFFLE_SEED, "sentences", row)
                sentences = [sentences[i].removesuffix(".") for i in order.tolist()]
            texts.append(Viewed(part, source, sentences))
    return texts
