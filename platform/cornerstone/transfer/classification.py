"""Transfer to a classification: attention pooling and a linear layer over a tower's patches, k-NN and a linear probe.

Beside the tower stands a floor, the same architecture with random weights, frozen, and if wanted a ceiling.

N training images, Q test images, V width of a feature.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from cornerstone.data import draws
from cornerstone.data.images import Transform
from cornerstone.data.pairs.image_input import DecodedImages
from cornerstone.data.pairs.labelled import LabelledImages, class_places
from cornerstone.data.plan import Plan
from cornerstone.data.shards import DataSet
from cornerstone.evaluation.collapse import collapse_warning, effective_rank, variance
from cornerstone.evaluation.probes import linear, nearest
from cornerstone.evaluation.sets import split_name
from cornerstone.models.classifier import Classifier
from cornerstone.models.image_tower import TimmTower
from cornerstone.models.method import Inputs
from cornerstone.recipes.classifier import ClassifierConfig
from cornerstone.transfer.fitting import Fitting, best_rate, fit, held_out, right, with_rate
from cornerstone.transfer.images import Split, read
from cornerstone.transfer.options import Options, Paper
from cornerstone.transfer.result import Result, Row, few_seeds
from cornerstone.transfer.subjects import Subject, compared, subjects

IMAGENET = Paper(14_000, 8_192, warmup=1_500, rows=1_281_167, learning_rates=(1e-4, 3e-4, 1e-3))
"""LCL's training on ImageNet-1k: 90 epochs."""
SPLITS = "training images", "test images"


@dataclass(frozen=True)
class LabelledData:
    """A training and a test set that count their classes alike."""

    train: DataSet
    test: DataSet
    name: str
    """The test set's."""
    to_class: tuple[int, ...]
    """The training set's label of each of the test set's."""

    @staticmethod
    def open(train: str, test: str) -> LabelledData:
        """Open both. CornerstoneError if one has no classes, or the test set has a class that the training set lacks."""
        name, folder = split_name(test)
        sets = DataSet.open(train, "pairs"), DataSet.open(folder, "pairs")
        return LabelledData(*sets, name or sets[1].name, class_places(*sets))

    @property
    def classes(self) -> int:
        """Classes of the training set."""
        return len(self.train.manifest.classes)

    def sources(self, size: int, crop_scale: tuple[float, float]) -> tuple[LabelledImages, LabelledImages]:
        """The training and the test rows as a tower of that size sees them."""
        images = DecodedImages(Transform(size, crop_scale))
        train = LabelledImages.of(self.train, images, tuple(range(self.classes)))
        return train, LabelledImages.of(self.test, images, self.to_class)


def classify(model: str, options: Options) -> Result:
    """Every row of the table for the tower that `model` names."""
    start = time.perf_counter()
    data = LabelledData.open(options.train, options.test)
    notes = list(few_seeds(options.seeds))
    rows: list[Row] = []
    for subject in subjects(model, options, factor=1.0):
        options.say(f"{subject.name}, {subject.mode}: {data.classes} classes")
        found, warning = _measured(subject, data, options)
        rows += found
        notes += [f"{subject.name}: {warning}"] if warning and not subject.prefix else []
    notes += compared(rows, "top1")
    return Result(data.name, tuple(rows), tuple(notes), time.perf_counter() - start)


def _measured(subject: Subject, data: LabelledData, options: Options) -> tuple[list[Row], str]:
    """The subject's rows, and a warning if its features have collapsed."""
    start = time.perf_counter()
    sources = data.sources(subject.tower.size, options.crop_scale)
    passed = partial(read, device=options.device, memory=options.memory, track=options.track)
    rows, warning, splits = [], "", []
    if not (subject.full and subject.prefix):  # random weights are probed as the floor
        tower = copy.deepcopy(subject.tower)
        splits = [passed(source, tower, what=what) for source, what in zip(sources, SPLITS, strict=True)]
        rows = _probes(subject, splits[0], splits[1], data.classes, start)
        features = splits[0].mean_NV[torch.from_numpy(splits[0].usable)]
        warning = collapse_warning(effective_rank(features), variance(features))
    if subject.full:
        splits = [passed(source, None, what=what) for source, what in zip(sources, SPLITS, strict=True)]
    train, test = splits
    options.say(f"  {len(train.usable):,} training and {len(test.usable):,} test images in {_since(start)}")
    return [_trained(subject, sources[0], train, test, data.classes, options), *rows], warning


def _trained(
    subject: Subject, source: LabelledImages, train: Split, test: Split, classes: int, options: Options
) -> Row:
    start = time.perf_counter()
    config = ClassifierConfig(classes, frozen=not subject.full, tower_lr_factor=subject.factor)
    optimization = options.optimization(len(train.usable), IMAGENET)
    plan = Plan(source.parts, optimization.batch_size, seed=0)
    fitting = Fitting(optimization, plan, options.precision, options.micro_batch)
    build = partial(_classifier, subject.tower, config, options.device)
    held = held_out(train.usable, options.held_share)

    def reached(rate: float) -> float:
        model = fit(build, train, np.setdiff1d(train.usable, held), with_rate(fitting, rate), seed=0)
        return _percent(right(model, train, held))

    what = f"top-1 on {len(held):,} held-out training images"
    rate = best_rate(options.rates(IMAGENET), reached, options.say, what)
    results = []
    for seed in range(options.seeds):
        model = fit(build, train, train.usable, with_rate(fitting, rate), seed)
        results.append(right(model, test, test.usable))
        options.say(
            f"  seed {seed}: top-1 {_percent(results[-1]):.2f} after {optimization.steps:,} steps, {_since(start)}"
        )
    return _row(subject, "top1", "attention pooling", torch.stack(results), test, start, rate)


def _classifier(tower: TimmTower, config: ClassifierConfig, device: torch.device, seed: int) -> Classifier:
    """A fresh one: its tower is a copy, which training may change."""
    inputs = Inputs(0, tower.model.num_features, copy.deepcopy(tower))  # type: ignore[arg-type]
    return Classifier.build(config, inputs, seed).to(device)


def _probes(subject: Subject, train: Split, test: Split, classes: int, start: float) -> list[Row]:
    """k-NN and the linear probe on the frozen tower's mean patch."""
    fitted, asked = torch.from_numpy(train.usable), torch.from_numpy(test.usable)
    fitted = fitted[torch.from_numpy(draws.permutation(len(fitted), 0, "probe"))]  # the probe holds out its last fifth
    features = train.mean_NV[fitted], train.label_N[fitted], test.mean_NV[asked], classes
    rows = []
    for name, head, probe in (("linear_top1", "linear probe", linear), ("knn_top1", "k-NN", nearest)):
        hits = probe(*features) == test.label_N[asked]
        rows.append(_row(subject, name, head, hits[None], test, start, None))
    return rows


def _row(subject: Subject, name: str, head: str, hits_SQ: Tensor, test: Split, start: float, rate: float | None) -> Row:
    drawn = rate is not None
    mode = subject.mode if drawn else "frozen"
    score = 100.0 * hits_SQ.numpy().astype(np.float64)
    seconds = time.perf_counter() - start
    return Row(subject.prefix + name, subject.name, mode, head, score, test.usable, "top-1", rate, seconds, drawn=drawn)


def _percent(hits: Tensor) -> float:
    return 100 * float(hits.float().mean())


def _since(start: float) -> str:
    return f"{time.perf_counter() - start:.1f} s"
