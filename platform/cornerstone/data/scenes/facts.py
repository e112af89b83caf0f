"""Statements about a scene. Each is true or false of a scene, and can be falsified by changing one value."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from cornerstone.data.scenes.world import BACKGROUNDS, COLOURS, SHAPES, Scene, Thing, colour_of, shape_of

SIDES = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class ObjectFact:
    """There is a large or small object of this species, in this cell (None: anywhere)."""

    species: int
    large: bool
    cell: int | None

    def holds(self, scene: Scene) -> bool:
        """Whether it is true of the scene."""
        return any(
            t.species == self.species and self.large == (t is scene.salient) and self.cell in (None, t.cell)
            for t in scene.things
        )

    def wrong(self, scene: Scene, rng: random.Random) -> ObjectFact:
        """The same with a wrong colour, shape or place."""
        if self.cell is not None and rng.random() < 1 / 3:
            return replace(self, cell=_other(self.cell, scene.cells**2, rng))
        return replace(self, species=mistaken(self.species, rng))


@dataclass(frozen=True)
class RelationFact:
    """One object is left of, right of, above or below another."""

    species: int
    side: str
    other: int

    def holds(self, scene: Scene) -> bool:
        """Whether it is true of the scene."""
        where = {t.species: divmod(t.cell, scene.cells) for t in scene.things}
        if self.species not in where or self.other not in where:
            return False
        (row, column), (other_row, other_column) = where[self.species], where[self.other]
        return {
            "left of": column < other_column,
            "right of": column > other_column,
            "above": row < other_row,
            "below": row > other_row,
        }[self.side]

    def wrong(self, scene: Scene, rng: random.Random) -> RelationFact:
        """The same with the opposite side, or with a wrong species for one of the two objects."""
        slot = rng.randrange(3)
        if slot == 0:
            opposite = SIDES.index(self.side) ^ 1
            return replace(self, side=SIDES[opposite])
        if slot == 1:
            return replace(self, species=mistaken(self.species, rng))
        return replace(self, other=mistaken(self.other, rng))


@dataclass(frozen=True)
class CountFact:
    """The number of objects of a colour (None: of any colour)."""

    colour: int | None
    number: int

    def holds(self, scene: Scene) -> bool:
        """Whether it is true of the scene."""
        return self.number == sum(self.colour in (None, colour_of(t.species)) for t in scene.things)

    def wrong(self, scene: Scene, rng: random.Random) -> CountFact:
        """The same with one object too many or too few."""
        return replace(self, number=self.number + (rng.choice((-1, 1)) if self.number > 1 else 1))


@dataclass(frozen=True)
class BackgroundFact:
    """The background is of this kind."""

    background: int

    def holds(self, scene: Scene) -> bool:
        """Whether it is true of the scene."""
        return self.background == scene.background

    def wrong(self, scene: Scene, rng: random.Random) -> BackgroundFact:
        """Another background."""
        return BackgroundFact(_other(self.background, len(BACKGROUNDS), rng))


Fact = ObjectFact | RelationFact | CountFact | BackgroundFact


def falsified(fact: Fact, scene: Scene, rng: random.Random) -> Fact:
    """The fact with one wrong value, such that it is false of the scene."""
    while True:
        wrong = fact.wrong(scene, rng)
        if not wrong.holds(scene):
            return wrong


def mistaken(species: int, rng: random.Random) -> int:
    """A species with another colour or another shape."""
    colour, shape = colour_of(species), shape_of(species)
    if rng.random() < 0.5:
        colour = _other(colour, len(COLOURS), rng)
    else:
        shape = _other(shape, len(SHAPES), rng)
    return colour * len(SHAPES) + shape


def object_fact(scene: Scene, thing: Thing, place: bool = True) -> ObjectFact:
    """The fact that an object is present, with or without its place."""
    return ObjectFact(thing.species, thing is scene.salient, thing.cell if place else None)


def relation_fact(scene: Scene, one: Thing, other: Thing) -> RelationFact:
    """The position of one object relative to another, along the axis on which they are further apart."""
    (row, column), (other_row, other_column) = divmod(one.cell, scene.cells), divmod(other.cell, scene.cells)
    if abs(column - other_column) >= abs(row - other_row):
        side = SIDES[0] if column < other_column else SIDES[1]
    else:
        side = SIDES[2] if row < other_row else SIDES[3]
    return RelationFact(one.species, side, other.species)


def facts_of(scene: Scene, rng: random.Random, *, places: bool = True, at_least: int = 0) -> list[Fact]:
    """The facts that a captioner can state, the salient object first: every object, a count, the background, two relations.

    Without `places` there are no relations. With `at_least`, more relations between neighbours are added until there are
    that many facts or no pair is left.
    """
    colour = rng.choice([None, *(colour_of(t.species) for t in scene.things)])
    number = sum(colour in (None, colour_of(t.species)) for t in scene.things)
    facts: list[Fact] = [object_fact(scene, t, places) for t in scene.things]
    facts += [CountFact(colour, number), BackgroundFact(scene.background)]
    if places:
        relations = max(2, at_least - len(facts))
        facts += [relation_fact(scene, *pair) for pair in _neighbours(scene, rng, relations)]
    return facts


def _neighbours(scene: Scene, rng: random.Random, count: int) -> list[tuple[Thing, Thing]]:
    """Pairs of objects: each object with its nearest, in random order, then with its second nearest; no pair twice."""

    def distance(a: Thing, b: Thing) -> int:
        (row, column), (other_row, other_column) = divmod(a.cell, scene.cells), divmod(b.cell, scene.cells)
        return (row - other_row) ** 2 + (column - other_column) ** 2

    order = rng.sample(scene.things, len(scene.things))
    pairs: dict[frozenset[int], tuple[Thing, Thing]] = {}
    for rank in range(len(order) - 1):
        for thing in order:
            if len(pairs) >= count:
                return list(pairs.values())
            near = sorted((t for t in order if t is not thing), key=lambda t, here=thing: distance(here, t))  # type: ignore[misc]
            pairs.setdefault(frozenset((thing.cell, near[rank].cell)), (thing, near[rank]))
    return list(pairs.values())


def _other(value: int, n: int, rng: random.Random) -> int:
    """A number of 0 to n - 1 other than `value`."""
    return (value + rng.randrange(1, n)) % n
