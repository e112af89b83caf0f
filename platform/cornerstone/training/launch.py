"""One run on Ray Train: the driver's side of a job."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError, RunStopped
from cornerstone.evaluation.judged import details_of
from cornerstone.evaluation.tasks import EvaluationSet
from cornerstone.training.job import Job, checkpoint_name, steps_done

Tell = Callable[[dict[str, Any]], None]
SNAPSHOT = "checkpoint_manager_snapshot.json"


@dataclass(frozen=True)
class Outcome:
    """What a finished run gives: its last evaluation, and where its model and best checkpoint are."""

    metrics: dict[str, float]
    model: str
    checkpoint: str
    best_checkpoint: str
    unsent: int = 0
    problem: str = ""
    queries: dict[str, int] = field(default_factory=dict)
    """The number of queries behind each metric."""
    chance: dict[str, float] = field(default_factory=dict)
    """What a random choice would reach."""
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """The 95 % interval of each metric over its queries."""

    def details(self, sets: Iterable[EvaluationSet]) -> dict[str, dict[str, Any]]:
        """What belongs to each metric of some evaluation sets (`evaluation.judged.details_of`)."""
        return details_of(sets, self.metrics, self.queries, self.intervals, self.chance)


def latest_step(job: Job) -> int:
    """Steps done by the run's last committed checkpoint; 0 if there is none.

    Ray Train's snapshot is the commit: a checkpoint folder that it does not name is a partial upload.
    """
    snapshot = job.identity.checkpoints.join(job.identity.run, SNAPSHOT)
    if not snapshot.exists():
        return 0
    latest = json.loads(snapshot.read_text()).get("latest_checkpoint_result")
    return steps_done(latest["checkpoint_dir_name"]) if latest else 0


def last_good_checkpoint(job: Job) -> str:
    """A sentence that names the last checkpoint of a run that stopped: none is written after a loss that is not finite."""
    steps = latest_step(job)
    if not steps:
        return "No checkpoint had been written before."
    place = job.identity.checkpoints.join(job.identity.run, checkpoint_name(steps))
    return f"The last good checkpoint is from after step {steps:,}: {place}"


def launch(job: Job, tell: Tell) -> Outcome:
    """Run a job on Ray Train until its end; restarts resume from the last checkpoint, with the rows as planned.

    The name of the Ray Train run is the job's own UUID: launched again, the same job resumes.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(job.placement.health_check_interval))
    import ray.train
    from ray.train.torch import TorchTrainer

    from cornerstone.data.execution import execution_options, ray_datasets

    placement, best = job.placement, job.recipe.evaluation.best or None
    layout = job.layout(placement.workers)

    trainer = TorchTrainer(
        _worker,  # type: ignore[arg-type]  # Ray's annotation does not allow a return value
        train_loop_config={"job": job, "tell": tell},
        # Ray Train calls these in its controller at every start of the workers: the step to resume from enters here.
        datasets=ray_datasets(
            layout,
            partial(latest_step, job),
            placement.decode_actors,
            placement.cpus_per_decode_actor,
            placement.decode_actor.selector,
        ),
        dataset_config=ray.train.DataConfig(execution_options=execution_options(layout)),
        scaling_config=ray.train.ScalingConfig(  # type: ignore[call-arg]  # `label_selector` is Train V2's
            num_workers=placement.workers,
            use_gpu=placement.gpus > 0,
            resources_per_worker=placement.worker.resources,
            label_selector=placement.worker.selector or None,
        ),
        run_config=ray.train.RunConfig(
            name=job.identity.run,
            storage_path=_storage(job.identity.checkpoints),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=placement.keep_checkpoints,
                checkpoint_score_attribute=best,
                checkpoint_score_order="max",
            ),
            failure_config=ray.train.FailureConfig(max_failures=placement.max_failures),
        ),
    )
    result = trainer.fit()
    returned: dict[str, Any] = result.return_value  # type: ignore[attr-defined]  # of Train V2
    if "stopped" in returned:
        raise CornerstoneError(f"{returned['stopped']} {last_good_checkpoint(job)}")
    best_one = result.get_best_checkpoint(best, "max") if best else result.checkpoint
    return Outcome(
        metrics=returned["metrics"],
        model=returned["model"],
        checkpoint=result.checkpoint.path if result.checkpoint else "",
        best_checkpoint=best_one.path if best_one else "",
        unsent=returned["unsent"],
        problem=returned["problem"],
        queries=returned["queries"],
        chance=returned["chance"],
        intervals=returned["intervals"],
    )


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    from cornerstone.training.worker import run_worker

    try:
        return run_worker(config["job"], config["tell"])
    except RunStopped as reason:  # raised by all workers alike: a restart would meet the same reason
        return {"stopped": str(reason)}


def _storage(location: Location) -> str:
    location.make()
    return location.uri
