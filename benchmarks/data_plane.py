"""`make benchmark-data`: throughput, time to the first batch and memory of the data plane.

    make benchmark-data                       all parts: 15 minutes on 2 cores, and 35 more for `sweep`
    make benchmark-data ARGS='stream plan'    some of them

The parts are the keys of `PARTS`. The photographs are those of CORNERSTONE_TEST_DATA (or ../shared/data), as JPEG of at most
448 pixels, with their captions.
Ways to read that are compared do the same work, in turns, in one run. Prints Markdown tables for docs/benchmarks.md.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

from benchmarks.documents import documents
from benchmarks.first_batch import first
from benchmarks.memory import memory, slow
from benchmarks.overfit import overfit
from benchmarks.packing import packing
from benchmarks.planning import plan
from benchmarks.reading import photographs
from benchmarks.report import console
from benchmarks.stored_features import sweep
from benchmarks.streaming import executions, start, stream
from benchmarks.units import units
from cornerstone.data.records import Pair
from cornerstone.runtime.cluster import connect

Part = Callable[[Path, list[Pair]], None]
"""Measures and prints, given a temporary folder and the photographs."""
PARTS: dict[str, Part] = {
    part.__name__: part
    for part in (stream, units, start, first, executions, plan, memory, slow, packing, documents, overfit, sweep)
}
WITHOUT_RAY = ("stream", "plan", "memory", "slow")
"""Parts whose measurements run in processes of their own, before Ray is started here."""


def main(named: list[str]) -> None:
    """Measure the named parts, or all of them."""
    named = named or list(PARTS)
    if unknown := [name for name in named if name not in PARTS]:
        raise SystemExit(f"Unknown part {unknown[0]!r}: expected some of {', '.join(PARTS)}.")
    console.print(f"{date.today()}, {os.cpu_count()} cores, torch {torch.__version__}, {' '.join(named)}")
    pairs = photographs()
    with tempfile.TemporaryDirectory() as folder:
        for name in filter(WITHOUT_RAY.__contains__, named):
            PARTS[name](Path(folder), pairs)
        if rest := [name for name in named if name not in WITHOUT_RAY]:
            with connect(console.print):
                for name in rest:
                    PARTS[name](Path(folder), pairs)
                    gc.collect()  # references to Ray Data's streams must be gone before Ray stops


if __name__ == "__main__":
    main(sys.argv[1:])
