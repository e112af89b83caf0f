"""What distinguishes the points of a sweep: the settings of their recipes that differ, under short names.

Of a recipe's many fields a sweep changes a few. In MLflow they are each trial's params `point.<name>`, and columns of the
sweep's table of trials.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cornerstone.recipes.recipe import Recipe
from cornerstone.sweeps.points import Point
from cornerstone.sweeps.schedule import Planned
from cornerstone.training.mlflow_run import flat

POINT = "point"
"""The param with the row's name; the settings' names follow it and a dot."""
NOT_OF_POINTS = ("seed",)
"""Fields that differ between trials of one point."""
MOST_SETTINGS = 12
"""Points of different methods differ in many fields: the first ones, in the recipe's order, become params."""


def differing(recipes: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The fields in which recipes differ: short name to path (`{"corner_tokens": "method.text.corner_tokens"}`).

    `recipes` are nested mappings of JSON values. A field that some of them do not have counts if it differs among the
    others. The short name is the shortest end of the path that is no end of another differing path. A single word (`name`,
    `kind`, `train`) would read as the point's own: the part before it belongs to the name (`image.name`; `recipe.name` of the
    recipe itself).
    """
    values: dict[str, list[Any]] = {}
    for recipe in recipes:
        for path, value in flat(recipe).items():
            known = values.setdefault(path, [])
            if value not in known:
                known.append(value)
    paths = [path for path, known in values.items() if len(known) > 1 and path not in NOT_OF_POINTS]
    return {_short(path, paths): path for path in paths}


def _short(path: str, paths: Sequence[str]) -> str:
    parts = ["recipe", *path.split(".")]
    fewest = 1 if "_" in parts[-1] else 2
    ends = (".".join(parts[-count:]) for count in range(fewest, len(parts) + 1))
    others = [f".recipe.{other}" for other in paths if other != path]
    return next((end for end in ends if not any(other.endswith(f".{end}") for other in others)), path)


class PointSettings:
    """The settings of a sweep's points, and each trial's place in the order of its table.

    `points` are all of the sweep's, not only those that run: the names must not change when it is continued with others.
    """

    def __init__(self, points: Sequence[Point]) -> None:
        self._paths = dict(list(differing(_recipes(points)).items())[:MOST_SETTINGS])
        self._order = [name for point in points for name in point.rows]

    def columns(self, points: Sequence[Point]) -> list[str]:
        """The params by which the trials of some points are told apart: `point`, and the settings in which these differ."""
        differ = set(differing(_recipes(points)).values())
        return [POINT, *(f"{POINT}.{name}" for name, path in self._paths.items() if path in differ)]

    def params(self, planned: Planned, chosen: str = "") -> dict[str, str]:
        """`point` and `point.<name>` of a trial. A follow-up has its point's settings, by which the point's row is known.

        `chosen` is the candidate that the point has chosen, if it has candidates.
        """
        values = flat(self._recipe(planned, chosen).as_dict())
        settings = {f"{POINT}.{name}": shown(values[path]) for name, path in self._paths.items() if path in values}
        return {POINT: planned.row, **settings}

    def place(self, planned: Planned) -> str:
        """A text that sorts a sweep's trials by their rows, then by their seeds. A candidate stands with its point."""
        row = planned.point.name if planned.candidate else planned.row
        return f"{self._order.index(row):04d}.{planned.seed:04d}"

    @staticmethod
    def _recipe(planned: Planned, chosen: str) -> Recipe:
        point = planned.point
        if planned.row not in point.all_follow_ups:
            return planned.recipe
        return next((one.recipe for one in point.candidates if one.name == chosen), point.recipe)


def _recipes(points: Sequence[Point]) -> list[dict[str, Any]]:
    recipes = [recipe for point in points for recipe in (point.recipe, *(c.recipe for c in point.candidates))]
    return [recipe.as_dict() for recipe in recipes]


def shown(value: Any) -> str:
    """A recipe's value as people read it: a list by its items, `none` for nothing."""
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value)) or "none"
    return "none" if value in (None, "") else str(value)
