"""The towers of a table: the one that is asked about, the floor, the ceiling."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cornerstone.models.image_tower import TimmTower
from cornerstone.transfer.options import Options
from cornerstone.transfer.result import Row
from cornerstone.transfer.towers import open_tower, random_like

SCRATCH = "scratch"


@dataclass(frozen=True)
class Subject:
    """A tower to measure, and how it stands in the table."""

    tower: TimmTower
    name: str
    prefix: str
    """Of its rows' names in files."""
    full: bool
    factor: float = 1.0
    """On the tower's learning rate."""

    @property
    def mode(self) -> str:
        """As the table names it."""
        return "full" if self.full else "frozen"


def subjects(model: str, options: Options, factor: float) -> Iterator[Subject]:
    """The tower, the floor, and the ceiling if there is to be one. `factor` is the task's usual one on a tower's rate."""
    tower, factor = open_tower(model, options.image_size), options.tower_lr_factor or factor
    yield Subject(copy.deepcopy(tower), model, "", options.full, factor)
    yield Subject(random_like(tower, seed=0), "random weights (floor)", "floor_", False)
    if options.ceiling == SCRATCH:
        yield Subject(random_like(tower, seed=0), "from scratch (ceiling)", "ceiling_", True)
    elif options.ceiling:
        named = open_tower(options.ceiling, options.image_size)
        yield Subject(named, f"{options.ceiling} (ceiling)", "ceiling_", options.full, factor)


def compared(rows: Sequence[Row], primary: str) -> list[str]:
    """Whether the tower is better than random weights, and whether the ceiling is one."""
    named = {row.name: row for row in rows}
    ours, floor, ceiling = named[primary], named[f"floor_{primary}"], named.get(f"ceiling_{primary}")
    notes = []
    if ours.over_images()[0] <= floor.value:
        notes.append(
            f"The tower ({ours.value:.2f}{ours.unit}) is not clearly better than the same architecture with random weights "
            f"({floor.value:.2f}{floor.unit}): this data shows nothing of what it has learnt."
        )
    if ceiling is not None and ceiling.value < max(ours.value, floor.value):
        notes.append(
            f"The ceiling ({ceiling.value:.2f}{ceiling.unit}) is below other rows: these images, or --steps, are too few to "
            f"train it."
        )
    return notes
