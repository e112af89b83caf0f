"""Part `units`: what a unit costs Ray Data's executor, whatever it contains."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.reading import spec_of, write_shards
from benchmarks.report import table
from cornerstone.data.layout import Layout
from cornerstone.data.mixture import Mixture
from cornerstone.data.records import Pair

SIZES = ((100_000, 1500), (1 << 20, 1000), (16 << 20, 150), (64 << 20, 40))
"""Bytes of a unit, and how many units are streamed."""


class _Blank:
    """An actor that returns blocks of a given size without computing anything."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, rows: dict[str, Any]) -> pa.Table:
        return pa.table({"block": pa.array([bytes(self.size)], pa.large_binary())})


def units(folder: Path, pairs: list[Pair]) -> None:
    """Milliseconds per unit and bytes per second, by the size of a unit."""
    import ray.data
    from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

    from cornerstone.data.execution import _Units

    layout = Layout(spec_of(Mixture.open(write_shards(folder / "small", pairs, 256)), 1_000_000), 1)
    context = DataContext.get_current()
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    context.target_max_block_size = 1
    rows = []
    for size, count in SIZES:
        source = _Units(layout, [(0, count * layout.steps_per_unit)])
        read = ray.data.read_datasource(source, num_cpus=0, compute=TaskPoolStrategy(1), override_num_blocks=1)
        dataset = read.map_batches(
            _Blank, fn_constructor_args=(size,), batch_size=None, compute=ActorPoolStrategy(size=2), num_cpus=0.5
        )
        blocks = iter(dataset.streaming_split(1, equal=True)[0].iter_batches(batch_size=1, batch_format="pyarrow"))
        next(blocks)
        begun = time.perf_counter()
        seen = sum(1 for _ in blocks)
        seconds = time.perf_counter() - begun
        per_unit, rate = f"{1000 * seconds / seen:.1f}", f"{size * seen / seconds / 1e6:,.0f}"
        rows.append([f"{size / (1 << 20):.1f}", f"{seen + 1:,}", per_unit, rate])
    table("The executor's cost per unit", ["MiB per unit", "units", "ms per unit", "MB per second"], rows)
