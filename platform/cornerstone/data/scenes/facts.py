"""Facts about a scene: each is true or false of a scene, and each can be made false by changing one value."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from cornerstone.data.scenes.world import BACKGROUNDS, COLOURS, SHAPES, Scene, Thing, colour_of, shape_of

SIDES = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class ObjectFact:
    """There is a large or small object of this species in this cell (None: in any cell)."""

    species: int
    large: bool
    cell: int | None

    def holds(self, scene: Scene) -> bool:
        """Whether it is true of the scene."""
        return any(
            t.species == self.species and self.large == (t is scene.salient) and self.cell in (None, t.cell)
            for t in scene.things
        )

    def wrong(self, scene: Scene, lot: random.Random) -> ObjectFact:
        """The same fact with a wrong colour, shape or cell."""
        if self.cell is not None and lot.random() < 1 / 3:
            return replace(self, cell=_other(self.cell, scene.cells**2, lot))
        return replace(self, species=mistaken(self.species, lot))


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

    def wrong(self, scene: Scene, lot: random.Random) -> RelationFact:
        """The same fact with the opposite side, or with a wrong species for one of the two objects."""
        slot = lot.randrange(3)
        if slot == 0:
            opposite = SIDES.index(self.side) ^ 1
            return replace(self, side=SIDES[opposite])
        if slot == 1:
            return replace(self, species=mistaken(self.species, lot))
        return replace(self, other=mistaken(self.other, lot))


@dataclass(frozen=True)
class CountFact:
    """There are `number` objects of a colour (None: of any colour)."""

    colour: int | None
    number: int

    def holds(self, scene: Scene) -> bool:
        """Whether it is true of the scene."""
        return self.number == sum(self.colour in (None, colour_of(t.species)) for t in scene.things)

    def wrong(self, scene: Scene, lot: random.Random) -> CountFact:
        """The same fact with one object too many or too few."""
        return replace(self, number=self.number + (lot.choice((-1, 1)) if self.number > 1 else 1))


@dataclass(frozen=True)
class BackgroundFact:
    """The background is of this kind."""

    background: int

    def holds(self, scene: Scene) -> bool:
        """Whether it is true of the scene."""
        return self.background == scene.background

    def wrong(self, scene: Scene, lot: random.Random) -> BackgroundFact:
        """The same fact with another background."""
        return BackgroundFact(_other(self.background, len(BACKGROUNDS), lot))


Fact = ObjectFact | RelationFact | CountFact | BackgroundFact


def falsified(fact: Fact, scene: Scene, lot: random.Random) -> Fact:
    """The fact with one value changed so that it is false of the scene."""
    while True:
        wrong = fact.wrong(scene, lot)
        if not wrong.holds(scene):
            return wrong


def mistaken(species: int, lot: random.Random) -> int:
    """A species that differs in either colour or shape."""
    colour, shape = colour_of(species), shape_of(species)
    if lot.random() < 0.5:
        colour = _other(colour, len(COLOURS), lot)
    else:
        shape = _other(shape, len(SHAPES), lot)
    return colour * len(SHAPES) + shape


def object_fact(scene: Scene, thing: Thing, place: bool = True) -> ObjectFact:
    """The fact that an object exists, with or without its cell."""
    return ObjectFact(thing.species, thing is scene.salient, thing.cell if place else None)


def relation_fact(scene: Scene, one: Thing, other: Thing) -> RelationFact:
    """The relation of two objects, along the axis on which they are further apart."""
    (row, column), (other_row, other_column) = divmod(one.cell, scene.cells), divmod(other.cell, scene.cells)
    if abs(column - other_column) >= abs(row - other_row):
        side = SIDES[0] if column < other_column else SIDES[1]
    else:
        side = SIDES[2] if row < other_row else SIDES[3]
    return RelationFact(one.species, side, other.species)


def facts_of(scene: Scene, lot: random.Random, *, places: bool = True, at_least: int = 0) -> list[Fact]:
    """The facts that a captioner can state, the salient object first: every object, a count, the background, two relations.

    Without `places` there are no relations. More relations between neighbours are added until there are `at_least` facts or
    no pairs are left.
    """
    colour = lot.choice([None, *(colour_of(t.species) for t in scene.things)])
    number = sum(colour in (None, colour_of(t.species)) for t in scene.things)
    facts: list[Fact] = [object_fact(scene, t, places) for t in scene.things]
    facts += [CountFact(colour, number), BackgroundFact(scene.background)]
    if places:
        relations = max(2, at_least - len(facts))
        facts += [relation_fact(scene, *pair) for pair in _neighbours(scene, lot, relations)]
    return facts


def _neighbours(scene: Scene, lot: random.Random, count: int) -> list[tuple[Thing, Thing]]:
    """Up to `count` different pairs: each object (in random order) with its nearest, then with its second nearest, ..."""

    def distance(a: Thing, b: Thing) -> int:
        (row, column), (other_row, other_column) = divmod(a.cell, scene.cells), divmod(b.cell, scene.cells)
        return (row - other_row) ** 2 + (column - other_column) ** 2

    order = lot.sample(scene.things, len(scene.things))
    pairs: dict[frozenset[int], tuple[Thing, Thing]] = {}
    for rank in range(len(order) - 1):
        for thing in order:
            if len(pairs) >= count:
                return list(pairs.values())
            near = sorted((t for t in order if t is not thing), key=lambda t, here=thing: distance(here, t))  # type: ignore[misc]
            pairs.setdefault(frozenset((thing.cell, near[rank].cell)), (thing, near[rank]))
    return list(pairs.values())


def _other(value: int, n: int, lot: random.Random) -> int:
    """A random integer in 0..n-1 other than `value`."""
    return (value + lot.randrange(1, n)) % n
