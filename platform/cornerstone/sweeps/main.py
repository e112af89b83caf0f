"""The door of every experiment file: parse, prepare, run the trials, show the table beside the paper's."""

from __future__ import annotations

import inspect
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.markup import escape

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.options import RunOptions, again_with, parse
from cornerstone.recipes.placement import Placement
from cornerstone.recipes.recipe import Recipe
from cornerstone.sweeps.points import Point, Sweep

Define = Callable[[Recipe], Sweep]


@dataclass(frozen=True)
class ExperimentOptions(RunOptions):
    """What an experiment file can be told beyond a single run."""

    seeds: int = 1
    """Seeds 0 to N-1 of every point. The table's errors are over seeds; the paper's effects need 5 to 8."""
    only: tuple[str, ...] = ()
    """Names of the points to run; all of them where none is named."""
    continue_: Annotated[str, tyro.conf.arg(name="continue", metavar="SWEEP")] = ""
    """Go on with an interrupted sweep: keep what is finished, resume or run the rest."""


def main(define: Define, arguments: Sequence[str] | None = None) -> None:
    """Run an experiment from the command line; exits with 0, or with a clear error and 1."""
    file = Path(inspect.getfile(define))
    module_doc = inspect.getdoc(inspect.getmodule(define)) or ""
    console = Console(file=sys.stdout, soft_wrap=not sys.stdout.isatty())
    try:
        options = parse(ExperimentOptions, sys.argv[1:] if arguments is None else arguments, file.name, module_doc)
        run_experiment(file.stem, define, options, console)
    except CornerstoneError as error:
        console.print(f"[bold red]Error:[/] {escape(str(error))}", highlight=False)
        raise SystemExit(1) from None
    except KeyboardInterrupt:  # before there was a sweep to go on with
        console.print("\nStopped while preparing. What is prepared is kept: run the same command again.")
        raise SystemExit(130) from None


def run_experiment(name: str, define: Define, options: ExperimentOptions, console: Console) -> None:
    """Run a sweep and show it; `name` is the experiment's name in MLflow."""
    recipe, placement = options.resolved()
    if options.seeds < 1:
        raise CornerstoneError(f"{options.seeds} seeds: expected 1 or more (--seeds).")
    sweep = define(recipe)
    points = sweep.only(options.only)
    if options.dry_run:
        from cornerstone.training.dry_run import dry_run

        for line in dry_run(points[0].recipe, placement, trials=len(points) * options.seeds, experiment=name):
            console.print(line, highlight=False, markup=False)
        return
    _Run(name, sweep, points, options, placement, console).go()


class _Run:
    """One start of a sweep, from a cluster to the table."""

    def __init__(
        self,
        name: str,
        sweep: Sweep,
        points: Sequence[Point],
        options: ExperimentOptions,
        placement: Placement,
        console: Console,
    ) -> None:
        from cornerstone.sweeps.state import SweepState, new_sweep_id

        self.name, self.sweep, self.points, self.options = name, sweep, points, options
        self.placement, self.console = placement, console
        self.say = partial(console.print, markup=False, highlight=False)  # names and paths may hold brackets
        self.state = SweepState.of(options.continue_ or new_sweep_id())

    def go(self) -> None:
        """Prepare, run, show. Ctrl-C and a stopped job say how to go on."""
        from cornerstone.runtime.cluster import connect, require, stoppable

        say = self.say
        with connect(say):
            require(self.placement, say)
            trials = self._trials(self._prepare())
            say(self._headline(len(trials)))
            with stoppable(f"What is finished is kept; go on with:\n  {self._command()}", say):
                self._run(trials)

    def _prepare(self) -> list[tuple[Point, int, Any]]:
        """Every point at every seed with all that its workers need; what the points share is prepared once."""
        from cornerstone.training.prepare import again, prepare

        first, prepared = None, []
        for seed in range(self.options.seeds):
            for point in self.points:
                recipe = point.recipe.with_seed(point.recipe.seed + seed)
                first = first or prepare(recipe, self.say)
                prepared.append((point, seed, again(first, recipe)))
        return prepared

    def _trials(self, prepared: list[tuple[Point, int, Any]]) -> list[Any]:
        """Trials with their identities: new ones, or those of the sweep that is continued."""
        from cornerstone.sweeps.driver import Trial
        from cornerstone.sweeps.state import TrialRecord
        from cornerstone.training.job import Identity, Job

        known: dict[tuple[str, int], TrialRecord] = {}
        if self.options.continue_:
            known = {(t.point, t.seed): t for t in self.state.read(self.name)}
        trials, records = [], []
        for point, seed, ready in prepared:
            before = known.pop((point.name, seed), None)
            if before and (before.recipe_hash, before.eval_hash) != (ready.recipe_hash, ready.eval_hash):
                raise CornerstoneError(
                    f"Sweep {self.state.sweep} ran {point.name!r} with another recipe (hash {before.recipe_hash}, now "
                    f"{ready.recipe_hash}): give the same options as then, or start a new sweep without --continue."
                )
            run = before.run if before else uuid.uuid4().hex
            trials.append(Trial(point.name, seed, Job(ready, self.placement, Identity(run=run))))
            records.append(TrialRecord(point.name, seed, run, ready.recipe_hash, ready.eval_hash))
        self.state.write(self.name, [*records, *known.values()])  # points left out by --only stay in the sweep
        return trials

    def _run(self, trials: list[Any]) -> None:
        from cornerstone.sweeps.driver import run_trials
        from cornerstone.sweeps.results import Results
        from cornerstone.tracking.mlflow_records import Records
        from cornerstone.training.mlflow_run import git_commit

        records = Records(self.name, say=self.say)
        tags = {
            "cornerstone.sweep": self.state.sweep,
            "cornerstone.git_commit": git_commit(),
            "cornerstone.parent": "true",
        }
        prepared = trials[0].job.prepared
        parent = records.find("cornerstone.parent_of", self.state.sweep)
        if parent is None:  # a continued sweep has its description, and MLflow's params never change
            name = f"{self.name} {self.state.sweep}"
            parent = records.start(name, {**tags, "cornerstone.parent_of": self.state.sweep})
            points = [point.name for point in self.points]
            records.describe(
                parent,
                params={"preset": self.options.preset, "points": points, "seeds": self.options.seeds},
                recipe=prepared.recipe.as_dict(),
                data=prepared.described(),
            )
        try:
            results = run_trials(trials, self.state, records, parent, self.placement, self.console)
        except KeyboardInterrupt:
            records.finish(parent, "KILLED")
            raise
        shown = Results(self.name, self.state, self.sweep, prepared, results)
        shown.show(self.console)
        for path in shown.write():
            records.artifact(parent, path)
        failed = [r for r in results if not r.finished]
        records.finish(parent, "FAILED" if failed else "FINISHED")
        shown.say_where(self.console, records)
        if failed:
            self.say(f"Run what is missing with:\n  {self._command()}")
            raise SystemExit(1)

    def _headline(self, trials: int) -> str:
        optimization = self.points[0].recipe.optimization
        return (
            f"sweep {self.state.sweep}: {trials} trials = {len(self.points)} points × {self.options.seeds} seeds, "
            f"{optimization.steps:,} steps × {optimization.batch_size:,} pairs each, {self.placement.workers} workers a trial"
        )

    def _command(self) -> str:
        """The same command with --continue, as it would be typed."""
        return again_with(sys.argv, "--continue", self.state.sweep)
