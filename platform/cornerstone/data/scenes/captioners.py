"""Synthetic captioners: three of different quality, and a human who states everything and makes no errors."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Any

from cornerstone.data.scenes.facts import Fact, facts_of, falsified
from cornerstone.data.scenes.texts import joined, sentence
from cornerstone.data.scenes.world import Scene

SALIENT_FIRST = 0.9


@dataclass(frozen=True)
class Captioner:
    """How a captioner writes: number of sentences, rate of wrong facts, with or without places, and sentence forms."""

    name: str
    sentences: tuple[int, int] | None
    """Minimum and maximum number; None: one for every fact."""
    error_rate: float = 0.0
    places: bool = True
    unseen: float = 0.0
    """Fraction of sentences in forms that do not occur in training."""
    salient_first: float = SALIENT_FIRST


A = Captioner("A", (4, 4), error_rate=0.03, places=False)
B = Captioner("B", (7, 7), error_rate=0.20)
C = Captioner("C", (6, 8), error_rate=0.04)
HUMAN = Captioner("human", None, unseen=0.5)


def describe(
    scene: Scene, captioner: Captioner, lot: random.Random, at_least: int = 0
) -> tuple[str, list[dict[str, Any]]]:
    """A caption and its errors: for each error the sentence number, the name of the wrong value, its wrong and true value.

    The salient fact comes first in 9 of 10 captions, the others in random order; facts beyond the captioner's number of
    sentences are left out. `at_least` is passed to `facts_of`.
    """
    first, *rest = facts_of(scene, lot, places=captioner.places, at_least=at_least)
    lot.shuffle(rest)
    facts = [first, *rest] if lot.random() < captioner.salient_first else lot.sample([first, *rest], len(rest) + 1)
    if captioner.sentences is not None:
        facts = facts[: lot.randint(*captioner.sentences)]
    errors = []
    for i, fact in enumerate(facts):
        if lot.random() < captioner.error_rate:
            facts[i] = falsified(fact, scene, lot)
            errors.append({"captioner": captioner.name, "sentence": i, **_difference(fact, facts[i])})
    return joined([sentence(fact, scene.cells, lot, captioner.unseen) for fact in facts]), errors


def _difference(true: Fact, said: Fact) -> dict[str, Any]:
    """The one value in which two facts differ."""
    said_values = asdict(said)
    slot, value = next((slot, value) for slot, value in asdict(true).items() if value != said_values[slot])
    return {"slot": slot, "said": said_values[slot], "true": value}
