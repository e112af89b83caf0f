"""`--dry-run`: everything resolved, the model built, one batch through one step, and what a real run would do."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterator

import torch

from cornerstone.data.batch import Batch
from cornerstone.data.documents.batch import SequenceBatch
from cornerstone.data.layout import Layout
from cornerstone.data.pairs.batch import PairBatch
from cornerstone.data.stream import Stream
from cornerstone.recipes.pairs import PairData
from cornerstone.recipes.placement import Placement
from cornerstone.recipes.recipe import Recipe
from cornerstone.runtime.device import device_named
from cornerstone.runtime.home import home
from cornerstone.secrets import redacted
from cornerstone.tracking.address import tracking_address
from cornerstone.training.build import build_method, build_tower, length_buckets
from cornerstone.training.deepspeed_engine import REDUCE_BUCKET
from cornerstone.training.engine import PlainEngine
from cornerstone.training.prepare import Preparer
from cornerstone.training.schedule import learning_rate

TIMED_STEPS = 3


def dry_run(recipe: Recipe, placement: Placement, *, trials: int, experiment: str) -> Iterator[str]:
    """Lines that say what a run would be. The built-in scenes are made if they are missing; features are not."""
    lines: list[str] = []
    prepared = Preparer(lines.append, compute_features=False).prepare(recipe)
    yield from lines
    recipe = prepared.recipe
    optimization, layout = recipe.optimization, Layout(prepared.stream(), placement.workers)
    yield f"recipe      {recipe.name}, hash {prepared.recipe_hash}, evaluation {prepared.eval_hash}, seed {recipe.seed}"
    yield (
        f"data        {prepared.rows:,} {recipe.data.kind} of {prepared.data.name} ({prepared.data.location}), "
        f"{prepared.passes()}"
    )
    if isinstance(recipe.data, PairData) and recipe.data.features == "stored" and not prepared.stored_features:
        yield "features    none stored yet: a run computes them first; this step runs the tower online"
    sets = ", ".join(f"{s.name} ({s.task}, {s.rows:,})" for s in prepared.sets)
    every = recipe.evaluation.every
    yield f"evaluation  {sets or 'none'}; {f'every {every:,} steps' if every else 'at the end'}"

    torch.set_num_threads(placement.threads_per_worker or max(1, len(os.sched_getaffinity(0)) // placement.workers))
    placement = placement.on_cluster(torch.cuda.device_count())
    device = device_named("auto" if placement.gpus else "cpu")
    tower = build_tower(prepared)
    model = build_method(prepared, tower, length_buckets(placement, device)).to(device)
    engine = PlainEngine(model, optimization, recipe.precision, placement.micro_batch)
    batch = Stream.local(layout, worker=0, start=0).batch(0).to(device)
    loss = float(engine.step(batch, learning_rate(0, optimization)).loss)
    seconds = _timed(engine, batch)

    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    locked = sum(p.numel() for p in tower.parameters() if not p.requires_grad) if tower is not None else 0
    tokens = _tokens(batch)
    each = f"; {tokens / len(batch):.0f} tokens each" if tokens else ""
    yield f"model       {trained:,} trained parameters, {locked:,} locked (method {recipe.method.kind})"
    yield (
        f"batch       {optimization.batch_size:,} {recipe.data.kind} = {placement.workers} workers × {layout.share:,}"
        + (f" in micro-batches of {placement.micro_batch:,}" if 0 < placement.micro_batch < layout.share else "")
        + each
    )
    yield f"memory      {_memory(device)} for this step; weights, gradients and AdamW {_sharded(trained, placement)} a worker"
    yield (
        f"speed       loss {loss:.3f}; {seconds:.3f} s a step of {layout.share:,} on {_machine(device)}: "
        f"{len(batch) / seconds:,.0f} samples/s{f', {tokens / seconds:,.0f} tokens/s' if tokens else ''} a worker; "
        f"{optimization.steps:,} steps take {optimization.steps * seconds / 60:,.1f} min of computing"
    )
    yield f"placement   {placement.arithmetic()}; ZeRO stage {placement.zero_stage}, {recipe.precision}"
    minutes = optimization.steps * seconds / 60
    yield f"trials      {trials}" + (
        f": {trials * minutes:,.1f} min of computing, one after another" if trials > 1 else ""
    )
    folder = redacted(str(home()))
    yield f"records     MLflow experiment {experiment} at {tracking_address()}; runs, models and checkpoints under {folder}"
    image, text = recipe.method.image_tower, recipe.method.text_tower
    if (text is not None and text.dropout) or (image is not None and not image.locked and image.drop_path):
        yield "dropout     is on: numbers then depend on how many workers share a batch"
    yield "dry run     nothing was started and nothing recorded"


def _timed(engine: PlainEngine, batch: Batch) -> float:
    """Seconds of a step, the fastest of a few."""
    times = []
    for _ in range(TIMED_STEPS):
        start = time.perf_counter()
        float(engine.step(batch, 0.0).loss)  # waits for the device
        times.append(time.perf_counter() - start)
    return min(times)


def _tokens(batch: Batch) -> int:
    """Text tokens of a batch; 0 for other kinds of batch."""
    if isinstance(batch, PairBatch):
        return int(batch.raw_length.sum() + batch.long_length.sum())
    return int((batch.document >= 0).sum()) if isinstance(batch, SequenceBatch) else 0


def _sharded(trained: int, placement: Placement) -> str:
    """Bytes of a worker's training state under its ZeRO stage, as DeepSpeed holds it.

    A parameter has 16 bytes in fp32: value, gradient and AdamW's two moments. Stages 1 to 3 hold a second copy of the values
    besides, stage 3 also one of the gradients, and a buffer in which gradients are reduced. Measured on a CPU with one worker
    (DeepSpeed 0.19.8): 18, 19, 21 and 27 bytes a parameter.
    """
    kept, sharded = {0: (16, 0), 1: (8, 12), 2: (4, 16), 3: (0, 24)}[placement.zero_stage]
    buffer = 4 * REDUCE_BUCKET if placement.zero_stage else 0
    return _size(trained * (kept + sharded / placement.workers) + buffer)


def _memory(device: torch.device) -> str:
    if device.type == "cuda":
        return _size(torch.cuda.max_memory_allocated(device)) + " on the GPU"
    unit = 1 if sys.platform == "darwin" else 1024
    return _size(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit) + " (whole process)"


def _machine(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"


def _size(number: float) -> str:
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"
