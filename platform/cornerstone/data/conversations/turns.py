"""What a conversation is, and how it lies in a row of shards.

A conversation is a document: its image is a segment of its own before the turn that speaks of it, and the `extra` of each text
names who speaks as LLaVA's lists do, {"from": "human"} or {"from": "gpt"}. No torch here: decode actors import this module.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cornerstone.data.records import Segment

Speaker = Literal["human", "gpt"]
SPEAKERS: tuple[Speaker, ...] = ("human", "gpt")
IMAGE = "<image>"
"""Where LLaVA's lists place the image in the text of a turn."""


class BadConversation(Exception):
    """A conversation that cannot be used. The message is the reason that is recorded."""


@dataclass(frozen=True)
class Turn:
    """What one side says. `image` stands before the text of at most one turn."""

    speaker: Speaker
    text: str
    image: bool = False
    kind: str = ""
    """What a question asks for, if the data say it."""


def segments_of(turns: Iterable[Turn], image: bytes | None) -> tuple[Segment, ...]:
    """A conversation's segments; the image stands before its turn."""
    segments: list[Segment] = []
    for turn in turns:
        if turn.image:
            segments.append(Segment(image=image))
        said = {"from": turn.speaker, **({"kind": turn.kind} if turn.kind else {})}
        segments.append(Segment(text=turn.text, extra=json.dumps(said)))
    return tuple(segments)


def turns_of(segments: Sequence[Mapping[str, Any]]) -> tuple[tuple[Turn, ...], bytes | None]:
    """The turns of a row, given as values of the `SEGMENT` type, and its image.

    Raises BadConversation for a text without a speaker, and for more than one image.
    """
    turns, image, waits = list[Turn](), None, False
    for segment in segments:
        if segment["kind"] == "image":
            if image is not None:
                raise BadConversation("more than one image: LLaVA-1.5 reads one")
            image, waits = segment["image"], True
            continue
        said = json.loads(segment["extra"] or "{}")
        if said.get("from") not in SPEAKERS:
            raise BadConversation(f"no speaker: a text is from {said.get('from')!r}, expected human or gpt")
        turns.append(Turn(said["from"], segment["text"], waits, said.get("kind", "")))
        waits = False
    return tuple(turns), image


def parsed(conversations: Sequence[Any], has_image: bool) -> tuple[Turn, ...]:
    """The turns of an entry of LLaVA's lists, [{from: human | gpt, value}].

    The image moves to the beginning of the turn that names it, as LLaVA moves it; where no turn does, to the first human one.
    Raises BadConversation for other speakers, and for a turn that names an image that the conversation does not have.
    """
    turns: list[Turn] = []
    for turn in conversations:
        speaker, value = (turn.get(name) if isinstance(turn, dict) else None for name in ("from", "value"))
        if speaker not in SPEAKERS or not isinstance(value, str):
            raise BadConversation(f"wrong turn: expected {{from: human | gpt, value}}, found {str(turn)[:80]}")
        if IMAGE in value and not has_image:
            raise BadConversation("no image: a turn has <image>, but the entry names none")
        first = IMAGE in value and not any(earlier.image for earlier in turns)
        turns.append(Turn(speaker, value.replace(IMAGE, "").strip(), first))
    if has_image and turns and not any(turn.image for turn in turns):
        place = next((i for i, turn in enumerate(turns) if turn.speaker == "human"), 0)
        turns[place] = Turn(turns[place].speaker, turns[place].text, True)
    if not any(turn.speaker == "gpt" for turn in turns):
        raise BadConversation("no answer: no turn is from gpt")
    return tuple(turns)
