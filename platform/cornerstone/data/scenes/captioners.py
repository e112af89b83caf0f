"""Simulated captioners: three of different quality, and a human who states every fact without errors."""

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
    """Parameters of a captioner."""

    name: str
    sentences: tuple[int, int] | None
    """Fewest and most sentences; None states every fact."""
    error_rate: float = 0.0
    """Probability that a stated fact is wrong."""
    places: bool = True
    """Whether objects are stated with their places, and relations between objects are stated at all."""
    unseen: float = 0.0
    """Share of sentences by templates that do not occur in training."""
    salient_first: float = SALIENT_FIRST
    """Probability that the salient object's fact comes first."""


A = Captioner("A", (4, 4), error_rate=0.03, places=False)
B = Captioner("B", (7, 7), error_rate=0.20)
C = Captioner("C", (6, 8), error_rate=0.04)
HUMAN = Captioner("human", None, unseen=0.5)


def stated(scene: Scene, captioner: Captioner, rng: random.Random, at_least: int = 0) -> list[Fact]:
    """The facts that a captioner states, in their order, before it makes errors; see `describe`."""
    first, *rest = facts_of(scene, rng, places=captioner.places, at_least=at_least)
    rng.shuffle(rest)
    facts = [first, *rest] if rng.random() < captioner.salient_first else rng.sample([first, *rest], len(rest) + 1)
    return facts if captioner.sentences is None else facts[: rng.randint(*captioner.sentences)]


def describe(
    scene: Scene, captioner: Captioner, rng: random.Random, at_least: int = 0
) -> tuple[str, list[dict[str, Any]]]:
    """A caption and its errors; each error has the sentence's index, the name of the wrong value, the stated and true value.

    The salient fact comes first in 9 of 10 captions, the others in random order; facts beyond the captioner's number of
    sentences are dropped. `at_least` is passed on to `facts_of`.
    """
    facts = stated(scene, captioner, rng, at_least)
    errors = []
    for i, fact in enumerate(facts):
        if rng.random() < captioner.error_rate:
            facts[i] = falsified(fact, scene, rng)
            errors.append({"captioner": captioner.name, "sentence": i, **_difference(fact, facts[i])})
    return joined([sentence(fact, scene.cells, rng, captioner.unseen) for fact in facts]), errors


def _difference(true: Fact, said: Fact) -> dict[str, Any]:
    """The single value in which two facts differ."""
    said_values = asdict(said)
    slot, value = next((slot, value) for slot, value in asdict(true).items() if value != said_values[slot])
    return {"slot": slot, "said": said_values[slot], "true": value}
