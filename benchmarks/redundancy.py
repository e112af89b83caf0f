"""A study of LCL on the built-in documents: does generation alone collapse, and when does the contrastive loss help?

    python -m benchmarks.redundancy --device cuda --processes 14 --steps 1500 --out study.json
    python -m benchmarks.redundancy --show study.json

Bare loops without Ray: the platform's documents, model, engine and evaluation, many runs beside one another on one device.
The pictures of every epoch are decoded once and kept on the device. Points are a redundancy and a weight λ of the contrastive
loss, each at several seeds; λ `con` is the contrastive loss alone. Every run is measured at thirds of its steps.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.study import Measurement, add_options, show_budgets, study
from cornerstone.data.documents.batch import SequenceBatch
from cornerstone.data.layout import Layout
from cornerstone.data.plan import Plan
from cornerstone.data.stream import Stream
from cornerstone.evaluation.evaluator import evaluate
from cornerstone.evaluation.judged import metrics_of
from cornerstone.recipes import DocumentData, LclConfig, Recipe, preset
from cornerstone.training.build import build_method, build_tower
from cornerstone.training.engine import PlainEngine
from cornerstone.training.prepare import Preparer
from cornerstone.training.prepared import Prepared
from cornerstone.training.schedule import learning_rate

CONTRASTIVE_ONLY = "con"
COLUMNS = ("generation", "image_worth", "image_worth_share", "effective_rank", "context_r1", "linear_top1", "knn_top1")
PARTS = 4
"""Processes that decode the rows of an epoch."""
OF_ROW = ("row", "valid", "epoch", "token_ids", "document", "target")
OF_IMAGE = ("image", "image_at", "text_before", "image_valid")


@dataclass(frozen=True)
class Run:
    """One training."""

    redundancy: float
    weight: str
    seed: int

    @property
    def name(self) -> str:
        """As its row is named."""
        named = {"0": "Gen. only", CONTRASTIVE_ONLY: "Con. only"}.get(self.weight, f"LCL, λ = {self.weight}")
        return f"r = {self.redundancy:g}, {named}"

    def recipe(self, options: argparse.Namespace) -> Recipe:
        """Its recipe: `scenes-lcl` with the study's sizes."""
        recipe = preset("scenes-lcl").with_steps(options.steps)
        recipe = recipe.with_optimization(
            batch_size=options.batch, learning_rate=options.learning_rate, warmup_steps=options.steps // 10
        )
        alone = self.weight == CONTRASTIVE_ONLY
        weights = (1.0, 0.0) if alone else (float(self.weight), 1.0)
        recipe = recipe.with_loss(contrastive_weight=weights[0], generation_weight=weights[1])
        method, data = recipe.method, recipe.data
        assert isinstance(method, LclConfig)
        assert isinstance(data, DocumentData)
        method = replace(
            method,
            image=replace(method.image, size=options.size, patch=options.patch, layers=options.tower_layers),
            language=replace(method.language, layers=options.layers),
        )
        scenes = replace(
            data.scenes,
            documents=options.documents,
            redundancy=self.redundancy,
            context=options.context,
            image_tokens=(options.size // options.patch) ** 2,
        )
        recipe = replace(recipe, method=method, seed=self.seed)
        recipe = recipe.with_data(image_size=options.size, scenes=scenes)
        return recipe.with_evaluation(every=max(options.steps // 3, 1))


class KeptBatches:
    """The batches of a plan, from rows that were decoded once and stay on a device."""

    def __init__(self, plan: Plan, epochs: list[SequenceBatch], device: torch.device) -> None:
        self.plan, self.epochs, self.device = plan, [kept.to(device) for kept in epochs], device
        counts = [torch.bincount(kept.image_row, minlength=len(kept)) for kept in epochs]
        self.images = [(count.cumsum(0) - count, count) for count in counts]

    def batch(self, step: int) -> SequenceBatch:
        """The rows of a step, with the sides that images stand on in the epoch of its first row; later epochs repeat them."""
        rows, epochs = self.plan.batch(step)
        number, chosen = int(epochs[0]) % len(self.epochs), torch.from_numpy(rows)
        kept, (first, count) = self.epochs[number], self.images[number]
        counts = count[chosen]
        starts = torch.repeat_interleave(first[chosen] - (counts.cumsum(0) - counts), counts)
        images, at = (starts + torch.arange(len(starts))).to(self.device), chosen.to(self.device)
        values: dict[str, Any] = {name: getattr(kept, name)[at] for name in OF_ROW}
        values |= {name: getattr(kept, name)[images] for name in OF_IMAGE}
        values["image_row"] = torch.repeat_interleave(torch.arange(len(rows)), counts).to(self.device)
        return SequenceBatch(step=step, bad=(), **values)


def joined(parts: Sequence[SequenceBatch]) -> SequenceBatch:
    """One batch of the rows of several."""
    starts = np.cumsum([0, *(len(part) for part in parts)])
    values = {name: torch.cat([getattr(part, name) for part in parts]) for name in (*OF_ROW, *OF_IMAGE)}
    values["image_row"] = torch.cat([part.image_row + int(at) for part, at in zip(parts, starts, strict=False)])
    return SequenceBatch(step=0, bad=(), **values)


def decode(prepared: Prepared, epoch: int, part: int, file: str) -> None:
    """Write the batch of one of `PARTS` parts of the training rows in an epoch; epoch −1: the validation batches."""
    torch.set_num_threads(1)
    if epoch < 0:
        stream, last = Stream.local(Layout(prepared.stream(), 1), 0, due := _first_due(prepared)), due
        stream.batch(last)
        torch.save(list(stream.evaluation(last)), file)
        return
    rows = np.array_split(np.arange(prepared.train.rows), PARTS)[part]
    torch.save(prepared.train.batch(0, prepared.train.open().take(rows, np.full_like(rows, epoch))), file)


def _first_due(prepared: Prepared) -> int:
    return next(step for step in range(prepared.recipe.optimization.steps) if prepared.stream().evaluates_after(step))


def train(run: Run, options: argparse.Namespace, folder: Path) -> Iterator[Measurement]:
    """Train one run; yields what is measured at each third of its steps, and before the first one."""
    device = torch.device(options.device)
    prepared = Preparer(lambda _: None).prepare(run.recipe(options))
    recipe = prepared.recipe
    epochs = [
        joined([torch.load(_file(folder, run, e, part), weights_only=False) for part in range(PARTS)])
        for e in range(options.epochs_kept)
    ]
    batches = KeptBatches(prepared.plan, epochs, device)
    validation = torch.load(_file(folder, run, -1, 0), weights_only=False)
    model = build_method(prepared, build_tower(prepared)).to(device)
    engine = PlainEngine(model, recipe.optimization, precision=options.precision)

    def measured(steps: int, seconds: float, loss: float) -> Measurement:
        model.eval()
        judged = metrics_of(evaluate(model, validation, prepared.sets, None, device))
        model.train()
        named = {name.split("/")[-1]: value for name, value in judged.items()}
        point = {"redundancy": run.redundancy, "weight": run.weight, "seed": run.seed, "name": run.name}
        return {**point, "steps": steps, "seconds": round(seconds, 1), "loss": loss, "measured": named}

    if run.weight == options.weights[0]:  # an untrained tower is the same for every weight
        yield {**measured(0, 0.0, math.nan), "name": f"r = {run.redundancy:g}, untrained"}
    begun = time.perf_counter()
    for step in range(recipe.optimization.steps):
        report = engine.step(batches.batch(step), learning_rate(step, recipe.optimization))
        if prepared.stream().evaluates_after(step):
            loss, seconds = float(report.loss), time.perf_counter() - begun
            yield measured(step + 1, seconds, loss)
            begun = time.perf_counter() - seconds


def _file(folder: Path, run: Run, epoch: int, part: int) -> Path:
    return folder / f"r{run.redundancy:g}-epoch{epoch}-part{part}.pt"


def prepare(options: argparse.Namespace, runs: Sequence[Run], folder: Path) -> None:
    """Write each redundancy's documents, and decode them, in as many processes as there are to be."""
    first = {run.redundancy: run for run in runs}.values()
    tiny = argparse.Namespace(**{**vars(options), "documents": 4 * options.batch})
    Preparer(print).prepare(runs[0].recipe(tiny))  # the labelled images, which all share
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        ready = dict(zip(first, pool.map(_prepared, (run.recipe(options) for run in first)), strict=True))
        wanted = [(e, part) for e in range(options.epochs_kept) for part in range(PARTS)]
        jobs = [(prepared, *at, str(_file(folder, run, *at))) for run, prepared in ready.items() for at in wanted]
        jobs += [(prepared, -1, 0, str(_file(folder, run, -1, 0))) for run, prepared in ready.items()]
        list(pool.map(decode, *zip(*jobs, strict=True)))


def _prepared(recipe: Recipe) -> Prepared:
    return Preparer(print).prepare(recipe)


def options() -> argparse.Namespace:
    """The command line."""
    usual = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(usual)
    usual.add_argument("--redundancies", type=float, nargs="+", default=[0.0, 0.5, 0.9, 1.0])
    usual.add_argument("--weights", nargs="+", default=["0", "0.1"], help=f"λ, or `{CONTRASTIVE_ONLY}`")
    usual.add_argument("--more-weights", nargs="*", default=[], help="others, at --more-at alone")
    usual.add_argument("--more-at", type=float, default=0.5, help="the redundancy of --more-weights")
    usual.add_argument("--steps", type=int, default=900)
    usual.add_argument("--batch", type=int, default=128, help="sequences of a step")
    usual.add_argument("--learning-rate", type=float, default=1.5e-3)
    usual.add_argument("--documents", type=int, default=16_000)
    usual.add_argument("--epochs-kept", type=int, default=2)
    usual.add_argument("--context", type=float, default=0.75)
    usual.add_argument("--size", type=int, default=64)
    usual.add_argument("--patch", type=int, default=16)
    usual.add_argument("--layers", type=int, default=2)
    usual.add_argument("--tower-layers", type=int, default=3)
    return usual.parse_args()


def main() -> None:
    """Run, or show."""
    chosen = options()
    if chosen.show:
        show_budgets(json.loads(Path(chosen.show).read_text()), COLUMNS)
        return
    runs = [
        Run(redundancy, weight, seed)
        for seed in range(chosen.seeds)
        for redundancy in chosen.redundancies
        for weight in [*chosen.weights, *(chosen.more_weights if redundancy == chosen.more_at else ())]
    ]
    show_budgets(study(chosen, runs, prepare, train), COLUMNS)


if __name__ == "__main__":
    main()
