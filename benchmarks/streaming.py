"""Parts `stream`, `start` and `executions`: rows per second, time to the first batch, pauses between executions."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.reading import BATCH, WARM_UP_BATCHES, WAYS, cornerstone_batches, timed, write_shards, write_tars
from benchmarks.report import console, own_process, table
from cornerstone.data.records import Pair
from cornerstone.runtime.cluster import connect

ROUNDS = 3
UNITS_PER_EXECUTION = 200


def stream(folder: Path, pairs: list[Pair]) -> None:
    """Rows per second of each of three ways to read the photographs, in turns."""
    write_shards(folder / "pairs", pairs, len(pairs))
    write_tars(folder / "tars", pairs)
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for turn in range(ROUNDS):
        for way in WAYS:
            console.print(f"round {turn + 1} of {ROUNDS}: {WAYS[way][0]}")
            runs[way].append(json.loads(own_process("streaming", way, str(folder))))
    _print_rates(runs, len(pairs))
    _print_gaps([run["gaps"] for run in runs["cornerstone"]], len(pairs))
    lines = []
    for way, measured in runs.items():
        for name in {name: None for run in measured for name in run["cores"]}:
            share = statistics.median(run["cores"].get(name, 0) for run in measured)
            if share >= 0.005:
                lines.append([WAYS[way][0], name, f"{share:.2f}"])
    table("Busy cores, medians", ["way", "process", "cores"], lines)


def _print_rates(runs: dict[str, list[dict[str, Any]]], rows: int) -> None:
    medians = {way: statistics.median(run["rate"] for run in measured) for way, measured in runs.items()}
    lines = []
    for way, measured in runs.items():
        fastest_other = max(rate for other, rate in medians.items() if other != way)
        rates = ", ".join(f"{run['rate']:.0f}" for run in measured)
        firsts = ", ".join(f"{run['first']:.1f}" for run in measured)
        per_core = f"{medians[way] / (os.cpu_count() or 1):.0f}"
        ratio = f"{medians[way] / fastest_other:.2f}"
        lines.append([WAYS[way][0], rates, f"{medians[way]:.0f}", per_core, ratio, firsts])
    header = [
        "way",
        "rows per second",
        "median",
        "per core",
        "ratio to the fastest other way",
        "seconds to the first batch",
    ]
    table(f"{rows:,} photographs, batches of {BATCH}", header, lines)


def _print_gaps(runs: list[list[float]], rows: int) -> None:
    """Seconds between batches: usual ones, and those in which an epoch ends."""
    edges = [
        gap
        for gaps in runs
        for step, gap in enumerate(gaps, WARM_UP_BATCHES + 1)
        if (step * BATCH) // rows != ((step + 1) * BATCH) // rows
    ]
    usual, edge = statistics.median(gap for gaps in runs for gap in gaps), statistics.median(edges)
    console.print(
        f"\nBetween two batches: median {usual:.2f} s; where an epoch ends median {edge:.2f} s, at most {max(edges):.2f} s "
        f"({len(edges)} epoch ends)."
    )


def start(folder: Path, pairs: list[Pair]) -> None:
    """Seconds to the first batch of a run of a million steps, from its beginning and resumed in the middle."""
    shards = write_shards(folder / "long", pairs, len(pairs))
    rows = []
    for turn in range(2):
        for name, step in (("the beginning", 0), ("the middle", 500_000)):
            batches = cornerstone_batches(shards, step)
            next(batches)
            begun = time.perf_counter()
            next(batches)
            rows.append([name, str(turn + 1), f"{time.perf_counter() - begun:.1f}"])
            batches.close()
    table("First batch of a run of 1,000,000 units", ["from", "run", "seconds"], sorted(rows))


def executions(folder: Path, pairs: list[Pair]) -> None:
    """The pause between two Ray Data executions of one stream.

    Measured with a consumer that always waits for data, and with one that is slower than decoding.
    """
    shards = write_shards(folder / "executions", pairs, len(pairs))
    rows = []
    for pause in (0.0, 0.3):
        batches = cornerstone_batches(shards, steps=3 * UNITS_PER_EXECUTION, units_per_execution=UNITS_PER_EXECUTION)
        next(batches)
        times = []
        for _ in batches:
            times.append(time.perf_counter())
            time.sleep(pause)
        gaps, consumer = np.diff(times), f"{pause:g} s per batch"
        edges = range(UNITS_PER_EXECUTION - 1, len(gaps), UNITS_PER_EXECUTION)
        before = np.concatenate([gaps[edge - 10 : edge] for edge in edges])
        rows.append([consumer, "everywhere", *_median_and_max(gaps)])
        rows.append([consumer, "where an execution ends", *_median_and_max(gaps[list(edges)])])
        rows.append([consumer, "while the next one starts (the last 10 units)", *_median_and_max(before)])
    header = ["consumer", "between two batches", "median, s", "at most, s"]
    table(f"Executions of {UNITS_PER_EXECUTION} units of one step", header, rows)


def _median_and_max(gaps: npt.NDArray[np.float64]) -> tuple[str, str]:
    return f"{np.median(gaps):.2f}", f"{gaps.max():.2f}"


def main(way: str, folder: str) -> None:
    """Measure one way once and print JSON."""
    with connect(lambda line: None) if way == "cornerstone" else contextlib.nullcontext():
        print(json.dumps(timed(WAYS[way][1](Path(folder)))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
