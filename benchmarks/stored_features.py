"""Part `sweep`: four trials with stored features of the locked tower against four with the tower online."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil

from benchmarks.reading import BATCH, SIDE, TOKEN_LIMIT, write_shards
from benchmarks.report import console, table
from cornerstone.data.records import Pair

TRIALS = 4


def sweep(folder: Path, pairs: list[Pair]) -> None:
    """Wall and processor seconds of four trials of 2,000 photographs and 3 epochs.

    SWEEP_ONLINE=1 runs one of the four online trials, which are alike, and extrapolates; SWEEP_ROWS takes fewer rows.
    """
    from cornerstone.recipes import (
        CornerText,
        Evaluation,
        ImageTower,
        LotlipConfig,
        Optimization,
        PairData,
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
            text=CornerText(name="", width=256, layers=4, heads=4, token_limit=TOKEN_LIMIT),
        ),
        PairData(train=shards, tokenizer="bert-base-uncased", crop_scale=(1.0, 1.0)),
        Optimization(steps=3 * rows // BATCH, batch_size=BATCH, warmup_steps=2),
        Evaluation(),
    )
    os.environ["CORNERSTONE_HOME"] = str(folder / "home")  # without features that an earlier run stored
    lines, seconds = [], {}
    for way, trials in {"stored": TRIALS, "online": int(os.environ.get("SWEEP_ONLINE", TRIALS))}.items():
        begun, used = time.perf_counter(), _busy_seconds()
        for seed in range(trials):
            trial = recipe.with_seed(seed).with_data(features=way)
            train_one(RunOptions(recipe=trial, placement=Placement()), "", console)
        spent = (time.perf_counter() - begun, _busy_seconds() - used)
        seconds[way] = [one * TRIALS / trials for one in spent]
        lines.append([way, str(trials), *(f"{one:.0f}" for one in seconds[way])])
    ratios = [f"{online / stored:.1f}" for online, stored in zip(seconds["online"], seconds["stored"], strict=True)]
    table(
        f"{TRIALS} trials of {rows:,} photographs, 3 epochs, ViT-S/16",
        ["features", "trials run", f"wall time of {TRIALS}, s", f"processor time of {TRIALS}, s"],
        [*lines, ["ratio", "", *ratios]],
    )


def _busy_seconds() -> float:
    """Processor time of the whole machine, so nothing else may run. Ray's workers count as `nice`."""
    used = psutil.cpu_times()
    return float(sum(used) - used.idle - used.iowait - used.guest - used.guest_nice)
