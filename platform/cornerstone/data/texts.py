"""Texts: sub-captions, the evaluation's cleaning, and token ids. No torch here: decode actors import this module.

A LoTLIP text is `[CLS] [Cor 1] .. [Cor m] words [SEP] words [SEP]`, a [SEP] after every sub-caption (paper, section
4.3). Ids are kept without the corners: the text tower adds them. They count against the token limit all the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenizers import Tokenizer

from cornerstone.errors import CornerstoneError

FILE = "tokenizer.json"
_SEPARATOR = ". "
_ENDS = re.compile(r"\n|</s>|\.")
_SPECIAL = (
    ("[CLS]", "[SEP]"),
    ("<s>", "</s>"),
    ("<|startoftext|>", "<|endoftext|>"),
    ("<bos>", "<eos>"),
    ("[BOS]", "[EOS]"),
)


def sub_captions(text: str) -> list[str]:
    """The sentences of a text: what lies between ". ". Only the last one keeps its period; empty ones are dropped."""
    return [part.strip() for part in text.split(_SEPARATOR) if part.strip()]


def clean(text: str) -> str:
    """A long evaluation text as the tables use it: sentences that end at a newline, `</s>` or `.`, joined by ". ".

    It breaks "3.5" in two: every compared model must be given the same texts.
    """
    return _SEPARATOR.join(part.strip() for part in _ENDS.split(text) if part.strip())


class TextTokenizer:
    """Turns texts into lists of token ids.

    `tokenizer` is the text of a `tokenizer.json`. `limit` is the most tokens of a text, [CLS], `corners` and [SEP]s
    counted. Corner k (from 0) has the id `vocab_size` + k where ids are laid out with corners.
    """

    def __init__(self, tokenizer: str, limit: int, corners: int) -> None:
        try:
            self._tokenizer = Tokenizer.from_str(tokenizer)
        except Exception as error:  # the library raises bare Exceptions
            raise CornerstoneError(
                f"Not the text of a {FILE} ({error}). Give a tokenizer that has a fast form."
            ) from error
        if limit < corners + 3:
            raise CornerstoneError(
                f"A token limit of {limit} leaves no room for [CLS], {corners} corners, a word and [SEP]: "
                f"raise --recipe.method.text.token-limit to {corners + 3} or more."
            )
        self._tokenizer.no_truncation()  # saved tokenizers often carry a limit and a padding of their own
        self._tokenizer.no_padding()
        self.limit, self.corners = limit, corners
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.cls, self.sep = self._special_ids()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """`[CLS] words [SEP] words [SEP]` of each text, without corner ids; [] for a text without words.

        A text longer than the limit is cut, and its last token is a [SEP] all the same: with the corners it has at most
        `limit` tokens.
        """
        return [self._cut(ids) for ids in self.encode_uncut(texts)]

    def encode_uncut(self, texts: Sequence[str]) -> list[list[int]]:
        """The same without the limit: for statistics of lengths."""
        sentences = [sub_captions(text) for text in texts]
        encoded = iter(
            self._tokenizer.encode_batch_fast([s for part in sentences for s in part], add_special_tokens=False)
        )
        result = []
        for part in sentences:
            ids = [self.cls]
            for _ in part:
                if words := next(encoded).ids:
                    ids += words
                    ids.append(self.sep)
            result.append(ids if len(ids) > 1 else [])
        return result

    def _cut(self, ids: list[int]) -> list[int]:
        room = self.limit - self.corners
        if len(ids) <= room:
            return ids
        ids = ids[: room - 1]
        if ids[-1] != self.sep:
            ids.append(self.sep)
        return ids

    def _special_ids(self) -> tuple[int, int]:
        """Ids of what begins a text and ends a sub-caption: by their usual names, else as the tokenizer adds them."""
        for names in _SPECIAL:
            first, last = (self._tokenizer.token_to_id(name) for name in names)
            if first is not None and last is not None:
                return first, last
        added = self._tokenizer.encode("", add_special_tokens=True).ids
        if len(added) == 2:
            return added[0], added[1]
        raise CornerstoneError(
            "The tokenizer has no tokens that begin and end a text: none of "
            + ", ".join(" and ".join(names) for names in _SPECIAL)
            + ", and its post-processor does not add two. Use a BERT tokenizer, or add [CLS] and [SEP] to this one."
        )
