"""What released models do to a text before their vocabulary, and how they lay out its token ids. No torch.

Each family was trained on texts that were cleaned in its own way; a text cleaned otherwise costs accuracy without an error.
"""

from __future__ import annotations

import html
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ftfy

from cornerstone.data.texts import SEPARATOR, TextFormat, TextInput, sub_captions
from cornerstone.errors import CornerstoneError, did_you_mean

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ENDS = ("</s>", "<eos>")
"""What ends a text of a vocabulary that has nothing to begin one: T5's and Gemma's."""


def folded(text: str) -> str:
    """Without mistakes of encoding and HTML entities (resolved twice), white space folded."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def clip(text: str) -> str:
    """CLIP and Long-CLIP: `folded`, in lower case."""
    return folded(text).lower()


def siglip_open_clip(text: str) -> str:
    """open_clip's SigLIP and SigLIP 2: `folded`, `_` as a space, no ASCII punctuation, lower case."""
    return " ".join(folded(text).replace("_", " ").translate(_NO_PUNCTUATION).lower().split())


def siglip_transformers(text: str) -> str:
    """SigLIP's tokenizer in transformers: lower case, no ASCII punctuation (`_` among it), white space folded."""
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


def lotlip(text: str) -> str:
    """LoTLIP's authors: every ". " becomes [SEP], also one that ends the text; then `folded`."""
    return folded(text.replace(SEPARATOR, "[SEP]"))


OWN = "sentences"


def sentences(text: str) -> str:
    """This project's own BERT towers: a [SEP] between the sentences."""
    return "[SEP]".join(sub_captions(text))


CLEANING: dict[str, Callable[[str], str]] = {
    "none": str,
    "lower": str.lower,  # SigLIP 2 (big_vision)
    "whitespace": folded,
    "clip": clip,
    "canonicalize": siglip_open_clip,
    "siglip": siglip_transformers,
    "lotlip": lotlip,
    OWN: sentences,
}
"""By the names that saved models keep."""


class ReleasedFormat(TextFormat):
    """`first words last`, or `words last` of a family without a token that begins a text.

    Of a text that is too long the first tokens are kept, and the last token is the one that ends a text.
    """

    name = "released"

    def __init__(self, texts: ReleasedTexts) -> None:
        self._clean, self._begins = CLEANING[texts.cleaning], texts.begins
        self._own = texts.cleaning == OWN  # our own formats never end a text twice
        super().__init__(texts.tokenizer, texts.max_tokens)

    def _special(self) -> tuple[list[int], int]:
        if self._begins:
            return super()._special()
        last = next((number for end in _ENDS if (number := self.tokenizer.token_to_id(end)) is not None), None)
        if last is None:
            raise CornerstoneError(
                f"The tokenizer has no token that ends a text, neither {' nor '.join(_ENDS)}: give the one that was released "
                f"with the model."
            )
        return [], last

    def encode_texts(self, texts: Iterable[str]) -> list[list[int]]:
        """`encode` of whole texts: what sentences would lose (a trailing ". ") is kept."""
        return [self._cut(ids) for ids in self._framed(list(texts))]

    def encode_uncut(self, texts: Iterable[Sequence[str]]) -> list[list[int]]:
        """`encode` without the limit."""
        return self._framed([SEPARATOR.join(sentences) for sentences in texts])

    def _framed(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self._words([self._clean(text) for text in texts])
        return [[*self.opening, *words, self.last] if words else [] for words in encoded]

    def _cut(self, ids: list[int]) -> list[int]:
        if self._own:
            return super()._cut(ids)
        return ids if len(ids) <= self.max_tokens else [*ids[: self.max_tokens - 1], self.last]


@dataclass(frozen=True)
class ReleasedTexts(TextInput):
    """The texts of a released model."""

    cleaning: str = "whitespace"
    """A name in `CLEANING`."""
    begins: bool = True
    """Whether a token begins a text."""

    def __post_init__(self) -> None:
        if self.cleaning not in CLEANING:
            raise CornerstoneError(
                f"Unknown cleaning of texts {self.cleaning!r}{did_you_mean(self.cleaning, CLEANING)}"
            )

    def open(self) -> TextFormat:
        """The format, ready to encode."""
        return ReleasedFormat(self)

    def described(self) -> dict[str, Any]:
        """JSON for `rebuilt`; the tokenizer is kept apart."""
        return {"cleaning": self.cleaning, "begins": self.begins, "max_tokens": self.max_tokens}

    @classmethod
    def rebuilt(cls, described: dict[str, Any], tokenizer: str) -> ReleasedTexts:
        """What `described` describes."""
        return cls(ReleasedFormat.name, tokenizer, **described)
