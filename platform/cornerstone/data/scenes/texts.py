"""Sentence templates of facts: those of training, those that only the human captioner uses, and those of raw captions.

A sentence has about 11 words; `{...}` are filled with values of the scene. A template is one sentence without its period.
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
UNSEEN_FORMS = {  # most of their words occur in training, as a human's do in the text that BERT was trained on; some do not
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


def sentence(fact: Fact, cells: int, rng: random.Random, unseen: float = 0.0) -> str:
    """A fact as a sentence without its period, with probability `unseen` by a template that training does not use."""
    forms = UNSEEN_FORMS if rng.random() < unseen else FORMS
    kind, values = _values(fact, cells, rng)
    return rng.choice(forms[kind]).format(**values)


def joined(sentences: Sequence[str]) -> str:
    """A caption: every sentence ends with a period, so that `. ` separates them."""
    return ". ".join(sentences) + "."


def raw_text(scene: Scene, rng: random.Random) -> tuple[str, RawKind]:
    """A noisy caption of 5 to 10 words, and its subject: the salient object in half of the cases, in a quarter another one."""
    about = rng.random()
    if about >= 0.75:
        return " ".join(rng.choices(JUNK, k=rng.randint(5, 9))), "junk"
    kind: RawKind = "salient" if about < 0.5 else "other"
    thing = scene.salient if kind == "salient" else rng.choice(scene.things[1:])
    words = rng.choice(RAW_FORMS).format(thing=species_name(thing.species, rng)).split()
    return " ".join(words + rng.sample(TAGS, rng.randint(0, min(2, 10 - len(words))))), kind


def rewritten(raw: str, rng: random.Random) -> str:
    """A raw caption in other words, as by a language model that has not seen the image: it knows no more than the caption.

    A caption with a subject keeps it in another template, without its tags; the words of one without are shuffled.
    """
    for form in RAW_FORMS:
        head = form[: form.index("{")]
        if raw.startswith(head):
            words = raw.removeprefix(head).split()
            thing = " ".join(words[: 2 if words[0] in COLOUR_NAMES else 1])
            return rng.choice([other for other in RAW_FORMS if other != form]).format(thing=thing)
    words = raw.split()
    return " ".join(rng.sample(words, len(words)))


def short_texts(scene: Scene, rng: random.Random, count: int) -> list[str]:
    """`count` different short captions, each with the salient object, another one and their relation."""
    texts: dict[str, None] = {}
    while len(texts) < count:
        other = rng.choice(scene.things[1:])
        fact = relation_fact(scene, scene.salient, other)
        values = {**_values(fact, scene.cells, rng)[1], "size": "large", "other_size": "small"}
        texts.setdefault(rng.choice(SHORT_FORMS).format(**values))
    return list(texts)


def species_name(species: int, rng: random.Random) -> str:
    """The species' noun or its colour and shape, with equal probability."""
    if rng.random() < 0.5:
        return NOUNS[species]
    return f"{COLOUR_NAMES[colour_of(species)]} {SHAPES[shape_of(species)]}"


def _values(fact: Fact, cells: int, rng: random.Random) -> tuple[str, dict[str, Any]]:
    """The kind of template for a fact, and the words to fill in."""
    match fact:
        case ObjectFact(species, large, cell):
            values = {"size": "large" if large else "small", "thing": species_name(species, rng)}
            return ("object", values) if cell is None else ("placed", {**values, "place": place_name(cell, cells)})
        case RelationFact(species, side, other):
            return "relation", {"thing": species_name(species, rng), "side": side, "other": species_name(other, rng)}
        case CountFact(colour, number):
            many = "objects" if colour is None else f"{COLOUR_NAMES[colour]} objects"
            counted = many.removesuffix("s") if number == 1 else many
            return "count", {"number": NUMBERS[number], "counted": counted, "many": many}
        case BackgroundFact(background):
            return "background", {"background": BACKGROUND_NAMES[background]}
