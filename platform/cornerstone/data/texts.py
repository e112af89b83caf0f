"""Texts: sentences, cleaning, and the formats by which sentences become token ids. No torch: decode actors import this.

A text tower says which format it reads and how many tokens of its limit it fills itself (`reserved_tokens`); the data are
given the rest. A text travels as a list of sentences, so that no layer joins what another one splits.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import ClassVar

from tokenizers import Tokenizer

from cornerstone.errors import CornerstoneError, did_you_mean
from cornerstone.recipes.method import MethodConfig
from cornerstone.recipes.towers import TextTowerConfig

FILE = "tokenizer.json"
CLEANED_FORMATS = ("dci", "iiw", "sharegpt4v", "urban1k")
"""Formats of the long-text sets of LoTLIP, whose texts its authors `clean` in evaluation, for every compared model."""
SEPARATOR = ". "
_ENDS = re.compile(r"\n|</s>|\.")
_SPECIAL = (
    ("[CLS]", "[SEP]"),
    ("<s>", "</s>"),
    ("<|startoftext|>", "<|endoftext|>"),
    ("<start_of_text>", "<end_of_text>"),
    ("<bos>", "<eos>"),
    ("[BOS]", "[EOS]"),
)


def sub_captions(text: str) -> list[str]:
    """The sentences of a text: what lies between ". ". Only the last one keeps its period; empty ones are dropped."""
    return [part.strip() for part in text.split(SEPARATOR) if part.strip()]


def clean(text: str) -> str:
    """A long evaluation text as the tables use it: sentences that end at a newline, `</s>` or `.`, joined by ". ".

    It breaks "3.5" in two: every compared model must be given the same texts.
    """
    return SEPARATOR.join(part.strip() for part in _ENDS.split(text) if part.strip())


def plain_tokenizer(tokenizer: str) -> Tokenizer:
    """A tokenizer without a length limit and padding of its own, which saved ones often carry.

    `tokenizer` is the text of a `tokenizer.json`; raises CornerstoneError if it is not.
    """
    try:
        made = Tokenizer.from_str(tokenizer)
    except Exception as error:  # the library raises bare Exceptions
        raise CornerstoneError(f"Not the text of a {FILE} ({error}). Give a tokenizer that has a fast form.") from error
    made.no_truncation()
    made.no_padding()
    return made


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the largest id."""
    return int(max(tokenizer.get_vocab(with_added_tokens=True).values())) + 1


def special_ids(tokenizer: Tokenizer) -> tuple[int, int]:
    """Ids of what begins and what ends a text: by their usual names, else as the tokenizer's post-processor adds them.

    Raises CornerstoneError if it has neither.
    """
    for names in _SPECIAL:
        first, last = (tokenizer.token_to_id(name) for name in names)
        if first is not None and last is not None:
            return first, last
    added = tokenizer.encode("", add_special_tokens=True).ids
    if len(added) == 2:
        return added[0], added[1]
    raise CornerstoneError(
        "The tokenizer has no tokens that begin and end a text: none of "
        + ", ".join(" and ".join(names) for names in _SPECIAL)
        + ", and its post-processor does not add two. Use a BERT tokenizer, or add [CLS] and [SEP] to this one."
    )


def end_id(tokenizer: Tokenizer) -> int:
    """Id of what ends a text: by its usual name, else the last token that the tokenizer's post-processor adds.

    Raises CornerstoneError if it has none.
    """
    found = next((number for _, last in _SPECIAL if (number := tokenizer.token_to_id(last)) is not None), None)
    added = tokenizer.encode("", add_special_tokens=True).ids
    if found is None and not added:
        raise CornerstoneError(
            "The tokenizer has no token that ends a text: none of "
            + ", ".join(last for _, last in _SPECIAL)
            + ", and its post-processor adds none. Use a T5 tokenizer, or add </s> to this one."
        )
    return int(added[-1]) if found is None else found


class TextFormat(ABC):
    """Turns texts, given as lists of sentences, into lists of at most `max_tokens` token ids.

    Reserved tokens (LoTLIP's corners) are not in the ids: the tower adds them, and `max_tokens` is what they leave.
    """

    name: ClassVar[str]

    def __init__(self, tokenizer: str, max_tokens: int, ends: tuple[int, int] | None = None) -> None:
        self.tokenizer = plain_tokenizer(tokenizer)
        if max_tokens < 3:
            raise CornerstoneError(
                f"{max_tokens} tokens leave no room for what begins a text, a word and what ends it: raise "
                f"--recipe.method.text.token-limit by {3 - max_tokens} or more."
            )
        self.max_tokens = max_tokens
        self.vocab_size = vocabulary_size(self.tokenizer)
        self._ends = ends
        self.opening, self.last = self._special()

    @property
    def first(self) -> int:
        """What begins a text. Raises CornerstoneError for a format whose texts begin with their first word."""
        if not self.opening:
            raise CornerstoneError(
                f"No token begins a text of the format {self.name!r}: use a text tower of another one."
            )
        return self.opening[0]

    @property
    def empty(self) -> list[int]:
        """A text without words, as ids that a text tower can read."""
        return [*self.opening, self.last]

    def _special(self) -> tuple[list[int], int]:
        """What begins a text, which may be nothing, and what ends it."""
        first, last = self._ends or special_ids(self.tokenizer)
        return [first], last

    def encode(self, texts: Iterable[Sequence[str]]) -> list[list[int]]:
        """Token ids of each text; [] for a text without words.

        A text that is too long is cut, and its last token is the one that ends a text all the same.
        """
        return [self._cut(ids) for ids in self.encode_uncut(texts)]

    def with_limit(self, max_tokens: int) -> TextFormat:
        """The same format with another limit."""
        other = copy(self)
        other.max_tokens = max_tokens
        return other

    def encode_texts(self, texts: Iterable[str]) -> list[list[int]]:
        """`encode` of whole texts, split into sentences here."""
        return self.encode(sub_captions(text) for text in texts)

    @abstractmethod
    def encode_uncut(self, texts: Iterable[Sequence[str]]) -> list[list[int]]:
        """`encode` without the limit."""

    def _cut(self, ids: list[int]) -> list[int]:
        if len(ids) <= self.max_tokens:
            return ids
        ids = ids[: self.max_tokens - 1]
        if ids[-1] != self.last:
            ids.append(self.last)
        return ids

    def _words(self, texts: Sequence[str]) -> list[list[int]]:
        return [found.ids for found in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


class SentenceFormat(TextFormat):
    """`[CLS] words [SEP] words [SEP]`: a [SEP] after every sentence (LoTLIP, section 4.3)."""

    name = "sentences"

    def encode_uncut(self, texts: Iterable[Sequence[str]]) -> list[list[int]]:
        """[CLS], and the words of every sentence that has some with a [SEP] behind them."""
        listed = [list(sentences) for sentences in texts]
        encoded = iter(self._words([sentence for sentences in listed for sentence in sentences]))
        result = []
        for sentences in listed:
            ids = [*self.opening]
            for _ in sentences:
                if words := next(encoded):
                    ids += words
                    ids.append(self.last)
            result.append(ids if len(ids) > 1 else [])
        return result


class PlainFormat(TextFormat):
    """`first words last`: the sentences as one text (CLIP)."""

    name = "plain"

    def encode_uncut(self, texts: Iterable[Sequence[str]]) -> list[list[int]]:
        """What begins a text, its words, what ends it."""
        encoded = self._words([SEPARATOR.join(sentences) for sentences in texts])
        return [[*self.opening, *words, self.last] if words else [] for words in encoded]


class EndedFormat(PlainFormat):
    """`words last`: the sentences as one text, without a token that begins it (T5)."""

    name = "ended"

    def _special(self) -> tuple[list[int], int]:
        return [], self._ends[1] if self._ends else end_id(self.tokenizer)


FORMATS: dict[str, type[TextFormat]] = {made.name: made for made in (SentenceFormat, PlainFormat, EndedFormat)}


@dataclass(frozen=True)
class TextInput:
    """What a source knows of its texts: format, tokenizer (the text of a `tokenizer.json`), most tokens of a text."""

    format: str
    tokenizer: str
    max_tokens: int
    ends: tuple[int, int] | None = field(default=None, kw_only=True)
    """What begins and what ends a text, where a model says it; None: as the tokenizer's special tokens are named."""

    @staticmethod
    def of(tower: TextTowerConfig, tokenizer: str) -> TextInput:
        """What a text tower's configuration asks for: its format, and what its reserved tokens leave of its limit."""
        return TextInput(tower.format, tokenizer, tower.token_limit - tower.reserved_tokens)

    @staticmethod
    def of_method(method: MethodConfig, tokenizer: str) -> TextInput | None:
        """What a method's texts are; None if it reads no single texts."""
        return (
            None if method.text_format is None else TextInput(method.text_format[0], tokenizer, method.text_format[1])
        )

    def with_limit(self, max_tokens: int) -> TextInput:
        """The same texts with another limit."""
        return replace(self, max_tokens=max_tokens)

    def open(self) -> TextFormat:
        """The format, ready to encode."""
        if self.format not in FORMATS:
            raise CornerstoneError(f"Unknown text format {self.format!r}{did_you_mean(self.format, FORMATS)}")
        return FORMATS[self.format](self.tokenizer, self.max_tokens, self.ends)
