"""Every method on the built-in scenes, as a user runs it: train through Ray, interrupt, resume, evaluate, load.

    python -m benchmarks.methods                        all of them
    python -m benchmarks.methods --only scenes-filip --steps 100

Each is trained by `cornerstone train`, gets Ctrl-C after half of its steps, goes on by `--resume` and is evaluated by
`cornerstone evaluate` from its saved model, which must agree with the evaluation inside training. CORNERSTONE_HOME keeps what
is prepared.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import table
from cornerstone.inference.load import load
from cornerstone.recipes import preset
from cornerstone.runtime.home import home
from cornerstone.tracking.mlflow_pages import command_path
from cornerstone.training.prepare import prepare

PLACEMENT = ("--placement.threads-per-worker", "2", "--placement.decode-actors", "1")
METHODS = {
    "LoTLIP": "scenes",
    "LoTLIP, no mask": "scenes-unmasked",
    "LoTLIP, from scratch": "scenes-scratch",
    "LiT": "scenes-lit",
    "LiT + long": "scenes-lit-long",
    "LiT + Long-CLIP": "scenes-longclip",
    "registers": "scenes-registers",
    "CLIP": "scenes-clip",
    "CLIP + long": "scenes-clip-long",
    "SigLIP": "scenes-siglip",
    "FILIP": "scenes-filip",
    "LaCLIP": "scenes-laclip",
    "LoTLIP over T5": "scenes-t5",
    "LCL": "scenes-lcl",
    "CLIP on MMC4-Pair": "scenes-clip-pair",
    "CoCa": "scenes-coca",
    "BLIP-2": "scenes-blip2",
    "BEiT-3": "scenes-beit3",
    "Flamingo": "scenes-flamingo",
    "Emu": "scenes-emu",
}
"""The preset of each, by its name in the papers' tables."""


@dataclass
class Tried:
    """What became of one method."""

    name: str
    stopped_at: int
    last_step: int
    losses: list[float]
    """As the journal has them: one every 10 steps."""
    evaluated: dict[str, float]
    difference: float
    seconds: float

    @property
    def row(self) -> list[str]:
        """Its row of the table."""
        shown = next(iter(self.evaluated.items()), ("", float("nan")))
        return [
            self.name,
            f"{self.stopped_at} of {self.last_step}",
            f"{self.losses[0]:.2f} → {self.losses[-1]:.2f}",
            f"{shown[0]} {shown[1]:.1f}",
            f"{self.difference:.1e}",
            f"{self.seconds:.0f}",
        ]


def command(*words: str) -> list[str]:
    """A command of this Python environment."""
    return [command_path("cornerstone"), *words]


def journal(run: Path, metric: str = "train/loss") -> list[tuple[int, float]]:
    """Steps and values of a metric, as far as they are written."""
    lines = (
        json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines() if line.endswith("}")
    )  # a last line may be half written
    return [(line["step"], line["metrics"][metric]) for line in lines if metric in line["metrics"]]


def tried(name: str, chosen: str, steps: int, scratch: Path) -> Tried:
    """Train half, interrupt, resume to the end, evaluate and load."""
    begun, runs = time.perf_counter(), Path(home().join("runs").uri)
    before = set(runs.glob("*"))
    typed = ["train", "--preset", chosen, "--steps", str(steps), "--recipe.evaluation.every", "0", *PLACEMENT]
    typed += ["--placement.checkpoint-every", str(steps // 4)]
    log = scratch / "log"
    with log.open("w") as out:
        process = subprocess.Popen(command(*typed), stdout=out, stderr=out)
        while process.poll() is None and not any(_steps_of(run) >= steps // 2 for run in set(runs.glob("*")) - before):
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        status = process.wait(120)
    new = list(set(runs.glob("*")) - before)
    if status != 130 or len(new) != 1:
        raise RuntimeError(
            f"{name}: expected an interrupted run with status 130, found {status}, {new}:\n{log.read_text()}"
        )
    (run,) = new
    stopped, inside = _steps_of(run), scratch / "training.json"
    _done(*typed, "--resume", run.name, "--json", str(inside))
    evaluated, difference = _evaluated(chosen, run, json.loads(inside.read_text()), scratch)
    load(str(run))
    losses = dict(sorted(journal(run)))  # of a step that was done twice, the later report
    return Tried(name, stopped, max(losses), list(losses.values()), evaluated, difference, time.perf_counter() - begun)


def _evaluated(chosen: str, run: Path, inside: dict[str, Any], scratch: Path) -> tuple[dict[str, float], float]:
    """The metrics of the saved model, and the largest difference from those at the end of training."""
    sets = prepare(preset(chosen)).sets
    found: dict[str, float] = {}
    for task in dict.fromkeys(one.task.name for one in sets):
        file, judged = scratch / f"{task}.json", [one for one in sets if one.task.name == task]
        data = [f"{one.name}={one.folder}" for one in judged]
        _done("evaluate", str(run), "--data", *data, "--task", task, "--json", str(file))
        found |= {k: v for k, v in json.loads(file.read_text()).items() if isinstance(v, float) and k in inside}
    return found, max(abs(inside[k] - v) for k, v in found.items())


def _steps_of(run: Path) -> int:
    return max((step for step, _ in journal(run)), default=0) if (run / "journal.jsonl").exists() else 0


def _done(*words: str) -> None:
    done = subprocess.run(command(*words), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"cornerstone {' '.join(words)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")


def main() -> None:
    """Try them, and print a table."""
    usual = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    usual.add_argument("--steps", type=int, default=200)
    options = usual.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    rows = []
    for name in options.only:
        with tempfile.TemporaryDirectory() as scratch:
            rows.append(tried(name, METHODS[name], options.steps, Path(scratch)).row)
        print(rows[-1], flush=True)
    header = ["method", "interrupted after", "loss, first and last report", "a metric"]
    table("methods", [*header, "largest difference", "seconds"], rows)


if __name__ == "__main__":
    main()
