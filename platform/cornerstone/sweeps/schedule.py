"""Which trials of a sweep can run next: candidates first, then the seeds of the chosen recipe, then follow-ups.

Nothing here starts anything. The caller runs what is ready, adds the results, and asks again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.recipe import Recipe
from cornerstone.sweeps.points import Candidate, FollowUp, Point
from cornerstone.sweeps.state import TrialResult


@dataclass(frozen=True)
class Planned:
    """A trial to run: the name under which it is recorded, the seed's number, and the recipe with its seed set."""

    point: Point
    row: str
    seed: int
    recipe: Recipe
    candidate: str = ""
    """The candidate's name if the trial decides which recipe the point uses."""

    @property
    def key(self) -> tuple[str, int]:
        """What identifies the trial within its sweep."""
        return self.row, self.seed


class Schedule:
    """The trials of the points at seeds 0 to `seeds` - 1.

    `choices` holds the chosen candidate of each point as soon as it is known. A choice that an earlier start of the
    sweep made is passed in and stays.
    """

    def __init__(self, points: Sequence[Point], seeds: int, choices: Mapping[str, str] | None = None) -> None:
        self._points, self._seeds = points, seeds
        self.choices = dict(choices or {})
        self._results: dict[tuple[str, int], TrialResult] = {}
        for point in points:
            names = [candidate.name for candidate in point.candidates]
            chosen = self.choices.get(point.name)
            if chosen is not None and chosen not in names:
                raise CornerstoneError(
                    f"The sweep chose candidate {chosen!r} for point {point.name!r}, whose candidates are now "
                    f"{', '.join(names) or 'none'}: start a new sweep without --continue."
                )

    @property
    def rows(self) -> dict[str, str]:
        """For each trial's name, in order, its row of the table."""
        return {name: row for point in self._points for name, row in point.rows.items()}

    @property
    def trials(self) -> int:
        """How many trials there are in all."""
        return sum(len(p.rows) * self._seeds + max(len(p.candidates) - 1, 0) for p in self._points)

    @property
    def ended(self) -> int:
        """How many of them have a result."""
        return len(self._results)

    def ready(self) -> list[Planned]:
        """The trials that have no result yet and depend on none that is missing."""
        found = [planned for seed in range(self._seeds) for point in self._points for planned in self._of(point, seed)]
        return [planned for planned in found if planned.key not in self._results]

    def add(self, planned: Planned, result: TrialResult) -> None:
        """Record the result of a trial that was ready."""
        self._results[planned.key] = result

    def is_superseded(self, planned: Planned) -> bool:
        """Whether the trial is a candidate of a point that has already chosen another one: it must not run again."""
        chosen = self.choices.get(planned.point.name)
        return bool(planned.candidate) and chosen is not None and chosen != planned.candidate

    def results(self) -> list[TrialResult]:
        """The results of all trials that stand in the table. A point whose candidates all failed has a result that says so."""
        found = [
            self._result(point, row, seed)
            for seed in range(self._seeds)
            for point in self._points
            for row in point.rows
        ]
        return [result for result in found if result is not None]

    def notes(self) -> list[str]:
        """For each point with candidates: which one was chosen, and the values of all of them."""
        notes = []
        for point in self._points:
            values = ", ".join(f"{c.name}: {self._described(point, c)}" for c in point.candidates)
            if chosen := self.choices.get(point.name):
                notes.append(
                    f"{point.name!r} uses candidate {chosen!r}, chosen at the first seed by {point.chosen_by} ({values})."
                )
            elif values:
                notes.append(f"{point.name!r} has chosen no candidate by {point.chosen_by} ({values}).")
        return notes

    def _of(self, point: Point, seed: int) -> Iterator[Planned]:
        """The point's trials at a seed whose inputs are known."""
        if point.candidates and seed == 0:
            for candidate in point.candidates:
                row = point.candidate_row(candidate.name)
                yield Planned(point, row, seed, _seeded(candidate.recipe, seed), candidate.name)
        elif not point.candidates:
            yield Planned(point, point.name, seed, _seeded(point.recipe, seed))
        elif chosen := self._choice(point):
            yield Planned(point, point.name, seed, _seeded(chosen.recipe, seed))
        yield from self._following(point, point.name, point.follow_ups, seed)

    def _following(self, point: Point, before: str, follow_ups: Sequence[FollowUp], seed: int) -> Iterator[Planned]:
        """What starts from the model of the trial `before`, as far as it has ended."""
        parent = self._result(point, before, seed)
        if parent is None or not parent.finished:
            return
        for follow_up in follow_ups:
            row = f"{before} → {follow_up.name}"
            try:
                yield Planned(point, row, seed, _seeded(follow_up.recipe(parent.model), seed))
            except CornerstoneError as error:  # one follow-up that cannot be made does not stop the sweep
                self._results[row, seed] = TrialResult(row, seed, "", error=str(error))
            yield from self._following(point, row, follow_up.follow_ups, seed)

    def _result(self, point: Point, row: str, seed: int) -> TrialResult | None:
        if row != point.name or seed or not point.candidates:
            return self._results.get((row, seed))
        chosen = self._choice(point)
        if chosen is not None:
            result = self._results.get((point.candidate_row(chosen.name), seed))
            return None if result is None else replace(result, point=point.name)
        ended = [self._results.get((point.candidate_row(c.name), seed)) for c in point.candidates]
        if any(result is None for result in ended):
            return None
        reasons = "; ".join(f"{c.name}: {self._described(point, c)}" for c in point.candidates)
        return TrialResult(point.name, seed, "", error=f"no candidate was chosen by {point.chosen_by} ({reasons})")

    def _choice(self, point: Point) -> Candidate | None:
        """The chosen candidate; None before all candidates have ended, or if none of them has the metric."""
        if point.name not in self.choices:
            results = [self._results.get((point.candidate_row(c.name), 0)) for c in point.candidates]
            if any(result is None or result.stopped for result in results):
                return None
            measured = [c for c in point.candidates if not math.isnan(self._value(point, c))]
            if not measured:
                return None
            # max returns the first of equal values
            self.choices[point.name] = max(measured, key=lambda c: self._value(point, c)).name
        return next(c for c in point.candidates if c.name == self.choices[point.name])

    def _value(self, point: Point, candidate: Candidate) -> float:
        """The metric that chooses; NaN if the candidate failed or does not have it."""
        result = self._results.get((point.candidate_row(candidate.name), 0))
        return math.nan if result is None or not result.finished else result.metrics.get(point.chosen_by, math.nan)

    def _described(self, point: Point, candidate: Candidate) -> str:
        result = self._results.get((point.candidate_row(candidate.name), 0))
        if result is not None and not result.finished:
            return f"failed, {result.error}"
        value = self._value(point, candidate)
        return "no value" if math.isnan(value) else f"{value:.2f}"


def _seeded(recipe: Recipe, seed: int) -> Recipe:
    return recipe.with_seed(recipe.seed + seed)
