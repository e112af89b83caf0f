"""One start of a sweep: prepare its trials, run them as the schedule allows, show the table."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console

from cornerstone.errors import CornerstoneError, did_you_mean
from cornerstone.evaluation.sets import metric_names
from cornerstone.recipes.options import again_with
from cornerstone.recipes.placement import Placement
from cornerstone.runtime import cluster
from cornerstone.runtime.git import git_state
from cornerstone.secrets import redacted
from cornerstone.sweeps import driver
from cornerstone.sweeps.best_model import best_model, best_trial
from cornerstone.sweeps.points import Point, Sweep
from cornerstone.sweeps.results import Results
from cornerstone.sweeps.schedule import Planned, Schedule
from cornerstone.sweeps.settings import PointSettings
from cornerstone.sweeps.state import STOPPED, SweepState, TrialRecord, TrialResult, new_sweep_id
from cornerstone.sweeps.variants import in_rows
from cornerstone.tracking.board import Board, Primary
from cornerstone.tracking.mlflow_pages import trials_link, ui_command
from cornerstone.tracking.mlflow_records import Records
from cornerstone.tracking.mlflow_view import PLACE
from cornerstone.tracking.progress import Progress
from cornerstone.tracking.source import source_tags
from cornerstone.training.job import Identity, Job
from cornerstone.training.prepare import Preparer
from cornerstone.training.prepared import Prepared

if TYPE_CHECKING:
    from cornerstone.sweeps.main import ExperimentOptions

Round = list[tuple[Planned, driver.Trial]]
"""Trials that can run at the same time."""


class SweepRun:
    """A sweep that is started or continued."""

    def __init__(
        self,
        name: str,
        sweep: Sweep,
        points: Sequence[Point],
        options: ExperimentOptions,
        placement: Placement,
        console: Console,
    ) -> None:
        self.name, self.sweep, self.points, self.options = name, sweep, points, options
        self.placement, self.console = placement, console
        # Names and paths may contain brackets, and a command that is printed must not be broken into lines.
        self.say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
        self.state = SweepState.of(options.continue_ or new_sweep_id())
        self.preparer = Preparer(self.say)
        self.settings = PointSettings(sweep.points)
        self.prepared: dict[str, Prepared] = {}
        """What was prepared for each row and each candidate."""
        self.known: dict[tuple[str, int], TrialRecord] = {}
        """Trials of an earlier start that this one has not taken up yet."""
        self.records: list[TrialRecord] = []

    def run(self) -> None:
        """Prepare, run, show. If it is interrupted, it says how to continue."""
        for point in self.points:
            self.preparer.open_names(point.recipe)
        with cluster.connect(self.say):
            self.placement = cluster.require(self.placement, self.say)
            first = self._start()
            self.say(self._headline())
            progress = Progress(Board(f"{self.name} {self.state.sweep}", self._primary()), self.console)
            how_to_continue = f"Finished trials are kept; continue with:\n  {self._command()}"
            with cluster.stoppable(how_to_continue, progress.say_last):
                self._run_rounds(first, progress)

    def _start(self) -> Round:
        """The trials that can run at once. All are prepared before the first one starts, so that mistakes show early."""
        choices: dict[str, str] = {}
        if self.options.continue_:
            self.known = {(t.point, t.seed): t for t in self.state.read(self.name)}
            choices = self.state.choices(self.name)
        names = {point.name for point in self.points}
        self.other_choices = {point: choice for point, choice in choices.items() if point not in names}
        own = {point: choice for point, choice in choices.items() if point in names}
        self.schedule = Schedule(self.points, self.options.seeds, own)
        first = [(planned, self._trial(planned)) for planned in self.schedule.ready()]
        self._write()
        return first

    def _run_rounds(self, trials: Round, progress: Progress) -> None:
        records, parent = Records(self.name, say=self.say), None
        try:
            parent = self._parent(records, trials[0][1].job.prepared)
            self._share_view(self._results(replace(self.sweep, claim=None)), records, parent)
            self._say_page(records, parent)
            with progress:
                while trials:
                    self._run_round(trials, records, parent, progress)
                    trials = self._next_round(progress.board)
                progress.board.later = 0  # what would follow a trial that failed
            self._show(records, parent)
        except KeyboardInterrupt:
            records.finish(parent, "KILLED")
            raise
        except Exception:
            records.finish(parent, "FAILED")
            raise

    def _say_page(self, records: Records, parent: str | None) -> None:
        """Where MLflow shows the trials from the first one on."""
        if parent is None or records.experiment_id is None:
            return
        address, sweep = records.address, self.state.sweep
        shown = trials_link(address, records.experiment_id, sweep) if address.is_server else ui_command(address, sweep)
        self.say(f"in MLflow, while it runs: {shown}")

    def _run_round(self, trials: Round, records: Records, parent: str | None, progress: Progress) -> None:
        to_run = []
        for planned, trial in trials:
            if self.schedule.is_superseded(planned):
                run = trial.job.identity.run
                lost = self.state.result(run) or TrialResult(planned.row, planned.seed, run, error=STOPPED)
                self.schedule.add(planned, lost)
            else:
                to_run.append((planned, trial))
        progress.board.later = self.schedule.trials - self.schedule.ended - len(to_run)
        results = driver.run_trials(
            [trial for _, trial in to_run], self.state, records, parent, self.placement, progress
        )
        for (planned, _), result in zip(to_run, results, strict=True):
            self.schedule.add(planned, result)

    def _next_round(self, board: Board) -> Round:
        """The trials that the finished ones made ready. One that cannot be prepared fails and does not stop the others."""
        found: Round = []
        while not found and (ready := self.schedule.ready()):
            for planned in ready:
                board.doing = f"preparing {planned.row}, seed {planned.seed}"
                try:
                    found.append((planned, self._trial(planned)))
                except CornerstoneError as error:
                    self.schedule.add(planned, TrialResult(planned.row, planned.seed, "", error=str(error)))
                    board.refuse(f"{planned.row}, seed {planned.seed}", str(error))
        board.doing = ""
        self._write()  # the choices too: a continued sweep must not choose again
        if found:
            self.say(f"sweep {self.state.sweep}: {len(found)} more trials, for which others had to end first")
        return found

    def _trial(self, planned: Planned) -> driver.Trial:
        """The trial with its identity: a new one, or that of the sweep that is continued."""
        ready = self.preparer.prepare(planned.recipe)
        self.prepared.setdefault(planned.row, ready)
        valid = metric_names(ready.sets)
        if planned.candidate and planned.point.chosen_by not in valid:
            raise CornerstoneError(
                f"Point {planned.point.name!r} chooses a candidate by {planned.point.chosen_by!r}, which is not measured"
                f"{did_you_mean(planned.point.chosen_by, valid) if valid else ': there is no evaluation set.'}"
            )
        self._check_row(planned, valid)
        before = self.known.get(planned.key)
        run = before.run if before else uuid.uuid4().hex
        record = TrialRecord(planned.row, planned.seed, run, ready.recipe_hash, ready.eval_hash, planned.recipe.seed)
        if before and before.identity != record.identity:
            raise CornerstoneError(
                f"Sweep {self.state.sweep} ran {planned.row!r} with another recipe (hash {before.recipe_hash}, seed "
                f"{before.recipe_seed}; now {record.recipe_hash}, seed {record.recipe_seed}): give the "
                f"same options as then, or start a new sweep without --continue."
            )
        self.known.pop(planned.key, None)
        self.records.append(record)
        identity = Identity(run=run, sweep=self.state.sweep, point=planned.row)
        params = self.settings.params(planned, self.schedule.choices.get(planned.point.name, ""))
        tags = {PLACE: self.settings.place(planned), **source_tags()}
        return driver.Trial(planned.row, planned.seed, Job(ready, self.placement, identity), params, tags)

    def _check_row(self, planned: Planned, measured: Sequence[str]) -> None:
        """Raise CornerstoneError if another trial of the same row of the table gives a metric of the same name."""
        rows = self.schedule.rows
        for other, ready in self.prepared.items():
            if other == planned.row or rows.get(other) != rows.get(planned.row, ""):
                continue
            if twice := set(measured).intersection(metric_names(ready.sets)):
                raise CornerstoneError(
                    f"{other!r} and {planned.row!r} share a row of the table, and both measure {min(twice)}: give one's "
                    f"evaluation set another name, OTHER=DIR."
                )

    def _primary(self) -> Primary | None:
        """The metric of the table's first column."""
        return next((Primary(*column) for column in self._results(replace(self.sweep, claim=None)).table.named), None)

    def _write(self) -> None:
        # Trials and choices of points that --only leaves out stay in the sweep.
        choices = {**self.other_choices, **self.schedule.choices}
        self.state.write(self.name, [*self.records, *self.known.values()], choices)

    def _parent(self, records: Records, prepared: Prepared) -> str | None:
        """The sweep's own MLflow run. A continued sweep has one, whose params cannot be changed."""
        parent = records.find("cornerstone.parent_of", self.state.sweep)
        if parent is not None:
            records.go_on(parent)
            return parent
        tags = {
            "cornerstone.sweep": self.state.sweep,
            "cornerstone.git_commit": git_state().short,
            "cornerstone.parent": "true",
            "cornerstone.parent_of": self.state.sweep,
            **source_tags(),
        }
        parent = records.start(f"{self.name} {self.state.sweep}", tags)
        points = [point.name for point in self.points]
        records.describe(
            parent,
            params={"preset": self.options.preset, "points": points, "seeds": self.options.seeds},
            recipe=prepared.recipe.as_dict(),
            data=prepared.described(),
        )
        return parent

    def _results(self, sweep: Sweep) -> Results:
        """What the trials have given so far."""
        results, rows = self.schedule.results(), self.schedule.rows
        described = {name: ready for name in rows if (ready := self._prepared_for(name)) is not None}
        variants = [variant.name for point in self.points for variant in point.variants]
        of_table, notes = list(dict.fromkeys([*rows.values(), *variants])), self.schedule.notes()
        by_row = in_rows(results, rows, self.points)
        return Results(self.name, self.state, sweep, described, by_row, rows=of_table, notes=notes)

    def _show(self, records: Records, parent: str | None) -> None:
        shown, results, rows = self._results(self.sweep), self.schedule.results(), self.schedule.rows
        shown.show(self.console)
        shown.write()
        version = self._register_best(records, shown)
        shown.record(records, parent, (self.registered_as, version) if version else None)
        self._share_view(shown, records, parent)  # again: follow-ups may have brought columns
        self._tag_chosen(records)
        complete = len(results) == len(rows) * self.options.seeds and all(result.finished for result in results)
        records.finish(parent, "FINISHED" if complete else "FAILED")
        shown.say_where(self.console, records, parent)
        if not complete:
            self.say(f"Run what is missing with:\n  {self._command()}")
            raise SystemExit(1)

    @property
    def registered_as(self) -> str:
        """The name of the best model: only sweeps of the same preset compete for it."""
        return f"{self.name}-{self.options.preset}"

    def _share_view(self, shown: Results, records: Records, parent: str | None) -> None:
        """Write the view of all trials; where this start leaves out points of an earlier one (--only), keep that one's view."""
        if not self.known:
            shown.share_view(records, parent, self.settings.columns(self.points))

    def _register_best(self, records: Records, shown: Results) -> str | None:
        """The version of the best row's model in MLflow's registry; None if this start leaves out points of an earlier one."""
        if self.known:
            return None
        best = best_trial(shown.table, shown.results)
        run = records.find("cornerstone.run", best.run) if best is not None else None
        if best is None or run is None:
            return None
        trial = next(one for one in self.records if one.run == best.run)
        try:
            metric = shown.table.named[0].metric
            return records.register(best_model(self.registered_as, self.state.sweep, metric, best, trial, run))
        except (OSError, ValueError) as error:
            self.say(
                f"The best model is not registered in MLflow: {redacted(best.model)} cannot be read ({redacted(str(error))})."
            )
            return None

    def _prepared_for(self, row: str) -> Prepared | None:
        """What was prepared for a row; for a point with candidates that of the chosen one, or of the first one."""
        point = next((point for point in self.points if point.name == row), None)
        if point is None or not point.candidates:
            return self.prepared.get(row)
        return self.prepared.get(point.candidate_row(self.schedule.choices.get(row, point.candidates[0].name)))

    def _tag_chosen(self, records: Records) -> None:
        """In MLflow, a chosen candidate's run is a run of its point."""
        runs = {result.point: result.run for result in self.schedule.results() if result.seed == 0}
        for point, candidate in self.schedule.choices.items():
            if run := runs.get(point):
                tags = {"cornerstone.point": point, "cornerstone.candidate": candidate}
                records.tag(records.find("cornerstone.run", run), tags)

    def _headline(self) -> str:
        optimizations = [point.recipe.optimization for point in self.points]
        sizes = list(dict.fromkeys(f"{o.steps:,} steps × {o.batch_size:,} rows" for o in optimizations))
        more = sum(max(len(point.candidates) - 1, 0) for point in self.points)
        follow_ups = sum(len(point.all_follow_ups) for point in self.points) * self.options.seeds
        terms = [
            f"{len(self.points)} points × {self.options.seeds} seeds",
            *([f"{more} more candidates"] if more else []),
            *([f"{follow_ups} follow-ups"] if follow_ups else []),
        ]
        return (
            f"sweep {self.state.sweep}: {self.schedule.trials} trials = {' + '.join(terms)}, {' or '.join(sizes)} each, "
            f"{self.placement.workers} workers a trial"
        )

    def _command(self) -> str:
        """The command that continues this sweep, as it would be typed."""
        return again_with(sys.argv, "--continue", self.state.sweep)
