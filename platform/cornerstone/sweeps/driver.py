"""Running trials with Ray Tune: each trial is a function on the head node that starts one Ray Train run."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cornerstone.data.storage import Location
from cornerstone.recipes.placement import Placement
from cornerstone.sweeps.room import AsRoomAllows, trials_at_a_time
from cornerstone.sweeps.state import STOPPED, SweepState, TrialResult
from cornerstone.tracking.address import Address
from cornerstone.tracking.board import WORKERS
from cornerstone.tracking.mlflow_records import Records
from cornerstone.tracking.progress import Progress, ProgressSender
from cornerstone.training.job import Job
from cornerstone.training.launch import Outcome, launch
from cornerstone.training.mlflow_run import close_run, open_run, reason

RECORD_PATIENCE = 60.0  # seconds for a call to MLflow: importing it on a busy machine takes ten
HEAD = {"node:__internal_head__": 0.001}  # a trial's driver runs on the head node and reserves no CPU


@dataclass(frozen=True)
class Trial:
    """A row of the table (or a candidate) at a seed, with the job that it runs."""

    point: str
    seed: int
    job: Job
    params: Mapping[str, str] = field(default_factory=dict)
    """What distinguishes it from the sweep's other trials, in MLflow."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Tags of its run in MLflow."""

    @property
    def name(self) -> str:
        """Its name in logs and in MLflow."""
        return f"{self.point}, seed {self.seed}"


def run_trials(
    trials: Sequence[Trial],
    state: SweepState,
    records: Records,
    parent: str | None,
    placement: Placement,
    progress: Progress,
) -> list[TrialResult]:
    """Run all trials that are not finished yet, as many at a time as fit. A trial that fails does not stop the others.

    Returns the results of all trials, in order.
    """
    board = progress.board
    for trial in trials:
        run = trial.job.identity.run
        board.add(run, trial.name, row=trial.point, steps=trial.job.recipe.optimization.steps)
        if (result := state.result(run)) is not None and result.finished:
            board.end(run, result.metrics, result.seconds)
    waiting = [trial for trial in trials if not _finished(state, trial)]
    if waiting:
        board.at_a_time = at_a_time = min(trials_at_a_time(placement), len(waiting))
        shared = replace(placement, concurrent_trials=at_a_time)  # by which workers share a machine's cores
        waiting = [replace(trial, job=replace(trial.job, placement=shared)) for trial in waiting]
        for trial in waiting:
            state.forget(trial.job.identity.run)  # how an earlier start failed says nothing about this one
        opener = _start_opener(records, tuple(waiting), state.sweep, parent, progress.actor)
        try:
            room = AsRoomAllows(len(waiting), placement, board)
            try:
                _tune(waiting, state, progress.actor, room, opener)
            finally:
                room.close()
        finally:  # also after Ctrl-C: otherwise MLflow would show the runs as running
            _call(opener.close_rest)
    results = [
        state.result(t.job.identity.run) or TrialResult(t.point, t.seed, t.job.identity.run, error=STOPPED)
        for t in trials
    ]
    for result in results:
        if result.stopped:  # its process was killed, and has told nobody
            progress.sender(result.run).ended(result.seconds, {}, result.error)
    return results


def _tune(trials: Sequence[Trial], state: SweepState, progress: Any, room: AsRoomAllows, opener: Any) -> None:
    # Without this, Tune's own reporter and loggers write a second record of each trial.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # runtime.cluster.stoppable handles Ctrl-C
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)  # it warns of missing files
    logging.getLogger("ray.tune.tune").setLevel(logging.WARNING)  # it logs the path of its own state
    from ray import tune

    trial = tune.with_parameters(_trial, trials=tuple(trials), state=state, progress=progress, opener=opener)
    tuner = tune.Tuner(
        tune.with_resources(trial, HEAD),
        tune_config=tune.TuneConfig(
            search_alg=room, num_samples=len(trials), max_concurrent_trials=len(trials), reuse_actors=False
        ),
        run_config=tune.RunConfig(
            name=f"tune-{state.sweep}-{int(time.time())}", storage_path=_storage(state), verbose=0
        ),
    )
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # our console holds the terminal itself
        tuner.fit()


def _trial(config: dict[str, Any], trials: tuple[Trial, ...], state: SweepState, progress: Any, opener: Any) -> None:
    """One trial, in its own process on the head node. Its result is on disk before Tune sees the end of the trial."""
    trial, outcome = trials[config["index"]], None
    tell, start = ProgressSender(progress, trial.job.identity.run), time.monotonic()
    tell({"state": "starting"})
    result = TrialResult(trial.point, trial.seed, trial.job.identity.run)
    try:
        job = _call(opener.open, config["index"]) or trial.job
        tell({"state": WORKERS})
        outcome = launch(job, tell)
        result = replace(
            result,
            metrics=outcome.metrics,
            model=outcome.model,
            checkpoint=outcome.checkpoint,
            best_checkpoint=outcome.best_checkpoint,
            unsent=outcome.unsent,
            queries=outcome.queries,
            chance=outcome.chance,
            intervals=outcome.intervals,
            seconds=time.monotonic() - start,
        )
    except Exception as error:  # the other trials continue; the table and the log show this one's error
        result = replace(result, error=reason(error), seconds=time.monotonic() - start)
    state.save(result)
    tell.ended(result.seconds, result.metrics, result.error)
    _call(opener.close, config["index"], outcome, result.error)


@ray.remote(num_cpus=0)
class _Opener:
    """Opens each trial's MLflow run when the trial starts, and closes it when the trial ends, so that MLflow shows its times.

    One process for all trials, since importing MLflow takes seconds.
    """

    def __init__(
        self,
        experiment: str,
        address: Address,
        trials: tuple[Trial, ...],
        sweep: str,
        parent: str | None,
        progress: Any,
    ) -> None:
        runs = [trial.job.identity.run for trial in trials]
        tell = ProgressSender(progress, runs[0])
        self.records = Records(experiment, address, lambda text: tell({"notice": text}))
        self.trials, self.sweep, self.parent = trials, sweep, parent
        self.open_jobs: dict[int, Job] = {}

    def open(self, index: int) -> Job:
        """The trial's job with its MLflow run, which starts now."""
        trial = self.trials[index]
        tags = {"cornerstone.sweep": self.sweep, "cornerstone.point": trial.point, **trial.tags}
        job = open_run(self.records, trial.job, trial.name, tags, self.parent, trial.params)
        self.open_jobs[index] = job
        return job

    def close(self, index: int, outcome: Outcome | None, error: str) -> None:
        """The trial ended."""
        job = self.open_jobs.pop(index, None)
        if job is not None:
            close_run(self.records, job, outcome, error)

    def close_rest(self) -> None:
        """The sweep ended, or was stopped: close what no trial has closed."""
        for index in list(self.open_jobs):
            self.close(index, None, "")


def _start_opener(records: Records, trials: tuple[Trial, ...], sweep: str, parent: str | None, progress: Any) -> Any:
    """On the driver's own node, where a SQLite file is the driver's."""
    here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=False)
    options = _Opener.options(scheduling_strategy=here)  # type: ignore[attr-defined]
    return options.remote(records.experiment, records.address, trials, sweep, parent, progress)


def _call(method: Any, *arguments: Any) -> Any:
    """Call the actor; None if it died: records never stop a trial."""
    try:
        return ray.get(method.remote(*arguments), timeout=RECORD_PATIENCE)
    except (RayError, TimeoutError):
        return None


def _finished(state: SweepState, trial: Trial) -> bool:
    result = state.result(trial.job.identity.run)
    return result is not None and result.finished


def _storage(state: SweepState) -> str:
    folder: Location = state.folder.join("tune")
    return folder.make().uri
