"""Part `overfit`: LCL on real documents. In both record shapes the loss falls; 32 documents are learnt by heart.

On the 32 documents it prints, as training goes on, the accuracy of the next token on text and how often an image is the
nearest to what its document said before it (R@1 among all images that have a text before them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.reading import DATA, vocabulary
from benchmarks.report import table
from cornerstone.data.documents import PackingConfig
from cornerstone.data.documents.config import Rule
from cornerstone.data.importers import import_pairs
from cornerstone.data.layout import Layout
from cornerstone.data.parallel import map_here
from cornerstone.data.records import Pair
from cornerstone.data.scenes.tokenizer import texts_of, train_wordpiece
from cornerstone.data.shards import DataSet
from cornerstone.data.stream import Stream
from cornerstone.evaluation.evaluator import evaluate
from cornerstone.evaluation.judged import metrics_of
from cornerstone.jobs.packing import write_packing
from cornerstone.recipes import DocumentData, Evaluation, LclConfig, Optimization, Recipe, preset
from cornerstone.training.build import build_method, build_tower
from cornerstone.training.engine import PlainEngine
from cornerstone.training.prepare import prepare
from cornerstone.training.schedule import learning_rate

BUDGET, SEQUENCES, DOCUMENTS = 512, 8, 32
STEPS, OVERFIT_STEPS, EVERY = 60, 1000, 100
RULES: dict[str, Rule] = {"mmc4": "mmc4", "obelics": "obelics"}
SHOWN = ("generation", "token_accuracy", "context_r1", "effective_rank")


def overfit(folder: Path, pairs: list[Pair]) -> None:
    """The loss in both shapes; accuracy and retrieval on 32 documents."""
    torch.set_num_threads(2)
    rows = []
    for name in ("openstax", "recipes"):
        for shape in ("mmc4", "obelics"):
            packed = _packed(folder / f"{name}-{shape}", name, shape)
            losses = [report["generation"] for report in _trained(packed, STEPS, 1e-3)]
            first, last = (sum(part) / len(part) for part in (losses[:5], losses[-5:]))
            rows.append([name, shape, f"{first:.2f}", f"{last:.2f}"])
    table(f"L_gen on real documents, {STEPS} steps", ["data", "records", "first 5 steps", "last 5 steps"], rows)
    measured: list[dict[str, float]] = []
    for name in ("recipes", "openstax"):
        packed = _packed(folder / f"{name}-few", name, "mmc4", DOCUMENTS)
        _trained(packed, OVERFIT_STEPS, 1.5e-3, measured)
        found = [[f"{EVERY * (i + 1)}", *(f"{m[n]:.2f}" for n in SHOWN)] for i, m in enumerate(measured)]
        table(f"{DOCUMENTS} documents of {name}, learnt by heart", ["steps", *SHOWN], found)
        measured.clear()


def _packed(folder: Path, name: str, shape: str, documents: int | None = None) -> str:
    source = DATA / name / f"docs_{shape}.jsonl"
    import_pairs(shape, source, folder / "documents", images=str(DATA / name / "images"), limit_rows=documents)
    config = PackingConfig(token_budget=BUDGET, image_tokens=16, rule=RULES[shape], keep_surplus=shape == "mmc4")
    # A vocabulary of the few documents' own: BERT's 30,522 words would take most of the time.
    known = train_wordpiece(texts_of(DataSet.open(str(folder / "documents"))), 4096) if documents else vocabulary()
    write_packing(str(folder / "documents"), str(folder / "packing"), known, config, mapped=map_here)
    return str(folder / "packing")


def _trained(
    packed: str, steps: int, peak: float, measured: list[dict[str, float]] | None = None
) -> Sequence[dict[str, float]]:
    """The reports of all steps; what is measured on the same documents is added to `measured`."""
    method = preset("scenes-lcl").method
    assert isinstance(method, LclConfig)
    recipe = Recipe(
        "overfit",
        replace(method, language=replace(method.language, positions=BUDGET)),
        DocumentData(train=packed, image_size=64, crop_scale=(1.0, 1.0)),
        Optimization(steps=steps, batch_size=SEQUENCES, learning_rate=peak, warmup_steps=steps // 10, weight_decay=0.0),
        Evaluation(sets=() if measured is None else (f"seen={packed}",), every=EVERY),
    )
    prepared = prepare(recipe)
    model, stream = build_method(prepared, build_tower(prepared)), Stream.local(Layout(prepared.stream(), 1), 0, 0)
    engine, reports = PlainEngine(model, recipe.optimization), []
    for step in range(steps):
        report = engine.step(stream.batch(step), learning_rate(step, recipe.optimization))
        reports.append({name: float(value) for name, value in {**report.parts, **report.reports}.items()})
        if prepared.stream().evaluates_after(step):
            batches = stream.evaluation(step)
            found = metrics_of(evaluate(model.eval(), batches, prepared.sets, None, torch.device("cpu")))
            if measured is not None:
                measured.append({name.split("/")[-1]: value for name, value in found.items()})
                print(step + 1, measured[-1], flush=True)
            model.train()
    return reports
