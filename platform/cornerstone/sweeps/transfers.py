"""Transfer runs of a sweep: follow-ups of its points, and the floor and the ceiling that their numbers stand between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.towers import ImageTower
from cornerstone.recipes.transfers import (
    DialogueData,
    Stage,
    TaskData,
    TransferTask,
    from_run,
    from_scratch_like,
    stages,
)
from cornerstone.sweeps.points import FollowUp, Point, Sweep

FLOOR, CEILING = "random tower (floor)", "from scratch (ceiling)"
NOTES = (
    f"Transfer: heads on the frozen tower of each point, with the seed of its pre-training. {FLOOR!r}: the same heads on "
    f"random weights. {CEILING!r}: the same architecture trained on the task alone, the tower too.",
    "All heads of a task are trained alike, at one learning rate, which is chosen for no method. Where the ceiling is not "
    "above the floor, the steps are too few for the task to tell towers apart (--classification.steps and the like). So it is "
    "with retrieval, captions and dialogue of built-in scenes at their usual steps (docs/results.md).",
)


@dataclass(frozen=True)
class Transfers:
    """Data and schedule of each task that towers are transferred to."""

    classification: TaskData = field(default_factory=TaskData)
    retrieval: TaskData = field(default_factory=TaskData)
    caption: TaskData = field(default_factory=TaskData)
    dialogue: DialogueData = field(default_factory=DialogueData)

    def data_of(self, task: TransferTask) -> TaskData:
        """The task's own."""
        found: TaskData = getattr(self, task)
        return found

    def points(self, row: str, tasks: Sequence[TransferTask], tower: ImageTower, frozen: bool) -> list[Point]:
        """A point a task for a tower that is there, all in one row of the table."""
        found = []
        for task in tasks:
            first, *later = stages(task)
            recipe, data = first.recipe(tower, frozen, self.data_of(task), ""), self.data_of(task)
            found.append(Point(f"{row}: {task}", recipe, follow_ups=_later(later, tower, frozen, data, row), row=row))
        return found

    def follow_up(self, task: TransferTask, tower: ImageTower, frozen: bool, row: str, name: str = "") -> FollowUp:
        """The task on the tower of a trial's model, which was trained as `tower`; its numbers stand in the row `row`."""
        first, *later = stages(task)
        data = self.data_of(task)
        following = _later(later, from_run("", tower), frozen, data, row)
        return FollowUp(
            name or task, lambda model: first.recipe(from_run(model, tower), frozen, data, ""), row, following
        )


def _later(later: Sequence[Stage], tower: ImageTower, frozen: bool, data: TaskData, row: str) -> tuple[FollowUp, ...]:
    """The later stages of a transfer, each after the one before."""
    follow_ups: tuple[FollowUp, ...] = ()
    for stage in reversed(later):
        make = partial(stage.recipe, tower, frozen, data)
        follow_ups = (FollowUp(stage.name, make, row, follow_ups),)
    return follow_ups


@dataclass(frozen=True)
class TransferOptions(Transfers):
    """Options of an experiment that pre-trains: transfer of each point's tower."""

    transfer: tuple[TransferTask, ...] = ()
    """Tasks to which each point's frozen image tower is transferred after its pre-training; none if none is named. The
    numbers stand in the point's row, beside rows for a random tower and one that is trained on the task alone."""


def with_transfers(sweep: Sweep, options: TransferOptions) -> Sweep:
    """The sweep with follow-ups of every point, in its row, and with a floor and a ceiling of the same architecture.

    Raises CornerstoneError if a point's method has no image tower, or if the points' towers differ in their architecture.
    """
    if not options.transfer:
        return sweep
    towers = [from_scratch_like(_tower_of(point)) for point in sweep.points]
    if any(tower != towers[0] for tower in towers):
        raise CornerstoneError(
            "The points' image towers differ in their architecture, so they have no floor and no ceiling in common: leave "
            "out --transfer, and measure their models with experiments/transfer.py."
        )
    points = [_followed(point, options) for point in sweep.points]
    floor = options.points(FLOOR, options.transfer, towers[0], frozen=True)
    ceiling = options.points(CEILING, options.transfer, towers[0], frozen=False)
    return replace(sweep, points=[*points, *floor, *ceiling], notes=(*sweep.notes, *NOTES))


def _followed(point: Point, options: TransferOptions) -> Point:
    row, tower = point.row or point.name, _tower_of(point)
    follow_ups = (options.follow_up(task, tower, True, row) for task in options.transfer)
    return replace(point, follow_ups=(*point.follow_ups, *follow_ups))


def _tower_of(point: Point) -> ImageTower:
    tower = point.recipe.method.image_tower
    if tower is None:
        raise CornerstoneError(
            f"The method {point.recipe.method.kind!r} of point {point.name!r} has no image tower: leave out --transfer."
        )
    return tower
