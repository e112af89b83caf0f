"""What the studies share: many trainings beside one another on one device, kept on file, and tables over their seeds.

A study's run is a frozen dataclass with a `name` and a `seed`; its training yields what it measured as dicts with the run's
fields, `name`, `steps` and `measured`. A file of results is continued: runs that reached the last step are not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
import torch

from benchmarks.report import table

Measurement = dict[str, Any]
Prepare = Callable[[argparse.Namespace, Sequence[Any], Path], None]
Train = Callable[[Any, argparse.Namespace, Path], Iterator[Measurement]]


def add_options(usual: argparse.ArgumentParser) -> None:
    """The options that every study has."""
    usual.add_argument("--show", help="print the tables of a file that --out wrote")
    usual.add_argument("--out", help="file for all that is measured (JSON); one that exists is continued")
    usual.add_argument("--device", default="cpu")
    usual.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    usual.add_argument("--processes", type=int, default=max((os.cpu_count() or 1) - 1, 1))
    usual.add_argument("--minutes", type=float, default=math.inf, help="stop after that long, whatever is missing")
    usual.add_argument("--seeds", type=int, default=5)
    usual.add_argument("--scratch", help="folder for decoded batches while the study runs: some GB")


def study(options: argparse.Namespace, runs: Sequence[Any], prepare: Prepare, train: Train) -> list[Measurement]:
    """All measurements. `prepare` writes to a folder what the trainings read; they are also written to `--out` on the way."""
    context, begun, ended = get_context("spawn"), time.perf_counter(), 0
    runs, measured = _continued(options, runs)
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        prepare(options, runs, folder := Path(name))
        print(f"{time.perf_counter() - begun:.0f} s: prepared {len(runs)} runs", flush=True)
        queue, found = context.Queue(), context.Queue()
        for each in [*((run, options) for run in runs), *[None] * options.processes]:
            queue.put(each)
        processes = [
            context.Process(target=_work, args=(train, queue, found, folder)) for _ in range(options.processes)
        ]
        for process in processes:
            process.start()
        while ended < len(processes) and time.perf_counter() - begun < options.minutes * 60:
            try:
                one = found.get(timeout=2)
            except Empty:
                continue
            if one is None:
                ended += 1
                continue
            measured.append(one)
            print(f"{time.perf_counter() - begun:.0f} s", json.dumps(one), flush=True)
            if options.out:
                Path(options.out).write_text(json.dumps(measured))
        for process in processes:
            process.terminate()
    return measured


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation."""
    if not values:
        return "–"
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def show_budgets(measured: Sequence[Measurement], columns: Sequence[str]) -> None:
    """A table of means over seeds with their standard deviation, one for each number of steps."""
    usable = [one for one in measured if "error" not in one]
    for steps in sorted({one["steps"] for one in usable}):
        names = list(dict.fromkeys(one["name"] for one in usable if one["steps"] == steps))
        rows = []
        for name in names:
            seeds = [one["measured"] for one in usable if one["name"] == name and one["steps"] == steps]
            rows.append([name, str(len(seeds)), *(spread([seed[c] for seed in seeds if c in seed]) for c in columns)])
        table(f"after {steps:,} steps", ["point", "seeds", *columns], rows)


def _continued(options: argparse.Namespace, runs: Sequence[Any]) -> tuple[list[Any], list[Measurement]]:
    """The runs that are missing in `--out`, and what it holds of the others."""
    if not options.out or not Path(options.out).exists():
        return list(runs), []
    held: list[Measurement] = json.loads(Path(options.out).read_text())
    finished = {(one["name"], one["seed"]) for one in held if one.get("steps") == options.steps}
    missing = [run for run in runs if (run.name, run.seed) not in finished]
    return missing, [one for one in held if not any(asdict(run).items() <= one.items() for run in missing)]


def _work(train: Train, queue: Any, found: Any, folder: Path) -> None:
    """A process: runs from the queue until it is empty."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    while (each := queue.get()) is not None:
        run, settings = each
        try:
            for measured in train(run, settings, folder):
                found.put(measured)
        except Exception as error:  # the other runs go on
            found.put({"name": run.name, "seed": run.seed, "error": f"{type(error).__name__}: {error}"})
    found.put(None)
