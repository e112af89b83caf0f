"""Part `first`: time to the first block and to the first whole batch, for a small and a large share on one worker.

A share above two units (32 MiB) travels in parts, so that all decode actors work on the first batch and no block is large.
The first block of a large batch should arrive as early as that of a small one; the whole batch needs all rows decoded.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.reading import SIDE, spec_of, write_shards
from benchmarks.report import console, table
from cornerstone.data.images import Transform
from cornerstone.data.layout import Layout, StreamSpec
from cornerstone.data.mixture import Mixture
from cornerstone.data.pairs.image_input import DecodedImages
from cornerstone.data.pairs.source import PairSource
from cornerstone.data.records import Pair
from cornerstone.data.scenes.write import write_scenes

BATCHES, ROUNDS, SCENES_SIDE = (320, 2560), 3, 64


def first(folder: Path, pairs: list[Pair]) -> None:
    """Seconds from the start of a stream to its first block and to its first batch, in turns."""
    write_scenes(str(folder / "scenes"), pairs=5120, seed=0, image_size=SCENES_SIDE)
    data = {
        f"scenes, {SCENES_SIDE} pixels": (str(folder / "scenes"), SCENES_SIDE),
        f"photographs, {SIDE} pixels": (write_shards(folder / "many", pairs, 5120), SIDE),
    }
    rows = []
    for name, (shards, side) in data.items():
        for turn in range(ROUNDS):
            for batch in BATCHES:
                console.print(f"round {turn + 1} of {ROUNDS}: {name}, batch {batch:,}")
                layout = Layout(_spec(Mixture.open(shards), batch, side), 1)
                block, whole = _seconds(layout)
                parts = f"{len(layout.parts)} × {layout.parts[0][1]:,} rows"
                rows.append([name, f"{batch:,}", parts, str(turn + 1), f"{block:.1f}", f"{whole:.1f}"])
    table("First batch on one worker, 2 decode actors", ["data", "batch", "units", "run", "block, s", "batch, s"], rows)


def _spec(data: Mixture, batch: int, side: int) -> StreamSpec:
    spec = spec_of(data, steps=100, batch=batch)
    assert isinstance(spec.train, PairSource)
    return replace(spec, train=replace(spec.train, images=DecodedImages(Transform(side, (0.9, 1.0)))))


def _seconds(layout: Layout) -> tuple[float, float]:
    from cornerstone.data.execution import ray_datasets, ray_stream

    datasets: dict[str, Any] = ray_datasets(layout, lambda: 0, actors=2, cpus_per_actor=0.75)
    shards = {name: build().streaming_split(1, equal=True)[0] for name, build in datasets.items()}
    begun = time.perf_counter()
    stream = ray_stream(layout, 0, shards.__getitem__)
    stream.batch(0)
    whole = time.perf_counter() - begun
    assert stream.seconds_to_first_block is not None
    return stream.seconds_to_first_block, whole
