"""What one Ray Train worker does: build the model, put it under ZeRO, stream, train, evaluate, save."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train import CheckpointUploadMode

from cornerstone.data import draws
from cornerstone.data.batch import Batch
from cornerstone.data.execution import ray_stream
from cornerstone.evaluation.evaluator import evaluate
from cornerstone.evaluation.judged import chance_of, intervals_of, metrics_of, per_query_table, queries_of
from cornerstone.evaluation.left_out import unusable_rows
from cornerstone.inference.saved_model import save_model
from cornerstone.models.image_tower import TimmTower, build_image_tower
from cornerstone.recipes.pairs import PairData
from cornerstone.tracking.board import BUILDING
from cornerstone.tracking.journal import Journal
from cornerstone.tracking.mlflow_records import metric_sender
from cornerstone.tracking.run_store import RunStore
from cornerstone.training.build import build_method, build_tower, length_buckets, unsharded
from cornerstone.training.deepspeed_engine import DeepSpeedEngine
from cornerstone.training.job import Job, checkpoint_name, steps_done
from cornerstone.training.live_metrics import LiveMetrics, run_labels
from cornerstone.training.loop import Metrics, Observer, train
from cornerstone.training.observers import CollapseWarning, ProgressReporter, Quarantine, StepMetrics
from cornerstone.training.system_metrics import SystemMetrics

Tell = Callable[[dict[str, Any]], None]
EVALUATED = "evaluated.json"
"""The evaluation that was made at a checkpoint, inside it."""


class Evaluated(NamedTuple):
    """The last evaluation: its metrics, on how many queries each was measured, what chance gives, and 95 % intervals."""

    metrics: Metrics
    queries: dict[str, int]
    chance: dict[str, float] = {}  # noqa: RUF012 - never changed; checkpoints of older versions have none
    intervals: dict[str, tuple[float, float]] = {}  # noqa: RUF012 - as `chance`


def run_worker(job: Job, tell: Tell) -> dict[str, Any]:
    """Train to the end, from the last checkpoint if there is one; rank 0's return value is the run's result."""
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    recipe, placement, layout = job.recipe, job.placement, job.layout(workers)
    torch.set_num_threads(_threads(job, context.get_local_world_size()))

    if rank == 0:
        tell({"state": BUILDING})
    checkpoint = ray.train.get_checkpoint()
    start = steps_done(Path(checkpoint.path).name) if checkpoint else 0
    stream = ray_stream(layout, start, ray.train.get_dataset_shard)  # its actors start while the model is built
    device = ray.train.torch.get_device()  # the CPU for a worker without a GPU, also where CUDA is visible
    tower = build_tower(job.prepared)
    model = build_method(job.prepared, tower, length_buckets(placement, device))
    engine = DeepSpeedEngine(
        model,
        recipe.optimization,
        placement.zero_stage,
        layout.share,
        recipe.precision,
        placement.micro_batch,
        device=device,
        gradient_reduction=recipe.gradient_reduction,
    )
    last = _resume(engine, checkpoint) if checkpoint else Evaluated({}, {})
    store = job.store(rank, lambda text: tell({"notice": text}))
    if rank == 0:
        tell({"restarts": store.restarts})
    write = _record(job, store, tell).write if rank == 0 else _nowhere
    every = max(1, min(50, recipe.optimization.steps // 20))
    steps, limit = recipe.optimization.steps, recipe.optimization.skipped_step_limit
    meter = StepMetrics(write, every, recipe.optimization.batch_size, steps, stream, limit)
    mean_loss = (lambda: meter.line.get("train/loss")) if workers > 1 else None
    shown: tuple[Observer, ...] = (
        ProgressReporter(tell, steps, _advice(job), stream, mean_loss),
        CollapseWarning(tell),
    )
    known = store.quarantined()
    quarantine, before = Quarantine(store.quarantine, recipe.data.bad_row_limit, every, known), len(known)
    live = LiveMetrics(
        run_labels(job.identity, rank),
        steps=steps,
        epochs=steps * recipe.optimization.batch_size / job.prepared.rows,
        restarts=store.restarts,
        line=lambda: meter.line,
        quarantined=lambda: quarantine.written + (before if rank == 0 else 0),
    )
    machine = None
    if rank == 0 and device.type == "cuda":
        machine = SystemMetrics(write, lambda text: tell({"notice": text}), start=start)
    observers: tuple[Observer, ...] = (
        meter,
        quarantine,
        live,
        *(shown if rank == 0 else ()),
        *([machine] if machine is not None else []),
    )

    def judge(done: int, batches: Iterable[tuple[int, Batch]]) -> Metrics:
        nonlocal last
        meter.check()
        last = _evaluate(job, engine, tower, batches, store, done, tell)
        return last.metrics

    def save(done: int, metrics: Metrics) -> None:
        meter.check()  # metrics may be logged less often than checkpoints are saved: no checkpoint may contain NaNs
        _save(engine, rank, done, last if metrics else Evaluated({}, {}))
        store.upload()

    try:
        train(
            engine,
            stream,
            recipe.optimization,
            start=start,
            seed=lambda step: int(draws.hashed(recipe.seed, "step", rank, step)[0]),
            checkpoint_every=placement.checkpoint_every,
            evaluate=judge,
            save=save,
            observers=observers,
        )
        model_uri = _export(job, engine, tower)
    finally:
        if machine is not None:
            machine.close()
        unsent = store.close()
    return {**last._asdict(), "model": model_uri, "unsent": unsent, "problem": store.problem}


def _nowhere(step: int, metrics: Mapping[str, float]) -> None:
    """Rank 0 alone records metrics."""


def _record(job: Job, store: RunStore, tell: Tell) -> Journal:
    """The recipe and the journal, which sends to the MLflow run that was opened for the job, if one was."""
    store.write_recipe(job.recipe.as_dict())
    address, run = job.identity.tracking, job.identity.mlflow_run
    if not run:
        return store.journal()
    return store.journal(partial(metric_sender, address, run, lambda text: tell({"notice": text})), destination=run)


def _advice(job: Job) -> str:
    """What helps if the steps wait for data."""
    actors = f"--placement.decode-actors above {job.placement.decode_actors}"
    image = job.recipe.method.image_tower
    if (
        image is not None
        and image.locked
        and isinstance(job.recipe.data, PairData)
        and not job.prepared.stored_features
    ):
        return f"a locked tower's features can be computed once (--recipe.data.features stored), or give {actors}."
    return f"give {actors}, on a machine or cluster with CPUs for them."


def _threads(job: Job, workers_here: int) -> int:
    """Ray gives a worker of half a CPU one thread; share the machine's cores among the workers on it instead.

    A sweep's concurrent trials are assumed to be spread evenly over the machines.
    """
    machines = len({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]})
    trials_here = math.ceil((job.placement.concurrent_trials or 1) / max(machines, 1))
    cores = len(os.sched_getaffinity(0))
    return job.placement.threads_per_worker or max(1, cores // max(workers_here * trials_here, 1))


def _resume(engine: DeepSpeedEngine, checkpoint: ray.train.Checkpoint) -> Evaluated:
    """Load a checkpoint; the evaluation that was made at it."""
    with checkpoint.as_directory() as folder:
        engine.load(folder)
        evaluated = Evaluated(**json.loads((Path(folder) / EVALUATED).read_text()))
        if dist.is_initialized():
            dist.barrier()  # nobody leaves while another rank still reads the shared download
    return evaluated


def _evaluate(
    job: Job,
    engine: DeepSpeedEngine,
    tower: TimmTower | None,
    batches: Iterable[tuple[int, Batch]],
    store: RunStore,
    done: int,
    tell: Tell,
) -> Evaluated:
    """Judge every set with the weights of now; rank 0 keeps the result of each query."""
    model = engine.whole_module(lambda: build_method(job.prepared, unsharded(tower, job.prepared)))
    texts = job.prepared.evaluation_texts
    model.eval()
    try:
        results = evaluate(
            model, batches, job.prepared.sets, texts.open() if texts is not None else None, engine.device, _gather
        )
    finally:
        model.train()
    if store.rank == 0:
        store.write_evaluation(done, per_query_table(results, job.prepared.sets))
        for losses in unusable_rows(results, job.prepared.sets, job.recipe.data.bad_row_limit):
            tell({"notice": losses})  # a trained model is not lost for its evaluation set
    return Evaluated(metrics_of(results), queries_of(results), chance_of(results), intervals_of(results))


def _save(engine: DeepSpeedEngine, rank: int, done: int, evaluated: Evaluated) -> None:
    """All ranks' shards become one checkpoint, which exists only when every rank's part has arrived.

    It is uploaded while training goes on; Ray Train then deletes the local folder, and a run ends after its last upload.
    """
    folder = tempfile.mkdtemp(prefix="checkpoint-")
    engine.save(folder, done)
    if rank == 0:
        (Path(folder) / EVALUATED).write_text(json.dumps(evaluated._asdict()))
    ray.train.report(
        {**evaluated.metrics, "step": done},
        checkpoint=ray.train.Checkpoint.from_directory(folder),
        checkpoint_dir_name=checkpoint_name(done),
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
    )


def _gather(value: Any) -> list[Any]:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def _export(job: Job, engine: DeepSpeedEngine, tower: TimmTower | None) -> str:
    """Write `model/`, which `cornerstone.load` opens. Every rank helps to gather the weights, the first one writes."""
    weights = engine.weights()
    if dist.is_initialized() and dist.get_rank() != 0:
        return ""
    recipe, folder = job.recipe, job.identity.folder.join("model")
    image = recipe.method.image_tower
    save_model(
        folder,
        engine.engine.module,
        recipe=recipe.as_dict(),
        tokenizer_json=job.prepared.tokenizer,
        image_tower=tower or (build_image_tower(image) if image is not None else None),
        state=weights,
        content=job.prepared.content,
    )
    return folder.uri
