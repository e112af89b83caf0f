"""Transfer to retrieval: a new text tower and a new attention pooling, trained contrastively over a tower, frozen or not.

The recipe is an ordinary one (`recipes/retrieval_transfer.py`): `cornerstone train` runs the same on many workers. Here it is
trained in this process, from patches that are computed once, for every seed and for the floor and the ceiling beside it.

S seeds, Q queries.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from cornerstone.data.batch import Batch
from cornerstone.data.pairs.image_input import ImageInput
from cornerstone.data.pairs.source import PairSource
from cornerstone.data.shards import DataSet
from cornerstone.data.source import Ints, Source
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.evaluator import evaluate
from cornerstone.evaluation.ranking import Measured
from cornerstone.evaluation.sets import EvaluationSet, only_task, open_sets
from cornerstone.evaluation.tasks import EvaluationInputs
from cornerstone.models.retrieval_transfer import RetrievalTransfer
from cornerstone.recipes.pairs import PairData
from cornerstone.recipes.recipe import Recipe
from cornerstone.recipes.retrieval_transfer import RetrievalLoss, RetrievalTransferConfig
from cornerstone.recipes.towers import BertText, ImageTower
from cornerstone.training.build import build_method
from cornerstone.training.prepare import Preparer
from cornerstone.training.prepared import Prepared
from cornerstone.transfer.fitting import Fitting, best_rate, held_out, trained, with_rate
from cornerstone.transfer.images import ROWS_AT_ONCE
from cornerstone.transfer.options import TOKEN_LIMIT, Options, Paper
from cornerstone.transfer.patches import pair_images
from cornerstone.transfer.result import Result, Row, few_seeds
from cornerstone.transfer.subjects import Subject, compared, subjects

PAIRS = Paper(5_000, 16_384, warmup=500, rows=16_000_000, learning_rates=(1e-3, 3e-4))
"""LCL's training on CC12M, CC3M and SBU."""
TOWER_LR_FACTOR = 0.01
"""1e-5 for pretrained weights, 1e-3 for new ones."""
SHOWN = {"i2t_r1": "image → text", "t2i_r1": "text → image"}


@dataclass(frozen=True)
class Task:
    """Data and recipe, the same for every tower of the table."""

    prepared: Prepared
    data: DataSet
    test: EvaluationSet
    validation: EvaluationSet
    """The training rows as an evaluation set, of which the held-out ones are judged."""
    options: Options
    fitting: Fitting


def retrieve_by_transfer(model: str, options: Options) -> Result:
    """Every row of the table for the tower that `model` names."""
    start = time.perf_counter()
    data = DataSet.open(options.train, "pairs")
    test, validation = (_judged(named, options.captions) for named in (options.test, options.train))
    notes, rows = [*few_seeds(options.seeds), *test.task.notes(test)], list[Row]()
    for subject in subjects(model, options, TOWER_LR_FACTOR):
        options.say(f"{subject.name}, {subject.mode}: {len(data):,} training pairs, {test.rows:,} test images")
        rows += _measured(subject, data, test, validation, options)
    notes += compared(rows, "i2t_r1")
    return Result(test.name, tuple(rows), tuple(notes), time.perf_counter() - start)


def _judged(named: str, captions: str) -> EvaluationSet:
    """A folder's retrieval set of these captions. CornerstoneError if it has none."""
    found = only_task(open_sets((named,)), "retrieval")
    fitting = [one for one in found if one.view[0].role == captions]
    if not fitting:
        raise CornerstoneError(
            f"{found[0].folder} has no {captions} captions, only {found[0].view[0].role} ones: set --captions "
            f"{found[0].view[0].role}."
        )
    return fitting[0]


def _measured(
    subject: Subject, data: DataSet, test: EvaluationSet, validation: EvaluationSet, options: Options
) -> list[Row]:
    start = time.perf_counter()
    prepared, task_fitting = _prepared(subject, data, options)
    task = Task(prepared, data, test, validation, options, task_fitting)
    images = pair_images(subject, (data, DataSet.open(test.folder, "pairs")), _texts(task), options)
    options.say(f"  images ready in {_since(start)}")
    usable = np.arange(len(data))
    held = held_out(usable, options.held_share)

    def reached(rate: float) -> float:
        module = _fit(task, subject, images[0], np.setdiff1d(usable, held), rate, seed=0)
        measured = _evaluated(task, module, validation, images[0], held)
        return measured.metrics["i2t_r1"] + measured.metrics["t2i_r1"]

    what = f"the sum of both R@1 on {len(held):,} held-out training images"
    rate = best_rate(options.rates(PAIRS), reached, options.say, what)
    results = []
    for seed in range(options.seeds):
        module = _fit(task, subject, images[0], usable, rate, seed)
        results.append(_evaluated(task, module, test, images[1], np.arange(test.rows)))
        shown = ", ".join(f"{label} {results[-1].metrics[name]:.2f}" for name, label in SHOWN.items())
        options.say(f"  seed {seed}: R@1 {shown} after {task_fitting.optimization.steps:,} steps, {_since(start)}")
    return [_row(subject, name, results, rate, time.perf_counter() - start) for name in SHOWN]


def _prepared(subject: Subject, data: DataSet, options: Options) -> tuple[Prepared, Fitting]:
    """The recipe, with a tower's name that stands for what the subject brings, and how it is trained."""
    heads = next(heads for heads in range(max(1, options.text_width // 64), 0, -1) if options.text_width % heads == 0)
    text = BertText("", options.text_width, options.text_layers, heads, options.limit(TOKEN_LIMIT))
    image = ImageTower("vit_tiny_patch16_224", False, locked=not subject.full, size=subject.tower.size, pooling="none")
    optimization = options.optimization(len(data), PAIRS)
    recipe = Recipe(
        name="retrieval-transfer",
        method=RetrievalTransferConfig(
            image=image, text=text, tower_lr_factor=subject.factor, loss=RetrievalLoss(options.captions)
        ),
        data=PairData(train=options.train, tokenizer=options.tokenizer, crop_scale=options.crop_scale),
        optimization=optimization,
        precision=options.precision,
    )
    prepared = replace(Preparer(options.say).prepare(recipe), image_width=subject.tower.width)
    return prepared, Fitting(optimization, prepared.plan, options.precision, options.micro_batch)


def _texts(task: Task) -> Any:
    texts = task.prepared.evaluation_texts
    assert texts is not None, "the recipe has a text tower"
    return texts


def _fit(task: Task, subject: Subject, images: ImageInput, rows: Ints, rate: float, seed: int) -> RetrievalTransfer:
    prepared = replace(task.prepared, recipe=task.prepared.recipe.with_seed(seed))
    train = prepared.train
    assert isinstance(train, PairSource)
    source = replace(train, images=images, draws=replace(train.draws, seed=seed))
    opened, used = source.open(), np.zeros(source.rows, dtype=bool)
    used[rows] = True
    module = build_method(prepared, copy.deepcopy(subject.tower)).to(task.options.device)
    assert isinstance(module, RetrievalTransfer)

    def read(step: int, planned: Ints, epochs: Ints) -> Batch:
        return source.batch(step, opened.take(planned, epochs))

    return trained(module, read, used, with_rate(task.fitting, rate), seed)


def _evaluated(
    task: Task, module: RetrievalTransfer, judged: EvaluationSet, images: ImageInput, rows: Ints
) -> Measured:
    """The set's measures over some of its rows."""
    texts = _texts(task)
    source: Source[Batch] = judged.source(EvaluationInputs(images, texts, task.prepared.tokenizer))

    def batches() -> Iterator[tuple[int, Batch]]:
        opened = source.open()
        for first in range(0, len(rows), ROWS_AT_ONCE):
            some = rows[first : first + ROWS_AT_ONCE]
            yield 0, source.batch(0, opened.take(some, np.zeros_like(some)))

    (found,) = evaluate(module, batches(), (judged,), texts.open(), task.options.device)
    return found.measured


def _row(subject: Subject, name: str, results: Sequence[Measured], rate: float, seconds: float) -> Row:
    score = torch.stack([measured.correct[name] for measured in results]).numpy() * 100.0
    cluster = results[0].cluster[name].numpy()
    return Row(subject.prefix + name, subject.name, subject.mode, SHOWN[name], score, cluster, "R@1", rate, seconds)


def _since(start: float) -> str:
    return f"{time.perf_counter() - start:.1f} s"
