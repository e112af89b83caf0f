"""A sweep: named points, each a recipe, crossed with seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cornerstone.errors import CornerstoneError, did_you_mean
from cornerstone.recipes.recipe import Recipe
from cornerstone.sweeps.paper_table import PaperTable


@dataclass(frozen=True)
class Point:
    """One row of the table: its name, as the paper's row is named, and its recipe."""

    name: str
    recipe: Recipe


@dataclass(frozen=True)
class Sweep:
    """The points of one table or figure; `baseline` is the point that the others are compared with."""

    points: Sequence[Point]
    baseline: str
    paper: PaperTable | None = None
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        names = [point.name for point in self.points]
        if len(set(names)) != len(names):
            raise CornerstoneError(f"Two points of the sweep have one name: {', '.join(names)}.")
        if self.baseline not in names:
            raise CornerstoneError(
                f"The baseline {self.baseline!r} is none of the points{did_you_mean(self.baseline, names)}"
            )

    def only(self, names: Sequence[str]) -> list[Point]:
        """The points of those names, in the sweep's order; all of them where none is named."""
        valid = [point.name for point in self.points]
        for name in names:
            if name not in valid:
                raise CornerstoneError(f"--only {name!r} is no point of this sweep{did_you_mean(name, valid)}")
        return [point for point in self.points if not names or point.name in names]
