"""`make benchmark`: what training inside Ray costs against the same step in a bare loop, in one run on this machine.

The same recipe (preset `scenes`, 2 corners, stored features) is stepped three times in turn, with as many threads as a Ray
Train worker is given: by PyTorch alone over batches that lie ready, by DeepSpeed over the same batches, and by
`cornerstone train` with Ray Data, Ray Train and DeepSpeed. Prints a Markdown table for docs/benchmarks.md.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from datetime import date

import torch
from rich.console import Console

from cornerstone.data.batches import Batch
from cornerstone.data.stream import Layout, Stream
from cornerstone.recipes import Placement, preset
from cornerstone.recipes.options import RunOptions
from cornerstone.tracking.journal import read_journal
from cornerstone.training.build import build_method, length_buckets
from cornerstone.training.cluster import connect
from cornerstone.training.engine import DeepSpeedEngine, Engine, PlainEngine, pick_device
from cornerstone.training.job import Identity
from cornerstone.training.prepare import Prepared, prepare
from cornerstone.training.schedule import learning_rate
from cornerstone.training.single import train_one

STEPS, WARM = 200, 40
console = Console(width=160)


def bare(prepared: Prepared, batches: list[Batch], engine: Engine) -> float:
    """Median seconds of a step over batches that are already there."""
    seconds = []
    for step, batch in enumerate(batches):
        start = time.perf_counter()
        parts = engine.step(batch, learning_rate(step, prepared.recipe.optimization))
        float(sum(parts.values()))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[WARM:])


def inside_ray(options: RunOptions) -> tuple[float, float, float]:
    """Median seconds of a step and share of waiting for data inside Ray Train, and seconds from launch to the end."""
    start = time.perf_counter()
    outcome = train_one(options, "", console)
    whole = time.perf_counter() - start
    run = outcome.model.rstrip("/").split("/")[-2]
    lines = [line for line in read_journal(Identity(run=run).local_folder / "journal.jsonl") if line.step > WARM]
    steps = [line.metrics for line in lines if "train/seconds_per_step" in line.metrics]
    per_step = statistics.median(m["train/seconds_per_step"] for m in steps)
    return per_step, statistics.mean(m["train/data_wait_share"] for m in steps), whole


def main() -> None:
    """Measure and print."""
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    recipe = preset("scenes").with_steps(STEPS)
    placement = Placement()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0))))
    with connect(console.print):
        prepared = prepare(recipe, console.print)
        options = RunOptions(recipe=recipe.with_evaluation(every=0), placement=placement)
        stream = Stream.local(Layout(prepared.stream(), 1), 0, 0)
        batches = [stream.training(step) for step in range(STEPS)]
        buckets = length_buckets(placement, pick_device())
        plain = bare(
            prepared, batches, PlainEngine(build_method(prepared, None, buckets), prepared.recipe.optimization)
        )
        per_step, waiting, whole = inside_ray(options)
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_PORT": "29571"}
    method = build_method(prepared, None, buckets)
    sharded = DeepSpeedEngine(method, prepared.recipe.optimization, placement.zero_stage, len(batches[0]))
    deepspeed = bare(prepared, batches, sharded)
    console.print(
        f"\n{date.today()}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}\n"
    )
    console.print("| step of 128 pairs, 2 corners | s | ratio |\n|---|---|---|")
    console.print(f"| bare loop, PyTorch alone | {plain:.4f} | 1 |")
    console.print(f"| bare loop, DeepSpeed ZeRO-{placement.zero_stage} | {deepspeed:.4f} | {deepspeed / plain:.2f} |")
    console.print(f"| inside Ray Train | {per_step:.4f} | {per_step / plain:.2f} |")
    console.print(
        f"\nwaiting for data: {waiting:.1%} of the time; launch to end, {STEPS} steps and evaluation: {whole:.0f} s"
    )


if __name__ == "__main__":
    main()
