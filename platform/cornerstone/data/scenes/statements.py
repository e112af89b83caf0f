"""Short statements about an image of a document, and what the image is worth at each of their values.

A value's worth is log(probability for a reader who sees the image / for one who does not), in nats. Both readers know the
grammar, the document's topic (its background and its species), and all text before the value. For a sentence before the image
this is what the sentence tells about the image to come. The worth is exact, because:

- The species of a scene are the first of a random order of the topic's, its cells the first of a random order of all cells.
  So for who does not see the image, a value is uniform over what earlier statements about the image have left.
- For who sees it, only *which* small object or empty cell is stated remains to be guessed: uniform over those left.
- A sentence's form tells which image it speaks of and whether it repeats a fact. A sentence about the coming image has
  forms of its own (`COMING`), and a small object that was stated before has a definite article (`AGAIN`). Other facts occur
  once in an image (the large object, its place, the number), so what was said before tells whether they are repeated.
- No word of a form depends on a value, and no other sentence can have the same word at the place of a value.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any, Literal

from cornerstone.data.scenes.texts import JUNK, NUMBERS
from cornerstone.data.scenes.world import BACKGROUND_NAMES, NOUNS, Scene, WorldSpec, place_name

Kind = Literal["large", "place", "number", "empty", "small"]
Status = Literal["context", "new", "copyable"]
Forms = Mapping[str, Sequence[str]]

COMING: Forms = {
    "large": ("next a large {thing}", "expect a large {thing}"),
    "place": ("next look {place}", "soon look {place}"),
    "number": ("next {number} things", "expect {number} things"),
    "empty": ("next nothing {place}", "expect nothing {place}"),
    "small": ("next a small {thing} {place}", "expect a small {thing} {place}"),
}
HERE: Forms = {
    "large": ("here is a large {thing}", "see the large {thing}", "large is the {thing}"),
    "place": ("the large one is {place}", "it is largest {place}", "see it {place}"),
    "number": ("here are {number} things", "we count {number}", "see {number} things"),
    "empty": ("see nothing {place}", "it is empty {place}", "free is {place}"),
    "small": ("here is a small {thing} {place}", "also a {thing} {place}", "see a small {thing} {place}"),
}
AGAIN: Forms = {
    **HERE,
    "small": ("the small {thing} is {place}", "the {thing} is {place}", "see the small {thing} {place}"),
}
OF_THE_TOPIC = (
    "all is {background} there",
    "{background} land again",
    "many a {thing} lives there",
    "some like {thing}",
)
JUNK_SHARE = 0.25
"""Share of junk among the sentences that do not speak of an image."""


@dataclass(frozen=True)
class Fact:
    """A fact of an image: the word of each value, in the order in which every form names them, and its worth when new."""

    kind: Kind
    words: dict[str, str]
    nats: tuple[float, ...]

    def values(self, status: Status, seen: bool = True) -> list[dict[str, Any]]:
        """The values as JSON. They are worth nothing if they can be copied, or if the image shows another scene."""
        worth = self.nats if status != "copyable" and seen else (0.0,) * len(self.nats)
        return [
            {"word": word, "kind": status, "nats": nats} for word, nats in zip(self.words.values(), worth, strict=True)
        ]


class Untold:
    """The facts of a scene that were not stated yet, in random order.

    There are `fewest objects` + 3 whatever the scene shows, so that their number tells nothing: the large object, its place,
    the number of objects, an empty cell, and as many small objects as every scene has. `species` is the topic's number.
    """

    def __init__(self, scene: Scene, spec: WorldSpec, species: int, rng: random.Random) -> None:
        self.scene, self.numbers = scene, spec.max_objects - spec.min_objects + 1
        self.free = sorted(set(range(scene.cells**2)) - {thing.cell for thing in scene.things})
        self.empty = rng.choice(self.free)
        self.small = rng.sample(scene.things[1:], spec.min_objects - 1)
        self.kinds: list[Kind] = ["large", "place", "number", "empty"]
        self.kinds += ["small"] * len(self.small)
        rng.shuffle(self.kinds)
        self.species_left, self.cells_left, self.small_left = species, scene.cells**2, len(scene.things) - 1

    def next(self) -> Fact:
        """The next fact, which counts as stated from now on."""
        kind = self.kinds.pop()
        match kind:
            case "large":
                return self._fact(kind, thing=(self.scene.salient.species, log(self._species())))
            case "place":
                return self._fact(kind, place=(self.scene.salient.cell, log(self._cells())))
            case "number":
                return self._fact(kind, number=(len(self.scene.things), log(self.numbers)))
            case "empty":
                return self._fact(kind, place=(self.empty, log(self._cells() / len(self.free))))
            case "small":
                thing, self.small_left = self.small.pop(), self.small_left - 1
                first = log(self._species() / (self.small_left + 1))
                return self._fact(kind, thing=(thing.species, first), place=(thing.cell, log(self._cells())))

    def _species(self) -> int:
        self.species_left -= 1
        return self.species_left + 1

    def _cells(self) -> int:
        self.cells_left -= 1
        return self.cells_left + 1

    def _fact(self, kind: Kind, **values: tuple[int, float]) -> Fact:
        words = {slot: self._word(slot, value) for slot, (value, _) in values.items()}
        return Fact(kind, words, tuple(round(nats, 4) for _, nats in values.values()))

    def _word(self, slot: str, value: int) -> str:
        if slot == "thing":
            return NOUNS[value]
        return NUMBERS[value] if slot == "number" else place_name(value, self.scene.cells)


def stated(fact: Fact, forms: Forms, rng: random.Random, unlike: Collection[str] = ()) -> str:
    """A fact as a sentence, none of those in `unlike` while there is another."""
    sentences = [form.format(**fact.words) + "." for form in forms[fact.kind]]
    return rng.choice([text for text in sentences if text not in unlike] or sentences)


def filler(background: int, species: Sequence[int], rng: random.Random) -> str:
    """A sentence that tells nothing about any image: it is true of the topic, or junk.

    Its species is drawn from the whole topic. One that the image does not show would tell a reader what to exclude.
    """
    if rng.random() < JUNK_SHARE:
        return " ".join(rng.sample(JUNK, rng.randint(3, 5))) + "."
    words = {"background": BACKGROUND_NAMES[background], "thing": NOUNS[rng.choice(species)]}
    return rng.choice(OF_THE_TOPIC).format(**words) + "."
