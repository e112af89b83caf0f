"""`make benchmark`: the time of a training step inside Ray against the same step in a bare loop, in one run.

One recipe (preset `scenes`, 2 corner tokens, stored features) is trained by PyTorch alone and by DeepSpeed on batches that
were made beforehand, by PyTorch with each batch made between two steps, and by `cornerstone train` with Ray Data, Ray Train
and DeepSpeed. The bare loops use as many threads as a Ray Train worker. They run before and after the run inside Ray, so that
a change of the machine's speed shows. Prints a Markdown table for docs/benchmarks.md.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import console
from cornerstone.data.batch import Batch
from cornerstone.data.layout import Layout
from cornerstone.data.stream import Stream
from cornerstone.models.method import Method
from cornerstone.recipes import Placement, preset
from cornerstone.recipes.options import RunOptions
from cornerstone.runtime.cluster import connect
from cornerstone.runtime.device import device_named
from cornerstone.tracking.journal import read_journal
from cornerstone.tracking.run_store import JOURNAL
from cornerstone.training.build import build_method, length_buckets
from cornerstone.training.deepspeed_engine import DeepSpeedEngine
from cornerstone.training.engine import Engine, PlainEngine
from cornerstone.training.job import Identity
from cornerstone.training.prepare import prepare
from cornerstone.training.prepared import Prepared
from cornerstone.training.run import train_one
from cornerstone.training.schedule import learning_rate

STEPS, WARM_UP_STEPS = 200, 40
READY = "bare loop, PyTorch alone, batches made beforehand"
INLINE = "bare loop, PyTorch alone, each batch made between two steps"


def bare(prepared: Prepared, batch_of: Callable[[int], Batch], engine: Engine) -> list[float]:
    """Seconds of each step after the warm-up, including the time to get its batch."""
    seconds = []
    for step in range(STEPS):
        start = time.perf_counter()
        report = engine.step(batch_of(step), learning_rate(step, prepared.recipe.optimization))
        float(report.loss)
        seconds.append(time.perf_counter() - start)
    return seconds[WARM_UP_STEPS:]


def inside_ray(options: RunOptions) -> tuple[float, float, float]:
    """Median seconds of a step and mean share of waiting for data inside Ray Train; seconds from launch to the end."""
    start = time.perf_counter()
    outcome = train_one(options, "", console)
    whole = time.perf_counter() - start
    run = outcome.model.rstrip("/").split("/")[-2]
    lines = [line for line in read_journal(Path(Identity(run=run).folder.uri) / JOURNAL) if line.step > WARM_UP_STEPS]
    steps = [line.metrics for line in lines if "train/seconds_per_step" in line.metrics]
    per_step = statistics.median(m["train/seconds_per_step"] for m in steps)
    return per_step, statistics.mean(m["train/data_wait_share"] for m in steps), whole


def main() -> None:
    """Measure and print the table."""
    recipe = preset("scenes").with_steps(STEPS)
    placement = Placement()
    torch.set_num_threads(os.cpu_count() or 1)
    device = device_named()
    with connect(console.print):
        prepared = prepare(recipe, console.print)
        options = RunOptions(recipe=recipe.with_evaluation(every=0), placement=placement)

        def local_batches() -> Callable[[int], Batch]:
            stream = Stream.local(Layout(prepared.stream(), 1), 0, 0)
            return lambda step: stream.batch(step).to(device)

        batches = list(map(local_batches(), range(STEPS)))

        def method() -> Method[Any, Any]:
            return build_method(prepared, None, length_buckets(placement, device)).to(device)

        os.environ |= {
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29571",
        }

        def bare_loops() -> dict[str, list[float]]:
            optimization = prepared.recipe.optimization
            return {
                READY: bare(prepared, batches.__getitem__, PlainEngine(method(), optimization)),
                INLINE: bare(prepared, local_batches(), PlainEngine(method(), optimization)),
                f"bare loop, DeepSpeed ZeRO-{placement.zero_stage}": bare(
                    prepared,
                    batches.__getitem__,
                    DeepSpeedEngine(method(), optimization, placement.zero_stage, len(batches[0]), device=device),
                ),
            }

        before = bare_loops()
        per_step, waiting, whole = inside_ray(options)
        after = bare_loops()

    rows = {name: [statistics.median(run) for run in (before[name], after[name])] for name in before}
    unit = statistics.mean(rows[READY])
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    console.print(f"\n{date.today()}, {machine}\n")
    console.print("| a step of 128 pairs, 2 corner tokens | s, before and after | ratio |\n|---|---|---|")
    for name, (first, second) in rows.items():
        console.print(f"| {name} | {first:.4f}, {second:.4f} | {(first + second) / 2 / unit:.2f} |")
    console.print(f"| inside Ray Train | {per_step:.4f} | {per_step / unit:.2f} |")
    console.print(
        f"\nWaiting for data: {waiting:.1%} of the time. From launch to end, {STEPS} steps and the evaluation: {whole:.0f} s."
    )


if __name__ == "__main__":
    main()
