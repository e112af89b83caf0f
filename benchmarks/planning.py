"""Part `plan`: time and memory to plan batches of a billion rows and to open the manifest of 100,000 shards."""

from __future__ import annotations

import pickle
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from benchmarks.reading import spec_of, vocabulary
from benchmarks.report import own_process, table
from cornerstone.data.layout import Layout
from cornerstone.data.manifest import Manifest, Shard
from cornerstone.data.mixture import Mixture
from cornerstone.data.plan import Plan
from cornerstone.data.records import Pair
from cornerstone.data.shards import Reader
from cornerstone.data.source import Part
from cornerstone.data.storage import Location

BATCH, WORKERS = 65_536, 1024
ROW_GROUPS = (64,) * 156 + (16,)
"""Of each shard: 10,000 rows."""
T = TypeVar("T")


def plan(folder: Path, pairs: list[Pair]) -> None:
    """Seconds and memory for one worker's share of a batch; each size in a process of its own."""
    rows = []
    for count, total in ((10_000, "100M"), (100_000, "1B")):
        rows.append([f"{total} in {count:,} shards", *own_process("planning", "plan", str(count)).split()])
    header = [
        "rows",
        "build, s",
        "pickled, kB",
        "first step, ms",
        "middle step, ms",
        "the step after, ms",
        "peak resident, MB",
    ]
    table(f"The share of a batch of {BATCH:,} of one of {WORKERS:,} workers", header, rows)
    shards = tuple(Shard(f"shard-{i:06d}.parquet", ROW_GROUPS, 400 << 20, f"{i:064x}") for i in range(100_000))
    Manifest("pairs", "billion", shards).write(Location.of(folder / "billion").make())
    size = (folder / "billion" / "manifest.json").stat().st_size / 1e6
    header = ["open", "hash", "plan", "pickle for the actors", "make a reader", "MB pickled", "peak resident, MB"]
    numbers = own_process("planning", "manifest", str(folder / "billion")).split()
    table(f"A manifest of 100,000 shards, {size:.0f} MB; seconds", header, [numbers])


def measure_plan(shards: int) -> None:
    """Print one row of the first table."""
    built, whole = _timed(lambda: Plan((Part((ROW_GROUPS,) * shards),), BATCH, seed=0))
    middle = whole.rows // BATCH // 2
    times = [_timed(lambda step=step: whole.share(step, 511, WORKERS))[0] for step in (0, middle, middle + 1)]  # type: ignore[misc]
    pickled = len(pickle.dumps(whole)) / 1000
    print(f"{built:.2f} {pickled:.0f}", *(f"{1000 * seconds:.1f}" for seconds in times), f"{_peak_megabytes():.0f}")


def measure_manifest(folder: str) -> None:
    """Print the row of the second table: what a run does with a manifest before its first row."""
    vocabulary()
    opened, mixture = _timed(lambda: Mixture.open(folder))
    hashed, _ = _timed(lambda: mixture.manifest.content_hash)
    spec = spec_of(mixture, 1_000_000)
    planned, layout = _timed(lambda: Layout(replace(spec, plan=Plan(mixture.parts, BATCH, seed=0)), WORKERS))
    pickled, sent = _timed(lambda: pickle.dumps(layout))
    read, _ = _timed(lambda: Reader(mixture.sets[0]))
    seconds = (f"{taken:.2f}" for taken in (opened, hashed, planned, pickled, read))
    print(*seconds, f"{len(sent) / 1e6:.1f}", f"{_peak_megabytes():.0f}")


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    begun = time.perf_counter()
    result = work()
    return time.perf_counter() - begun, result


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["plan", shards]:
            measure_plan(int(shards))
        case ["manifest", folder]:
            measure_manifest(folder)
