"""What one Ray Train worker does: build the model, put it under ZeRO, stream, train, save."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import torch
import torch.distributed as dist

from cornerstone.data import draws
from cornerstone.data.batches import EvaluationBatch
from cornerstone.data.execution import ray_stream
from cornerstone.evaluation.evaluator import evaluate
from cornerstone.inference.saved_model import save_model
from cornerstone.models.image_tower import TimmTower, build_image_tower
from cornerstone.tracking.journal import Journal
from cornerstone.tracking.mlflow_records import metric_sender
from cornerstone.tracking.run_store import RunStore
from cornerstone.training.build import build_method, build_tower, length_buckets
from cornerstone.training.engine import DeepSpeedEngine, pick_device
from cornerstone.training.job import Job, checkpoint_name, steps_done
from cornerstone.training.loop import Metrics, Observer, train
from cornerstone.training.observers import ProgressReporter, Quarantine, StepMetrics

Tell = Callable[[dict[str, Any]], None]
METRICS = "metrics.json"


def run_worker(job: Job, tell: Tell) -> dict[str, Any]:
    """Train to the end, from the last checkpoint where there is one; rank 0's return value is the run's result."""
    context = ray.train.get_context()
    rank = context.get_world_rank()
    recipe, layout = job.recipe, job.layout()
    torch.set_num_threads(_threads(job, context.get_local_world_size()))

    checkpoint = ray.train.get_checkpoint()
    start = steps_done(Path(checkpoint.path).name) if checkpoint else 0
    stream = ray_stream(layout, start, ray.train.get_dataset_shard)  # its actors start while the model is built
    tower = build_tower(job.prepared)
    model = build_method(job.prepared, tower, length_buckets(job.placement, pick_device()))
    engine = DeepSpeedEngine(model, recipe.optimization, job.placement.zero_stage, layout.share, recipe.precision)
    evaluated = _resume(engine, checkpoint) if checkpoint else Metrics()
    store = job.store(rank, lambda text: tell({"notice": text}))
    every = max(1, min(50, recipe.optimization.steps // 20))
    write: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None  # noqa: E731
    if rank == 0:
        store.write_recipe(recipe.as_dict())
        write = _open_journal(job, store, tell).write
    meter = StepMetrics(write, every, recipe.optimization.batch_size, recipe.optimization.steps, stream)
    observers: tuple[Observer, ...] = (
        meter,
        Quarantine(store.quarantine, recipe.data.bad_row_limit, every, store.quarantined()),
        *([ProgressReporter(tell, recipe.optimization.steps, _advice(job), stream)] if rank == 0 else []),
    )

    def judge(batches: Iterable[EvaluationBatch]) -> Metrics:
        meter.check()
        judged = engine.whole_module(partial(build_method, job.prepared, tower))
        judged.eval()
        try:
            tokenizer = job.prepared.texts.build()
            return evaluate(judged, batches, job.prepared.sets, tokenizer, engine.device, _gather)  # type: ignore[arg-type]
        finally:
            judged.train()

    def save(done: int, metrics: Metrics) -> None:
        meter.check()  # first, so that no checkpoint contains NaNs
        _save(engine, rank, done, metrics)
        store.upload()

    try:
        metrics = train(
            engine,
            stream,
            recipe.optimization,
            start=start,
            seed=lambda step: int(draws.hashed(recipe.seed, "step", rank, step)[0]),
            checkpoint_every=job.placement.checkpoint_every,
            evaluate=judge,
            save=save,
            observers=observers,
        )
        metrics = metrics or evaluated  # a run that was cut off after its last checkpoint has nothing left to measure
        model_uri = _export(job, engine, tower)
    finally:
        unsent = store.close()
    return {"metrics": metrics, "model": model_uri, "unsent": unsent, "problem": store.problem}


def _advice(job: Job) -> str:
    """What helps where the steps wait for data."""
    actors = f"--placement.decode-actors above {job.placement.decode_actors}"
    if job.recipe.method.image.locked and not job.prepared.features:
        return f"a locked tower's features can be computed once (--recipe.data.features stored), or give {actors}."
    return f"give {actors}, on a machine or cluster with CPUs for them."


def _threads(job: Job, workers_here: int) -> int:
    """Ray gives a worker of half a CPU one thread; the machine's cores, shared by the workers on it, are what is there."""
    return job.placement.threads_per_worker or max(1, len(os.sched_getaffinity(0)) // max(workers_here, 1))


def _resume(engine: DeepSpeedEngine, checkpoint: ray.train.Checkpoint) -> Metrics:
    """Go on from a checkpoint; the evaluation that was made at it."""
    with checkpoint.as_directory() as folder:
        engine.load(folder)
        metrics: Metrics = json.loads((Path(folder) / METRICS).read_text())
        if dist.is_initialized():
            dist.barrier()  # nobody leaves while another rank still reads the shared download
    return metrics


def _save(engine: DeepSpeedEngine, rank: int, done: int, metrics: Metrics) -> None:
    """All ranks' shards become one checkpoint, which exists only when every rank's part has arrived."""
    with tempfile.TemporaryDirectory() as folder:
        engine.save(folder, done)
        if rank == 0:
            (Path(folder) / METRICS).write_text(json.dumps(metrics))
        ray.train.report(
            {**metrics, "step": done},
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_dir_name=checkpoint_name(done),
        )


def _open_journal(job: Job, store: RunStore, tell: Tell) -> Journal:
    """The run's journal, which sends to the MLflow run that was opened for the job, if one was."""
    uri, run = job.identity.tracking_uri, job.identity.mlflow_run
    if not run:
        return store.journal()
    return store.journal(partial(metric_sender, uri, run, lambda text: tell({"notice": text})), destination=run)


def _gather(value: Any) -> list[Any]:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def _export(job: Job, engine: DeepSpeedEngine, tower: TimmTower | None) -> str:
    """Write `model/`, what `cornerstone.load` opens; every rank helps to gather the weights, the first one writes."""
    weights = engine.weights()
    if dist.is_initialized() and dist.get_rank() != 0:
        return ""
    recipe, folder = job.recipe, job.identity.folder.join("model")
    save_model(
        folder,
        engine.engine.module,
        config=recipe.method,
        recipe=recipe.as_dict(),
        tokenizer_json=job.prepared.tokenizer,
        image_tower=tower or build_image_tower(recipe.method.image),
        state=weights,
    )
    return folder.uri
