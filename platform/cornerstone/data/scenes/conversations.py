"""Conversations about scenes: an image, and questions whose short answers can be read from it alone.

No question names a species, whose noun would tell colour and shape without the image.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from cornerstone.data.conversations.turns import Turn, segments_of
from cornerstone.data.records import Document
from cornerstone.data.scenes.draw import encode, paint
from cornerstone.data.scenes.texts import NUMBERS
from cornerstone.data.scenes.world import (
    BACKGROUND_NAMES,
    COLOUR_NAMES,
    NOUNS,
    SHAPES,
    Scene,
    WorldSpec,
    colour_of,
    draw_scene,
    place_name,
    refuse,
    shape_of,
)
from cornerstone.errors import CornerstoneError, did_you_mean

CONVERSATION_SETS = ("conversations", "conversations-validation")
SHORTLY = "Answer the question using a single word or phrase."
"""LLaVA-1.5's request for a short answer; here it stands behind each question, since each is asked alone when it is judged."""


@dataclass(frozen=True)
class ConversationsSpec(WorldSpec):
    """Everything that determines a set of conversations: equal specs give equal bytes."""

    set: str = "conversations"
    questions: int = 3
    """Questions of an image, each of another kind."""

    rows_option: ClassVar[str] = "--conversations"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.set not in CONVERSATION_SETS:
            raise CornerstoneError(
                f"{self.set!r} is not a set of conversations{did_you_mean(self.set, CONVERSATION_SETS)}"
            )
        if not 1 <= self.questions <= len(QUESTIONS):
            refuse("questions", self.questions, f"1 to {len(QUESTIONS)}")


def conversation(spec: ConversationsSpec, index: int) -> Document:
    """A conversation of the spec's set. `extra` has the scene; that of a question, its kind."""
    scene, rng = draw_scene(spec, spec.rng("scene", index)), spec.rng("questions", index)
    turns: list[Turn] = []
    for kind in rng.sample(sorted(QUESTIONS), spec.questions):
        question, answer = QUESTIONS[kind](scene, rng)
        turns.append(Turn("human", f"{question}\n{SHORTLY}", image=not turns, kind=kind))
        turns.append(Turn("gpt", answer))
    image = encode(paint(scene, spec.image_size))
    extra = json.dumps({"scene": scene.as_json()}, separators=(",", ":"))
    return Document(f"{spec.set}-{index:08d}", segments_of(turns, image), extra)


def _colour(scene: Scene, rng: random.Random) -> tuple[str, str]:
    return "What colour is the large object?", COLOUR_NAMES[colour_of(scene.salient.species)]


def _shape(scene: Scene, rng: random.Random) -> tuple[str, str]:
    return "What shape is the large object?", SHAPES[shape_of(scene.salient.species)]


def _name(scene: Scene, rng: random.Random) -> tuple[str, str]:
    return "What is the large object called?", NOUNS[scene.salient.species]


def _place(scene: Scene, rng: random.Random) -> tuple[str, str]:
    return "Where is the large object?", place_name(scene.salient.cell, scene.cells)


def _background(scene: Scene, rng: random.Random) -> tuple[str, str]:
    return "What is the background like?", BACKGROUND_NAMES[scene.background]


def _count(scene: Scene, rng: random.Random) -> tuple[str, str]:
    return "How many objects are there?", NUMBERS[len(scene.things)]


def _presence(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """Of a colour that is there or one that is not, equally often."""
    there = sorted({colour_of(thing.species) for thing in scene.things})
    absent = [colour for colour in range(len(COLOUR_NAMES)) if colour not in there]
    yes = rng.random() < 0.5 or not absent
    return f"Is there a {COLOUR_NAMES[rng.choice(there if yes else absent)]} object?", "yes" if yes else "no"


QUESTIONS: dict[str, Callable[[Scene, random.Random], tuple[str, str]]] = {
    "colour": _colour,
    "shape": _shape,
    "name": _name,
    "place": _place,
    "background": _background,
    "count": _count,
    "presence": _presence,
}
"""Question and answer of each kind."""
