"""`make benchmark-data`: what the data plane does a second, how long it takes to begin, and what it keeps in memory.

    make benchmark-data                       all of it: 15 minutes on 2 cores, and 35 for the sweep
    make benchmark-data ARGS='stream plan'    some: stream, units, start, segments, plan, memory, slow, packing, sweep

The photographs are those of CORNERSTONE_TEST_DATA (or ../shared/data), as JPEG of at most 448 pixels with their captions. Every
way to read them does the same work in the same run, in turns. Prints Markdown tables for docs/benchmarks.md.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import pickle
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from benchmark_reading import (
    BATCH,
    DATA,
    EXECUTOR,
    LIMIT,
    SIDE,
    WARM,
    WAYS,
    cornerstones,
    photographs,
    processors,
    spec_of,
    timed,
    vocabulary,
    write_shards,
    write_tars,
)
from rich.console import Console

from cornerstone.data.layout import Layout
from cornerstone.data.manifest import Manifest, Shard
from cornerstone.data.mixture import Mixture
from cornerstone.data.plan import Part, Plan
from cornerstone.data.records import Pair
from cornerstone.data.storage import Location

ROUNDS = 3
console = Console(width=160)


def table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """A Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]]
    console.print(f"\n### {title}\n\n" + "\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def stream(folder: Path, pairs: list[Pair]) -> None:
    """Rows a second by each of three ways, in turns."""
    write_shards(folder / "pairs", pairs, len(pairs))
    write_tars(folder / "tars", pairs)
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for turn in range(ROUNDS):
        for way in WAYS:
            console.print(f"round {turn + 1} of {ROUNDS}: {WAYS[way][0]}")
            found[way].append(json.loads(alone("_way", way, str(folder)).splitlines()[-1]))
    medians = {way: statistics.median(run["rate"] for run in runs) for way, runs in found.items()}
    rows = []
    for way, runs in found.items():
        fastest = max(rate for other, rate in medians.items() if other != way)
        rates, firsts = (
            ", ".join(f"{run[key]:{form}}" for run in runs) for key, form in (("rate", ".0f"), ("first", ".1f"))
        )
        each = f"{medians[way] / (os.cpu_count() or 1):.0f}"
        rows.append([WAYS[way][0], rates, f"{medians[way]:.0f}", each, f"{medians[way] / fastest:.2f}", firsts])
    header = ["way", "rows a second", "median", "and core", "to the faster other one", "seconds to the first batch"]
    table(f"{len(pairs):,} photographs, batches of {BATCH}", header, rows)
    gaps = [run["gaps"] for run in found["cornerstone"]]
    edges = [
        gap
        for run in gaps
        for step, gap in enumerate(run, WARM + 1)
        if (step * BATCH) // len(pairs) != ((step + 1) * BATCH) // len(pairs)
    ]
    usual, edge = statistics.median(gap for run in gaps for gap in run), statistics.median(edges)
    told = f"median {usual:.2f} s, where an epoch ends {edge:.2f} s, at most {max(edges):.2f} s"
    console.print(f"\nBetween two batches: {told} ({len(edges)} epochs' edges).")
    shares = {way: {name: statistics.median(run["who"].get(name, 0) for run in runs) for run in runs for name in run["who"]}
              for way, runs in found.items()}  # fmt: skip
    lines = [
        [WAYS[way][0], name, f"{share:.2f}"] for way in shares for name, share in shares[way].items() if share >= 0.005
    ]
    table("Cores at work, medians", ["way", "process", "cores"], lines)


def way_alone(way: str, folder: str) -> None:
    """One measurement of the above, as JSON."""
    from cornerstone.runtime.cluster import connect

    with connect(lambda said: None) if way == "cornerstone" else contextlib.nullcontext():
        print(json.dumps(timed(WAYS[way][1](Path(folder)))), flush=True)


def alone(*arguments: str) -> str:
    """What this file prints when it is run with these arguments, in a process of its own."""
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr}")
    return done.stdout


class _Blank:
    """An actor that makes units of a given size of nothing."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, rows: dict[str, Any]) -> pa.Table:
        return pa.table({"block": pa.array([bytes(self.size)], pa.large_binary())})


def units(folder: Path, pairs: list[Pair]) -> None:
    """What a unit costs the executor, whatever is in it."""
    import ray.data
    from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

    from cornerstone.data.execution import _Units

    layout = Layout(spec_of(Mixture.open(write_shards(folder / "small", pairs, 256)), 1_000_000), 1)
    context = DataContext.get_current()
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    context.target_max_block_size = 1
    rows = []
    for size, count in ((100_000, 1500), (1 << 20, 1000), (16 << 20, 150), (64 << 20, 40)):
        source = _Units(layout, [(0, count * layout.steps_per_unit)])
        dataset = ray.data.read_datasource(
            source, num_cpus=0, compute=TaskPoolStrategy(1), override_num_blocks=1
        ).map_batches(
            _Blank, fn_constructor_args=(size,), batch_size=None, compute=ActorPoolStrategy(size=2), num_cpus=0.5
        )
        blocks = iter(dataset.streaming_split(1, equal=True)[0].iter_batches(batch_size=1, batch_format="pyarrow"))
        next(blocks)
        begun = time.perf_counter()
        seen = sum(1 for _ in blocks)
        seconds = time.perf_counter() - begun
        rows.append(
            [
                f"{size / (1 << 20):.1f}",
                f"{seen + 1:,}",
                f"{1000 * seconds / seen:.1f}",
                f"{size * seen / seconds / 1e6:,.0f}",
            ]
        )
    table("The executor's cost of a unit", ["MiB a unit", "units", "ms a unit", "MB a second"], rows)


def start(folder: Path, pairs: list[Pair]) -> None:
    """Seconds to the first batch from the beginning and from the middle of a million units, one step each."""
    shards = write_shards(folder / "long", pairs, len(pairs))
    rows = []
    for turn in range(2):
        for name, step in (("the beginning", 0), ("the middle", 500_000)):
            batches = cornerstones(shards, step)
            next(batches)
            begun = time.perf_counter()
            next(batches)
            rows.append([name, str(turn + 1), f"{time.perf_counter() - begun:.1f}"])
            batches.close()  # type: ignore[attr-defined]
    table("First batch of a run of 1,000,000 units", ["from", "run", "seconds"], sorted(rows))


def segments(folder: Path, pairs: list[Pair]) -> None:
    """The pause where one segment of a stream follows another, against the usual time between two batches: of a consumer that
    always waits for the decoding, and of one that takes longer than it.
    """
    shards = write_shards(folder / "segments", pairs, len(pairs))
    rows = []
    for pause in (0.0, 0.3):
        batches = cornerstones(shards, steps=600, segment_units=200)
        next(batches)
        times = []
        for _ in batches:
            times.append(time.perf_counter())
            time.sleep(pause)
        gaps, taken = np.diff(times), f"{pause:g} s a batch"
        rows.append([taken, "everywhere", f"{np.median(gaps):.2f}", f"{gaps.max():.2f}"])
        rows.append([taken, "where a segment ends", *_summary(gaps[199::200])])
        before = [gaps[edge - 10 : edge] for edge in range(199, len(gaps), 200)]
        rows.append([taken, "while the next one starts (the last 10 units)", *_summary(np.concatenate(before))])
    table("Segments of 200 units of one step", ["consumer", "between two batches", "median, s", "at most, s"], rows)


def _summary(gaps: np.ndarray) -> tuple[str, str]:
    return f"{np.median(gaps):.2f}", f"{gaps.max():.2f}"


def plan(folder: Path, pairs: list[Pair]) -> None:
    """Time and memory to plan one worker's share of any step, each size in a process of its own."""
    rows = []
    for shards, total in ((10_000, "100M"), (100_000, "1B")):
        built, travels, fresh, middle, following, memory = alone("_plan", str(shards)).split()
        rows.append([f"{total} in {shards:,} shards", built, travels, fresh, middle, following, memory])
    header = [
        "rows",
        "built, s",
        "pickled, kB",
        "first step, ms",
        "the middle, ms",
        "the step after, ms",
        "peak resident, MB",
    ]
    table("A share of a batch of 65,536 for one of 1,024 workers", header, rows)
    groups = (64,) * 156 + (16,)
    shards = tuple(Shard(f"shard-{i:06d}.parquet", groups, 400 << 20, f"{i:064x}") for i in range(100_000))
    Manifest("pairs", "billion", shards).write(Location.of(folder / "billion").make())
    size = (folder / "billion" / "manifest.json").stat().st_size / 1e6
    header = [
        "opened",
        "hashed",
        "planned",
        "pickled for the actors",
        "a reader made",
        "MB pickled",
        "peak resident, MB",
    ]
    found = alone("_manifest", str(folder / "billion")).splitlines()[-1].split("|")
    table(f"A manifest of 100,000 shards, {size:.0f} MB; seconds", header, [found])


def manifest_alone(folder: str) -> None:
    """What a run does with a manifest of 100,000 shards before its first row, as a Markdown row."""
    from cornerstone.data.shards import Reader

    times, made = [], []
    vocabulary()

    def timed_too(work: Callable[[], Any]) -> None:
        begun = time.perf_counter()
        made.append(work())
        times.append(time.perf_counter() - begun)

    timed_too(lambda: Mixture.open(folder))
    mixture = made[0]
    timed_too(lambda: mixture.manifest.content_hash)
    timed_too(lambda: Layout(replace(spec_of(mixture, 1_000_000), plan=Plan(mixture.parts, 65_536, seed=0)), 1024))
    timed_too(lambda: pickle.dumps(made[-1]))
    timed_too(lambda: Reader(mixture.sets[0]))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print("|".join([*(f"{seconds:.2f}" for seconds in times), f"{len(made[3]) / 1e6:.1f}", f"{memory:.0f}"]))


def plan_alone(shards: int) -> None:
    """The numbers of one row of the table above."""

    def seconds(work: Callable[[], Any]) -> float:
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun

    groups = (64,) * 156 + (16,)
    made: list[Plan] = []
    built = seconds(lambda: made.append(Plan((Part((groups,) * shards),), 65_536, seed=0)))
    steps = (0, made[0].rows // 65_536 // 2)
    times = [seconds(lambda step=step: made[0].share(step, 511, 1024)) for step in steps]
    following = seconds(lambda: made[0].share(steps[1] + 1, 511, 1024))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    numbers = [f"{built:.2f}", f"{len(pickle.dumps(made[0])) / 1000:.0f}"]
    print(*numbers, *(f"{1000 * t:.1f}" for t in (*times, following)), f"{memory:.0f}")


def memory(folder: Path, pairs: list[Pair]) -> None:
    """Peak memory of all processes and of Ray's object store while one pass is streamed, each size in a Ray of its own."""
    rows = []
    for count in (2_000, 20_000):
        shards = write_shards(folder / f"rows-{count}", pairs, count)
        size = sum(file.stat().st_size for file in Path(shards).iterdir()) / 1e6
        found = json.loads(alone("_memory", shards, str(count // BATCH)).splitlines()[-1])
        told = [f"{found[name]:,.0f}" for name in ("rows", "private", "store", "spilled", "seconds")]
        rows.append([told[0], f"{size:,.0f}", *told[1:]])
    header = [
        "rows",
        "MB of shards",
        "private memory of all processes, MB",
        "object store, MB",
        "spilled, MB",
        "seconds",
    ]
    table("One pass; the demo's 16,000 scenes are 43 MB", header, rows)


def slow(folder: Path, pairs: list[Pair]) -> None:
    """What lies ready, and what the executor spends, while a consumer is slower than decoding."""
    shards = write_shards(folder / "slow", pairs, len(pairs))
    found = json.loads(alone("_memory", shards, "80", "0.4").splitlines()[-1])
    told = [f"{found['store']:,.0f}", f"{found['spilled']:,.0f}", f"{found['executor']:.2f}"]
    table("A consumer of 0.4 s a batch", ["object store, MB", "spilled, MB", "executor of Ray Data, cores"], [told])


def memory_alone(folder: str, steps: int, pause: float = 0.0) -> None:
    """One line of the tables above, as JSON; the consumer takes `pause` seconds more for each batch."""
    import ray

    from cornerstone.runtime.cluster import connect

    with connect(lambda said: None):
        peaks, stop, before = {"private": 0.0, "store": 0.0}, threading.Event(), psutil.virtual_memory().shared

        def watch() -> None:
            while not stop.wait(0.5):
                private = 0
                for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                    with contextlib.suppress(psutil.Error):
                        private += process.memory_full_info().uss
                peaks["private"] = max(peaks["private"], private / 1e6)
                peaks["store"] = max(peaks["store"], (psutil.virtual_memory().shared - before) / 1e6)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        begun = time.perf_counter()
        done, used, since = 0, 0.0, begun
        for batch in cornerstones(folder, steps=steps):
            done += batch is not None
            if done == steps // 4:  # the start is over
                used, since = processors().get(EXECUTOR, 0.0), time.perf_counter()
            if done == steps - 1:
                executor = (processors().get(EXECUTOR, 0.0) - used) / (time.perf_counter() - since)
            time.sleep(pause)
        seconds = time.perf_counter() - begun
        stop.set()
        thread.join()
        session = Path(ray._private.worker._global_node.get_session_dir_path())
        spilled = sum(
            f.stat().st_size for d in session.glob("ray_spilled_objects*") for f in d.rglob("*") if f.is_file()
        )
        told = {**peaks, "rows": done * BATCH, "seconds": seconds, "spilled": spilled / 1e6, "executor": executor}
        print(json.dumps(told), flush=True)


def packing(folder: Path, pairs: list[Pair]) -> None:
    """Share of padding, packed and with one document a sequence."""
    from cornerstone.data.documents import PackingConfig
    from cornerstone.data.importers import import_pairs
    from cornerstone.jobs.packing import write_packing

    source, tokenizer = DATA / "openstax", vocabulary()
    import_pairs("mmc4", source / "docs_mmc4.jsonl", folder / "docs", images=str(source / "images"))
    rows = []
    for budget in (512, 2048):
        for one in (False, True):
            config = PackingConfig(token_budget=budget, one_document=one)
            packed = write_packing(str(folder / "docs"), str(folder / f"packed-{budget}-{one}"), tokenizer, config)
            numbers = packed.source["packed"]
            way = "one document a sequence" if one else "packed"
            rows.append([str(budget), way, f"{packed.rows:,}", f"{numbers['padding']:.1%}"])
    table("OpenStax documents, 196 tokens an image", ["budget", "way", "sequences", "padding"], rows)


def sweep(folder: Path, pairs: list[Pair]) -> None:
    """Four trials of 2,000 photographs, 3 epochs each, with stored features and online: wall and processor time.

    SWEEP_ONLINE=1 runs one of the four online trials, which are alike, and reckons the others; SWEEP_ROWS takes fewer rows.
    """
    from cornerstone.recipes import (
        CornerText,
        Data,
        Evaluation,
        ImageTower,
        LotlipConfig,
        Optimization,
        Placement,
        Recipe,
    )
    from cornerstone.recipes.options import RunOptions
    from cornerstone.training.run import train_one

    rows = int(os.environ.get("SWEEP_ROWS", "2000"))
    shards = write_shards(folder / "sweep", pairs, rows)
    recipe = Recipe(
        "sweep",
        LotlipConfig(
            image=ImageTower(name="vit_small_patch16_224", size=SIDE, locked=True, pretrained=False),
            text=CornerText(name="", width=256, layers=4, heads=4, token_limit=LIMIT),
        ),
        Data(train=shards, tokenizer="bert-base-uncased", crop_scale=(1.0, 1.0)),
        Optimization(steps=3 * rows // BATCH, batch_size=BATCH, warmup_steps=2),
        Evaluation(),
    )
    os.environ["CORNERSTONE_HOME"] = str(folder / "home")  # nothing of an earlier time may be found
    run = {"stored": 4, "online": int(os.environ.get("SWEEP_ONLINE", "4"))}
    lines, found = [], {}
    for way, trials in run.items():
        begun, used = time.perf_counter(), processor_seconds()
        for seed in range(trials):
            trial = recipe.with_seed(seed).with_data(features=way)
            train_one(RunOptions(recipe=trial, placement=Placement()), "", console)
        found[way] = [spent * 4 / trials for spent in (time.perf_counter() - begun, processor_seconds() - used)]
        lines.append([way, str(trials), *(f"{spent:.0f}" for spent in found[way])])
    ratios = [f"{online / stored:.1f}" for online, stored in zip(found["online"], found["stored"], strict=True)]
    table(
        f"4 trials of {rows:,} photographs, 3 epochs, ViT-S/16",
        ["features", "trials run", "wall of 4, s", "processor of 4, s"],
        [*lines, ["ratio", "", *ratios]],
    )


def processor_seconds() -> float:
    """Processor time of the whole machine; nothing else should run. Ray's workers are `nice`."""
    used = psutil.cpu_times()
    return sum(used) - used.idle - used.iowait - used.guest - used.guest_nice


PARTS: dict[str, Callable[[Path, list[Pair]], None]] = {
    part.__name__: part for part in (stream, units, start, segments, plan, memory, slow, packing, sweep)
}
WITHOUT_RAY = ("stream", "plan", "memory", "slow")
"""Parts whose work is done by processes of their own."""


def main() -> None:
    """Measure the parts that are named, or all, and print."""
    import torch

    from cornerstone.runtime.cluster import connect

    named = sys.argv[1:] or list(PARTS)
    console.print(f"{date.today()}, {os.cpu_count()} cores, torch {torch.__version__}, {' '.join(named)}")
    pairs = photographs()
    with tempfile.TemporaryDirectory() as folder:
        for name in filter(WITHOUT_RAY.__contains__, named):
            PARTS[name](Path(folder), pairs)
        if rest := [name for name in named if name not in WITHOUT_RAY]:
            with connect(functools.partial(console.print)):
                for name in rest:
                    PARTS[name](Path(folder), pairs)
                    gc.collect()  # what still holds a stream of Ray Data goes before Ray does


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["_plan", shards]:
            plan_alone(int(shards))
        case ["_way", way, folder]:
            way_alone(way, folder)
        case ["_memory", folder, steps, *pause]:
            memory_alone(folder, int(steps), *map(float, pause))
        case ["_manifest", folder]:
            manifest_alone(folder)
        case _:
            main()
