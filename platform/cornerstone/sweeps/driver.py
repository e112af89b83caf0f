"""Ray Tune runs the trials: each is a Tune function on the head that runs one Ray Train run."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from typing import Any

import ray
from rich.console import Console

from cornerstone.data.storage import Location
from cornerstone.recipes.placement import Placement
from cornerstone.sweeps.state import SweepState, TrialResult
from cornerstone.tracking.mlflow_records import Records
from cornerstone.tracking.progress import ProgressActor, ProgressPrinter, ProgressSender
from cornerstone.training.job import Job
from cornerstone.training.launch import Outcome, launch
from cornerstone.training.mlflow_run import close_run, open_run, reason

HEAD = {"node:__internal_head__": 0.001}  # a trial's driver takes no CPU and stays with the cluster's head


@dataclass(frozen=True)
class Trial:
    """A point at a seed, ready to run."""

    point: str
    seed: int
    job: Job

    @property
    def name(self) -> str:
        """How it is called in logs and in MLflow."""
        return f"{self.point}, seed {self.seed}"


def run_trials(
    trials: Sequence[Trial],
    state: SweepState,
    records: Records,
    parent: str | None,
    placement: Placement,
    console: Console,
) -> list[TrialResult]:
    """Run every trial that has no result yet, as many at a time as fit; one that fails stops no other.

    Returns the results of all of them, in order.
    """
    waiting = [trial for trial in trials if not _finished(state, trial)]
    if waiting:
        progress = ProgressActor.remote()  # type: ignore[attr-defined]
        names = [(trial.job.identity.run, trial.name) for trial in trials]
        opened = [_opened(trial, state.sweep, records, parent) for trial in waiting]
        try:
            with ProgressPrinter(progress, names, console):
                _tune(opened, state, progress, placement)
        finally:  # after Ctrl-C too: no run is left as if it still ran
            for trial in opened:
                _close(trial, state, records)
    unknown = "stopped before it had a result"
    return [
        state.result(t.job.identity.run) or TrialResult(t.point, t.seed, t.job.identity.run, error=unknown)
        for t in trials
    ]


def trials_at_a_time(placement: Placement) -> int:
    """How many trials the cluster holds, by what is counted for each."""
    if placement.concurrent_trials:
        return placement.concurrent_trials
    resources = ray.cluster_resources()
    fits = [resources.get("CPU", 0.0) / placement.trial_cpus]
    if placement.trial_gpus:
        fits.append(resources.get("GPU", 0.0) / placement.trial_gpus)
    return max(1, int(min(fits) + 1e-6))


def _tune(trials: Sequence[Trial], state: SweepState, progress: Any, placement: Placement) -> None:
    # Tune's own reporter and loggers would write a second record beside ours.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C is ours: we say how to go on
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)  # it looks for their files
    logging.getLogger("ray.tune.tune").setLevel(logging.WARNING)  # where its own state lies helps nobody
    from ray import tune

    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_trial, trials=tuple(trials), state=state, progress=progress), HEAD),
        param_space={"index": tune.grid_search(list(range(len(trials))))},
        tune_config=tune.TuneConfig(max_concurrent_trials=trials_at_a_time(placement), reuse_actors=False),
        run_config=tune.RunConfig(
            name=f"tune-{state.sweep}-{int(time.time())}", storage_path=_storage(state), verbose=0
        ),
    )
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # the console keeps its own hold on the terminal
        tuner.fit()


def _trial(config: dict[str, Any], trials: tuple[Trial, ...], state: SweepState, progress: Any) -> None:
    """One trial, in its own process on the head; its result is on disk before Tune hears of the end."""
    trial = trials[config["index"]]
    tell, start = ProgressSender(progress, trial.job.identity.run), time.monotonic()
    tell({"state": "starting"})
    result = TrialResult(trial.point, trial.seed, trial.job.identity.run)
    try:
        outcome = launch(trial.job, tell)
        result = replace(
            result,
            metrics=outcome.metrics,
            model=outcome.model,
            checkpoint=outcome.checkpoint,
            best_checkpoint=outcome.best_checkpoint,
            unsent=outcome.unsent,
            seconds=time.monotonic() - start,
        )
        tell({"state": f"done in {result.seconds:.0f} s"})
    except Exception as error:  # the other trials go on; the table and the log say what happened to this one
        result = replace(result, error=reason(error), seconds=time.monotonic() - start)
        tell({"state": f"FAILED: {result.error}"})
    state.save(result)


def _opened(trial: Trial, sweep: str, records: Records, parent: str | None) -> Trial:
    tags = {"cornerstone.sweep": sweep, "cornerstone.point": trial.point}
    return replace(trial, job=open_run(records, trial.job, trial.name, tags, parent))


def _close(trial: Trial, state: SweepState, records: Records) -> None:
    result = state.result(trial.job.identity.run)
    if result is not None and result.finished:
        paths = (result.model, result.checkpoint, result.best_checkpoint)
        close_run(records, trial.job, Outcome(result.metrics, *paths))
    else:
        close_run(records, trial.job, None, result.error if result else "")


def _finished(state: SweepState, trial: Trial) -> bool:
    result = state.result(trial.job.identity.run)
    return result is not None and result.finished


def _storage(state: SweepState) -> str:
    folder: Location = state.folder.join("tune")
    return folder.make().uri
