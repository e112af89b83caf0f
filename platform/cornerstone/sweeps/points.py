"""A sweep: named points, each with a recipe, run at several seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from cornerstone.errors import CornerstoneError, did_you_mean
from cornerstone.recipes.recipe import Recipe
from cornerstone.sweeps.paper_table import PaperTable
from cornerstone.sweeps.table import Aside

if TYPE_CHECKING:
    from cornerstone.training.prepared import Prepared


@dataclass(frozen=True)
class Candidate:
    """One of the recipes that a point chooses from, for example one of three learning rates."""

    name: str
    recipe: Recipe


@dataclass(frozen=True)
class FollowUp:
    """A run that starts from a trial's model, for example a transfer run on its image tower.

    `recipe` gets the URI of the finished trial's model folder.
    """

    name: str
    recipe: Callable[[str], Recipe]
    row: str = ""
    """The row of the table in which its numbers stand, such as the point's; "" for one of its own, `POINT → NAME`."""
    follow_ups: tuple[FollowUp, ...] = ()
    """Runs that start from its own model, recorded as `POINT → NAME → NAME`."""


class Place(NamedTuple):
    """Where a row stands in the plot of a figure: on which curve, at which x."""

    curve: str
    x: float


@dataclass(frozen=True)
class Variant:
    """Another way to evaluate a point's trained model, with a row of its own; nothing is trained for it.

    The point's recipe must evaluate at `token_limit` (`Evaluation.token_limits`). The row holds what was measured there, in
    the columns of the same sets at the recipe's limit.
    """

    name: str
    token_limit: int
    places: tuple[Place, ...] = ()


@dataclass(frozen=True)
class Point:
    """One row of the table: its name, as the paper's row is named, and its recipe.

    With `candidates`, all of them run at the first seed. The one with the highest value of `chosen_by`
    (`eval/<set>/<metric>`; the first one if there is a tie) becomes the point's recipe at every seed, and its own run is
    the point's trial at the first seed. `recipe` then serves only for what is said before the sweep starts.

    `follow_ups` run after the point's trial of the same seed.
    """

    name: str
    recipe: Recipe
    candidates: tuple[Candidate, ...] = ()
    chosen_by: str = ""
    follow_ups: tuple[FollowUp, ...] = ()
    row: str = ""
    """The row of the table that it shares with other points of this `row`, which measure other things; "": one of its own."""
    variants: tuple[Variant, ...] = ()
    places: tuple[Place, ...] = ()
    """Where it stands in the plot; without any, all rows of the sweep are one curve, or a line of categories."""
    compared_with: str = ""
    """The point whose row its own is compared with; "": the sweep's baseline."""

    def __post_init__(self) -> None:
        measured = self.recipe.evaluation.token_limits
        if unmeasured := [v.token_limit for v in self.variants if v.token_limit not in measured]:
            raise CornerstoneError(
                f"Point {self.name!r} has a variant at token limit {unmeasured[0]}, at which its recipe does not evaluate: "
                f"add it to evaluation.token_limits (given: {', '.join(map(str, measured)) or 'none'})."
            )
        if bool(self.candidates) != bool(self.chosen_by):
            missing, given = ("chosen_by", "candidates") if self.candidates else ("candidates", "chosen_by")
            raise CornerstoneError(f"Point {self.name!r} has {given} but no {missing}: give both or none of them.")

    def candidate_row(self, candidate: str) -> str:
        """The name under which a candidate's trial is recorded."""
        return f"{self.name} ({candidate})"

    def follow_up_row(self, *follow_ups: str) -> str:
        """The name under which a follow-up's trial is recorded, given those that it follows, and itself."""
        return " → ".join((self.name, *follow_ups))

    @property
    def all_follow_ups(self) -> dict[str, FollowUp]:
        """Those of the point and those of follow-ups, by the names of their trials, each after what it follows."""

        def below(follow_ups: tuple[FollowUp, ...], *names: str) -> Iterator[tuple[str, FollowUp]]:
            for one in follow_ups:
                yield self.follow_up_row(*names, one.name), one
                yield from below(one.follow_ups, *names, one.name)

        return dict(below(self.follow_ups))

    @staticmethod
    def at_best_rate(name: str, recipe: Recipe) -> Point:
        """The recipe at half, once and twice its learning rate, of which the metric `recipe.evaluation.best` chooses one.

        Without such a metric at its own rate.
        """
        chosen_by, rate = recipe.evaluation.best, recipe.optimization.learning_rate
        if not chosen_by:
            return Point(name, recipe)
        rates = {f"lr × {factor:g}": factor * rate for factor in (0.5, 1.0, 2.0)}
        candidates = [Candidate(label, recipe.with_optimization(learning_rate=one)) for label, one in rates.items()]
        return Point(name, recipe, candidates=tuple(candidates), chosen_by=chosen_by)

    @property
    def rows(self) -> dict[str, str]:
        """For the name of each of its trials, its own first, the row of the table in which the numbers stand."""
        follow_ups = {name: one.row for name, one in self.all_follow_ups.items()}
        return {name: row or name for name, row in {self.name: self.row, **follow_ups}.items()}


@dataclass(frozen=True)
class Claim:
    """What a table is to show: `subject` (the point `point`) raises `measure`, the mean of some metrics (`verdict.MEASURES`).

    `control` names the point that lacks what the claim is about but has its side effect, `explanation` that side effect.
    The texts become parts of sentences: "{subject} raise long-text retrieval by 3.1 ± 1.2".
    """

    point: str
    subject: str
    control: str
    control_subject: str
    explanation: str
    measure: str = "long-text retrieval"


Asides = Callable[["Prepared", int], Sequence[Aside]]
"""Of what was prepared for a point, and a variant's token limit (0: the recipe's)."""


@dataclass(frozen=True)
class Sweep:
    """The points of one table or figure. `baseline` names the point that the others are compared with."""

    points: Sequence[Point]
    baseline: str
    paper: PaperTable | None = None
    notes: tuple[str, ...] = ()
    claim: Claim | None = None
    """What the table is to show; its verdict is printed below the table."""
    asides: Asides | None = None
    """What stands beside each row though no trial measures it."""
    x_label: str = ""
    """What the x axis of a plot with curves shows."""

    def __post_init__(self) -> None:
        names = [point.name for point in self.points]
        if len(set(names)) != len(names):
            raise CornerstoneError(f"Two points of the sweep have the same name: {', '.join(names)}.")
        if self.baseline not in (*names, *(point.row for point in self.points)):
            raise CornerstoneError(
                f"The baseline {self.baseline!r} is not a point of this sweep{did_you_mean(self.baseline, names)}"
            )
        for name in (self.claim.point, self.claim.control) if self.claim else ():
            if name not in names:
                raise CornerstoneError(f"The claim names {name!r}, which is not a point{did_you_mean(name, names)}")
        for other in filter(None, (point.compared_with for point in self.points)):
            if other not in names:
                raise CornerstoneError(f"A point is compared with {other!r}, which is none{did_you_mean(other, names)}")
        recorded = [
            row
            for p in self.points
            for row in (*p.rows, *(p.candidate_row(c.name) for c in p.candidates), *(v.name for v in p.variants))
        ]
        if twice := [row for row in recorded if recorded.count(row) > 1]:
            raise CornerstoneError(
                f"Two trials of the sweep are named {twice[0]!r}: rename a point, a candidate or a follow-up."
            )

    def only(self, names: Sequence[str]) -> list[Point]:
        """The points of those names, in the sweep's order; all of them if no name is given."""
        valid = [point.name for point in self.points]
        for name in names:
            if name not in valid:
                raise CornerstoneError(f"--only {name!r} is not a point of this sweep{did_you_mean(name, valid)}")
        return [point for point in self.points if not names or point.name in names]
