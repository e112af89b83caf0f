"""Sentences for facts: the forms that captioners use in training, others that only the human uses, and raw captions.

A sentence has about 11 words; `{...}` are filled from the content of the image. Every form is one sentence without its
period.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Literal

from cornerstone.data.scenes.facts import BackgroundFact, CountFact, Fact, ObjectFact, RelationFact, relation_fact
from cornerstone.data.scenes.world import (
    BACKGROUND_NAMES,
    COLOUR_NAMES,
    NOUNS,
    SHAPES,
    Scene,
    colour_of,
    place_name,
    shape_of,
)

_NUMBERS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
"""
NUMBERS = tuple(_NUMBERS.split())

FORMS = {
    "placed": (
        "a {size} {thing} is in the {place} of the image",
        "in the {place} there is a {size} {thing}",
        "the {place} part of it shows a {size} {thing}",
        "there is a {size} {thing} in the {place}",
    ),
    "object": (
        "a {size} {thing} can be seen in the image",
        "the image shows a {size} {thing} among other things",
        "there is a {size} {thing} somewhere in the picture",
        "one of the things is a {size} {thing}",
    ),
    "relation": (
        "the {thing} is {side} the {other} in the image",
        "{side} the {other} one can see the {thing}",
        "the image shows the {thing} just {side} the {other}",
        "looking from the {other} the {thing} is {side} it",
    ),
    "count": (
        "the image shows {number} {counted} in all",
        "one can count {number} {counted} in the picture",
        "the number of {many} in the image is {number}",
        "in all the picture has {number} {counted}",
    ),
    "background": (
        "the background of the whole image is {background}",
        "all of it is in front of a {background} background",
        "behind the things one can see a {background} background",
        "the picture has a background that is {background}",
    ),
}
# Most of their words occur in training, a few do not, as with human captions and a pretrained BERT.
UNSEEN_FORMS = {
    "placed": (
        "at the {place} we see a {size} {thing} here",
        "a {thing} that is {size} lies in the {place}",
    ),
    "object": ("we see a {size} {thing}", "a {thing} that is {size} lies there"),
    "relation": (
        "the {other} has the {thing} {side} it",
        "a thing that lies {side} the {other} is the {thing}",
    ),
    "count": ("altogether we see {number} {counted} in this picture", "this picture has {number} {counted} on it"),
    "background": (
        "all things are on {background} ground in this picture",
        "we see {background} ground behind the things",
    ),
}
SHORT_FORMS = (
    "a {size} {thing} {side} a {other_size} {other}",
    "picture of a {size} {thing} {side} a {other}",
    "the {thing} is {side} the {other}",
    "a {thing} {side} a {other_size} {other} in the image",
    "there is a {thing} {side} the {other}",
)
RAW_FORMS = (
    "photo of a {thing} in summer",
    "my favourite {thing} picture today",
    "beautiful {thing} for sale here",
    "how to draw a {thing}",
    "the best {thing} we have",
    "looking at a {thing} outside",
    "a {thing} near the town",
)
_TAGS = """
stock free hd gallery wallpaper vintage art print poster design image photo new sale shop online premium classic
original modern large collection style home decor gift idea blog post album archive digital download royalty vector
"""
TAGS = tuple(_TAGS.split())
_JUNK = """
click here to view our shop contact us for more details terms apply share this page sign up today read next article
posted by admin untitled file copy scan page number default thumbnail error loading please wait subscribe news
comments closed related items price on request shipping worldwide all rights reserved
"""
JUNK = tuple(_JUNK.split())
PROMPTS = (
    "photo of a {}",
    "my favourite {} picture",
    "a large {} is in the image",
    "the image shows a large {}",
    "there is a large {} in the picture",
    "a large {}",
)

RawKind = Literal["salient", "other", "junk"]


def sentence(fact: Fact, cells: int, lot: random.Random, unseen: float = 0.0) -> str:
    """A fact as a sentence without its period. With probability `unseen` its form does not occur in training."""
    forms = UNSEEN_FORMS if lot.random() < unseen else FORMS
    kind, values = _values(fact, cells, lot)
    return lot.choice(forms[kind]).format(**values)


def joined(sentences: Sequence[str]) -> str:
    """A caption: each sentence ends with a period, so that the caption can be split at `. `."""
    return ". ".join(sentences) + "."


def raw_text(scene: Scene, lot: random.Random) -> tuple[str, RawKind]:
    """A noisy raw caption of 5 to 10 words, and what it is about: half the salient object, a quarter another one."""
    about = lot.random()
    if about >= 0.75:
        return " ".join(lot.choices(JUNK, k=lot.randint(5, 9))), "junk"
    kind: RawKind = "salient" if about < 0.5 else "other"
    thing = scene.salient if kind == "salient" else lot.choice(scene.things[1:])
    words = lot.choice(RAW_FORMS).format(thing=species_name(thing.species, lot)).split()
    return " ".join(words + lot.sample(TAGS, lot.randint(0, min(2, 10 - len(words))))), kind


def short_texts(scene: Scene, lot: random.Random, count: int) -> list[str]:
    """`count` different short captions, each with the salient object, another object and their relation."""
    texts: dict[str, None] = {}
    while len(texts) < count:
        other = lot.choice(scene.things[1:])
        fact = relation_fact(scene, scene.salient, other)
        values = {**_values(fact, scene.cells, lot)[1], "size": "large", "other_size": "small"}
        texts.setdefault(lot.choice(SHORT_FORMS).format(**values))
    return list(texts)


def species_name(species: int, lot: random.Random) -> str:
    """The name of a species: its noun, or its colour and shape, with equal probability."""
    if lot.random() < 0.5:
        return NOUNS[species]
    return f"{COLOUR_NAMES[colour_of(species)]} {SHAPES[shape_of(species)]}"


def _values(fact: Fact, cells: int, lot: random.Random) -> tuple[str, dict[str, Any]]:
    """The kind of form for a fact, and the words for its values."""
    match fact:
        case ObjectFact(species, large, cell):
            values = {"size": "large" if large else "small", "thing": species_name(species, lot)}
            return ("object", values) if cell is None else ("placed", {**values, "place": place_name(cell, cells)})
        case RelationFact(species, side, other):
            return "relation", {"thing": species_name(species, lot), "side": side, "other": species_name(other, lot)}
        case CountFact(colour, number):
            many = "objects" if colour is None else f"{COLOUR_NAMES[colour]} objects"
            counted = many.removesuffix("s") if number == 1 else many
            return "count", {"number": NUMBERS[number], "counted": counted, "many": many}
        case BackgroundFact(background):
            return "background", {"background": BACKGROUND_NAMES[background]}
