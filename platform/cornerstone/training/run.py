"""The run of `cornerstone train`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from rich.console import Console

from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.judged import metric_name
from cornerstone.recipes.options import RunOptions, again_with
from cornerstone.runtime.cluster import connect, interruptible, require, stoppable
from cornerstone.runtime.home import home
from cornerstone.secrets import redacted
from cornerstone.tracking.board import WORKERS, Board, Primary
from cornerstone.tracking.mlflow_pages import run_link, ui_command
from cornerstone.tracking.mlflow_records import Records
from cornerstone.tracking.progress import Progress
from cornerstone.tracking.source import source_tags
from cornerstone.training.epochs import resolved_options
from cornerstone.training.job import Identity, Job
from cornerstone.training.launch import Outcome, launch
from cornerstone.training.mlflow_run import close_run, open_run, reason
from cornerstone.training.prepare import Preparer
from cornerstone.training.prepared import Prepared

Say = Callable[..., None]
EXPERIMENT = "train"
IDENTITY = "recipe_hash"  # a file in the run's folder: hash and seed, which a resumed run must match


def train_one(options: RunOptions, resume: str, console: Console, name: str = "") -> Outcome:
    """Train a recipe to the end, or resume the interrupted run `resume` from its last checkpoint.

    `name` is the run's in MLflow, by default the recipe's with the first digits of the run's id. Raises CornerstoneError if
    there is no such run, or if its recipe was another one.
    """
    recipe, placement = resolved_options(options)
    # Paths may contain brackets, and a command that is printed must not be broken into lines.
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    preparer = Preparer(say)
    preparer.open_names(recipe)
    with connect(say):
        placement = require(placement, say)
        identity = Identity(run=resume) if resume else Identity()
        identity = replace(identity, sweep=EXPERIMENT, point=recipe.name)
        job = Job(preparer.prepare(recipe), placement, identity)
        _check_same_recipe(job, resume)
        say(f"run {identity.run}: recipe {job.prepared.recipe_hash}, {recipe.optimization.steps:,} steps")
        say(f"data {job.prepared.data.name}: {job.prepared.passes()}")
        if (chance := recipe.method.chance_loss(recipe.optimization.batch_size)) is not None:
            say(f"loss by chance: {chance:.2f} (ln {recipe.optimization.batch_size} for each contrastive term)")
        records = Records(EXPERIMENT, say=say)
        name = name or f"{recipe.name} {identity.run[:6]}"
        job = open_run(records, job, name, source_tags())
        board = Board(name, _primary(job.prepared))
        board.add(identity.run, name, steps=recipe.optimization.steps)
        progress, start = Progress(board, console), time.monotonic()
        how_to_continue = f"Continue with:\n  {again_with(sys.argv, '--resume', identity.run)}"
        try:
            with stoppable(how_to_continue, progress.say_last), progress:
                tell = progress.sender(identity.run)
                tell({"state": WORKERS})
                outcome = interruptible(partial(launch, job, tell))
                tell.ended(time.monotonic() - start, outcome.metrics)
        except SystemExit:
            close_run(records, job, None)
            raise
        except Exception as error:
            close_run(records, job, None, reason(error))
            raise CornerstoneError(f"Run {identity.run} failed: {reason(error)}\n{how_to_continue}") from error
        close_run(records, job, outcome)
        _say_where(records, job, say)
        return outcome


def _primary(prepared: Prepared) -> Primary | None:
    """What is shown of its evaluations: the metric that chooses its best checkpoint, or the first one."""
    shown = [
        Primary(metric_name(judged.name, metric.name), f"{judged.name} {metric.label}", metric.unit)
        for judged in prepared.sets
        for metric in judged.task.shown
    ]
    return next((one for one in shown if one.metric == prepared.recipe.evaluation.best), shown[0] if shown else None)


def _say_where(records: Records, job: Job, say: Say) -> None:
    """Print where the run is to be seen."""
    run, experiment = job.identity.mlflow_run, records.experiment_id
    if run is None or experiment is None:
        say(redacted(f"metrics: {job.identity.folder}/journal.jsonl"))
        return
    if not records.address.is_server:
        say(f"MLflow: start it with\n  {ui_command(records.address)}")
    say(f"run {job.identity.run}, in MLflow {run}:\n  {run_link(records.address, experiment, run)}")


def _check_same_recipe(job: Job, resume: str) -> None:
    """Raise CornerstoneError if the run to resume does not exist, or had another recipe or seed: its metrics belong to one."""
    path, now = job.identity.folder.join(IDENTITY), f"{job.prepared.recipe_hash} seed {job.recipe.seed}"
    if not resume:
        path.write_text(now)
        return
    if not path.exists():
        raise CornerstoneError(
            f"No run {resume!r} under {home().join('runs')}: --resume takes the id that was printed at its start."
        )
    before = path.read_text()
    if before != now:
        raise CornerstoneError(
            f"Run {resume} was started with another recipe or seed (hash {before}, now {now}): give the same "
            f"options again, or start a new run without --resume."
        )
