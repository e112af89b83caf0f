"""The vocabulary of scenes (colours, shapes, nouns of their 96 combinations, backgrounds, places), and sampling scenes.

The vocabulary is fixed. `WorldSpec` gives the number of cells and objects; which objects is sampled from (seed, set,
index), so that sets of different names share no random stream, and share a scene only by coincidence.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

from cornerstone.data.draws import hashed
from cornerstone.errors import CornerstoneError

COLOURS = {
    "red": (220, 30, 35),
    "orange": (255, 135, 0),
    "yellow": (250, 235, 20),
    "green": (20, 130, 50),
    "blue": (25, 70, 225),
    "purple": (135, 30, 165),
    "black": (15, 15, 15),
    "white": (255, 255, 255),
}
_SHAPES = """
circle square triangle diamond ring frame plus cross bar pillar crescent hourglass
"""
SHAPES = tuple(_SHAPES.split())
BACKGROUNDS = {  # muted, so that every object stands out on each; `draw` adds a pattern
    "sandy": (222, 205, 165),
    "stony": (150, 152, 155),
    "grassy": (160, 205, 140),
    "watery": (140, 195, 215),
    "rosy": (235, 175, 185),
    "woody": (150, 112, 85),
}
# One arbitrary noun per species (colour × shape), which does not reveal colour or shape, like the name of an ImageNet
# class. Any two differ in at least two letters.
_NOUNS = """
dabu dibe vigu vuza bedo zuko poze kefi doki vepa dizu ratu noza bovi lopa pila tuze resu geza kive futa zuma fivu
zoge liru gupi rofi nufi zuvi lori seva pami dolu fezu kemu tenu komi lesi zaso pefa guvo zelu fape tamu rize zego
sofu meka kiza lufe nabo vumi nura moku zube bumo tona nulo tedi vozi vubo muzo kalu fova viso guke tove sinu kufo
luga fadi mida gedu zali metu pido zoru sato veti sizo biku fuli lero mofe bavu gabe beli musi lina geni dupo neku
firo vima digo nasu
"""
NOUNS = tuple(_NOUNS.split())
ROWS = {3: ("top", "middle", "bottom"), 4: ("top", "upper", "lower", "bottom")}
COLUMNS = {3: ("left", "center", "right"), 4: ("leftmost", "left", "right", "rightmost")}

COLOUR_NAMES, BACKGROUND_NAMES = tuple(COLOURS), tuple(BACKGROUNDS)
SPECIES = len(COLOURS) * len(SHAPES)


def colour_of(species: int) -> int:
    """The index of a species' colour in `COLOURS`."""
    return species // len(SHAPES)


def shape_of(species: int) -> int:
    """The index of a species' shape in `SHAPES`."""
    return species % len(SHAPES)


def place_name(cell: int, cells: int) -> str:
    """The name of a cell, such as `top left` for cell 0; cells are numbered row by row."""
    return f"{ROWS[cells][cell // cells]} {COLUMNS[cells][cell % cells]}"


@dataclass(frozen=True)
class WorldSpec:
    """What every set of scenes has in common, whether its rows are pairs or documents."""

    set: str = "scenes"
    rows: int = 16_000
    seed: int = 0
    image_size: int = 64
    cells: int = 3
    """Cells per side: 3 or 4."""
    min_objects: int = 4
    max_objects: int = 7
    rows_per_shard: int = 2048

    rows_option: ClassVar[str] = "--pairs"
    """The command's option for the number of rows."""

    def __post_init__(self) -> None:
        if self.rows < 1:
            refuse("rows", self.rows, f"1 or more; raise {self.rows_option}")
        if not 32 <= self.image_size <= 224:
            refuse("image_size", self.image_size, "32 to 224 pixels")
        if self.cells not in ROWS:
            refuse("cells", self.cells, "3 or 4 cells a side")
        if not 2 <= self.min_objects <= self.max_objects <= self.cells**2:
            refuse("objects", (self.min_objects, self.max_objects), f"2 <= fewest <= most <= {self.cells**2} cells")
        if self.rows_per_shard < 1:
            refuse("rows_per_shard", self.rows_per_shard, "1 or more")

    @property
    def shards(self) -> int:
        """Number of shards of the set."""
        return -(-self.rows // self.rows_per_shard)

    def rows_of(self, shard: int) -> range:
        """The rows of one shard."""
        return range(shard * self.rows_per_shard, min(self.rows, (shard + 1) * self.rows_per_shard))

    def rng(self, purpose: str, *parts: int) -> random.Random:
        """A random generator for one purpose and one row of this set, the same in every process."""
        return random.Random(int(hashed(self.seed, f"scenes/{self.set}/{purpose}", *parts)[0]))


@dataclass(frozen=True)
class ScenesSpec(WorldSpec):
    """Everything that determines a set of pairs: equal specs give equal bytes. `set` is a key of `sets.SETS`."""

    sentences: tuple[int, int] = (6, 8)
    """Fewest and most sentences of captioner C. Captions with every fact have at least the most: (24, 26) exceeds 256
    tokens."""
    pool: int = 1000
    """Retrieval is evaluated in galleries of this many rows (fewer if the set is smaller)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "sentences", tuple(self.sentences))  # a list if it comes from a manifest
        if not 1 <= self.sentences[0] <= self.sentences[1]:
            refuse("sentences", self.sentences, "1 <= fewest <= most")
        if self.pool < 1:
            refuse("pool", self.pool, "1 or more")


def refuse(option: str, given: Any, expected: str) -> NoReturn:
    """Raise CornerstoneError for a value that an option cannot have."""
    raise CornerstoneError(f"{option} is {given}: expected {expected}.")


@dataclass(frozen=True)
class Thing:
    """An object: its species, its cell, and its offset from the cell's centre (-1, 0 or 1 steps in x and y)."""

    species: int
    cell: int
    dx: int = 0
    dy: int = 0


@dataclass(frozen=True)
class Scene:
    """The content of an image. `things[0]` is the salient object, drawn large; no species and no cell occurs twice."""

    cells: int
    background: int
    things: tuple[Thing, ...]

    @property
    def salient(self) -> Thing:
        """The large object, whose species is the image's class."""
        return self.things[0]

    def as_json(self) -> dict[str, Any]:
        """JSON values for a row's `extra`."""
        things = [[t.species, t.cell, t.dx, t.dy] for t in self.things]
        return {"cells": self.cells, "background": self.background, "things": things}


def draw_scene(
    spec: WorldSpec,
    rng: random.Random,
    *,
    salient: int | None = None,
    cell: int | None = None,
    background: int | None = None,
    among: Sequence[int] = range(SPECIES),
) -> Scene:
    """Sample a scene of the species `among`; the salient one, its cell and the background are sampled too unless given."""
    count = rng.randint(spec.min_objects, spec.max_objects)
    species = _distinct(among, count, salient, rng)
    places = _distinct(range(spec.cells**2), count, cell, rng)
    jitter = (-1, 0, 1)
    things = tuple(Thing(s, c, rng.choice(jitter), rng.choice(jitter)) for s, c in zip(species, places, strict=True))
    return Scene(spec.cells, rng.randrange(len(BACKGROUNDS)) if background is None else background, things)


def _distinct(numbers: Sequence[int], count: int, first: int | None, rng: random.Random) -> Sequence[int]:
    """`count` different ones of some numbers, starting with `first` if it is given."""
    drawn = rng.sample(numbers, count)
    if first is None:
        return drawn
    return [first, *(x for x in drawn if x != first)][:count]
