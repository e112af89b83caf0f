"""How a conversation becomes token ids: Vicuna's format, of whose tokens the answers are learnt, or the image's caption alone.

`vicuna` (LLaVA-1.5, second stage; <image> stands for the patches, which have no ids)::

    A chat between a curious user ... USER: <image>
    What is this? ASSISTANT: A cat.</s>USER: And this? ASSISTANT: A dog.</s>

`plain` (first stage): `<image>caption` and a newline, all of it learnt; what the user asked is left out.

A tokenizer never sees a whole text: what is before the image, what is behind it, and each pair of question and answer are
encoded apart, so that what begins (`first`) and ends (`last`) are ids and no text. No torch here: decode actors import this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from cornerstone.data.conversations.turns import BadConversation, Turn
from cornerstone.data.texts import plain_tokenizer

Style = Literal["vicuna", "plain"]
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
NO_IMAGE = -1


class Encoded(NamedTuple):
    """A conversation's ids, which of them are learnt, and how many stand before the image (NO_IMAGE: there is none)."""

    ids: list[int]
    target: list[bool]
    image_place: int


@dataclass(frozen=True)
class Chat:
    """The format of a language model's conversations."""

    tokenizer: str
    """The text of a `tokenizer.json`."""
    first: int | None
    """What begins a text, for language models that have it."""
    last: int
    """What ends an answer."""
    max_tokens: int
    """Most tokens of a conversation, its image not counted; what is behind them is cut."""
    style: Style = "vicuna"

    def open(self) -> ChatFormat:
        """The format, ready to encode."""
        return ChatFormat(self)


class ChatFormat:
    """Encodes conversations and questions."""

    def __init__(self, chat: Chat) -> None:
        self.chat, self.tokenizer = chat, plain_tokenizer(chat.tokenizer)

    def encode(self, turns: Sequence[Turn]) -> Encoded:
        """A conversation to learn from. Raises BadConversation if nothing of it is learnt, or the image does not fit."""
        encoded = (self._plain if self.chat.style == "plain" else self._vicuna)(turns)
        limit = self.chat.max_tokens
        if encoded.image_place > limit:
            raise BadConversation(f"too long: {encoded.image_place} tokens before the image, the limit is {limit}")
        if not any(encoded.target[:limit]):
            raise BadConversation(f"no answer within {limit} tokens")
        return Encoded(encoded.ids[:limit], encoded.target[:limit], encoded.image_place)

    def prompt(self, question: str, image: bool = True) -> tuple[list[int], int]:
        """The ids up to where the answer begins, and the image's place. The end is cut off the question, never the prompt's."""
        ids, _, place = self._vicuna([Turn("human", question, image)], opened="ASSISTANT:")
        if (over := len(ids) - self.chat.max_tokens) > 0:
            kept = len(ids) - len(self._ids(" ASSISTANT:"))
            ids = ids[: kept - over] + ids[kept:]
        return ids, place

    def decode(self, ids: Sequence[int]) -> str:
        """An answer's text."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def _plain(self, turns: Sequence[Turn]) -> Encoded:
        begin = [] if self.chat.first is None else [self.chat.first]
        caption = next((turn.text for turn in turns if turn.speaker == "gpt"), "")
        ids = self._ids(f"{caption}\n") if caption.strip() else []
        place = len(begin) if any(turn.image for turn in turns) else NO_IMAGE
        return Encoded(begin + ids, [False] * len(begin) + [True] * len(ids), place)

    def _vicuna(self, turns: Sequence[Turn], opened: str = "") -> Encoded:
        """All turns, and behind them what begins an answer that is yet to be given."""
        ids = [] if self.chat.first is None else [self.chat.first]
        target, place = [False] * len(ids), NO_IMAGE
        text, learnt = f"{SYSTEM} ", list[tuple[int, int]]()

        def flush() -> None:
            nonlocal text
            found = self.tokenizer.encode(text, add_special_tokens=False)
            ids.extend(found.ids)
            for start, stop in found.offsets:
                target.append(any(stop > begin and start < end for begin, end in learnt))
            text = ""
            learnt.clear()

        for turn in turns:
            if turn.speaker == "human":
                text += "USER: "
                if turn.image:
                    flush()
                    place, text = len(ids), "\n"
                text += f"{turn.text} "
            else:
                text += "ASSISTANT:"
                learnt.append((len(text), len(text) + 1 + len(turn.text)))
                text += f" {turn.text}"
                flush()
                ids.append(self.chat.last)
                target.append(True)
        text += opened
        flush()
        return Encoded(ids, target, place)

    def _ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return found
