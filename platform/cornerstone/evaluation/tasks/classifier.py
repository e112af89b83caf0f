"""Top-1 accuracy of a trained classifier on labelled images.

Shape legend: B rows, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from cornerstone.data.batch import Batch
from cornerstone.data.manifest import Kind
from cornerstone.data.pairs.batch import LabelledBatch
from cornerstone.data.pairs.labelled import LabelledImages, class_places
from cornerstone.data.pairs.views import View
from cornerstone.data.shards import DataSet
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.ranking import Measured, percent
from cornerstone.evaluation.tasks.task import Collected, Contents, EvaluationInputs, EvaluationSet, Judge, Metric, Task
from cornerstone.models.classifier import Classifier

ROWS_AT_ONCE = 256
AT = (1, 5)


@dataclass
class Ranks(Collected):
    """Of the rows that this worker has seen, how many other classes score as high as their own or higher."""

    rows: list[Tensor] = field(default_factory=list)
    ranks: list[Tensor] = field(default_factory=list)
    classes: int = 0
    left_out: int = 0

    def add(self, batch: Batch, judge: Judge) -> None:
        """Classify some rows."""
        if not isinstance(batch, LabelledBatch):
            raise TypeError(f"a {type(batch).__name__} is no batch of labelled images")
        self.left_out += len(batch.bad)
        usable = batch.valid
        if not usable.any():
            return
        self.rows.append(batch.row[usable])
        images, labels = batch.image[usable], batch.label[usable].long()
        for image, label_B in zip(images.split(ROWS_AT_ONCE), labels.split(ROWS_AT_ONCE), strict=True):
            logits_BC = judge.model.classify(image.to(judge.device)).float().cpu()
            own_B1 = logits_BC.gather(1, label_B[:, None])
            self.ranks.append((~(logits_BC < own_B1)).sum(1) - 1)  # a tie, or NaN, is wrong
            self.classes = logits_BC.shape[1]


@dataclass(frozen=True)
class Classified(Task):
    """Accuracy of the head that was trained, against `classification`, which compares an image with texts."""

    name = "classifier"
    reads: ClassVar[Kind] = "pairs"
    metrics = (Metric("top1", "top-1"), Metric("top5", "top-5", shown=False))

    def refusal(self, method: type) -> str:
        """It needs a head for classes."""
        return "" if issubclass(method, Classifier) else "is no classifier"

    def views(self, contents: Contents) -> dict[str, View]:
        """One set, which reads no text of its rows."""
        return {"": ()}

    def source(self, judged: EvaluationSet, inputs: EvaluationInputs) -> LabelledImages:
        """The rows' images and labels. The set must count its classes as the training set did."""
        data = DataSet.open(judged.folder, "pairs")
        return LabelledImages.of(data, inputs.images.for_evaluation(""), class_places(data, data))

    def collected(self) -> Ranks:
        """Ranks."""
        return Ranks()

    def conclude(self, judged: EvaluationSet, parts: Sequence[Ranks], judge: Judge) -> Measured:
        """Shares of all usable rows."""
        rows = [x for part in parts for x in part.rows]
        if not rows:
            raise CornerstoneError(
                f"Evaluation set {judged.name!r} has no usable row: {judged.rows} have no label or no image."
            )
        order = torch.argsort(torch.cat(rows))
        rank, classes = torch.cat([x for part in parts for x in part.ranks])[order], max(p.classes for p in parts)
        correct = {f"top{k}": rank < k for k in AT}
        return Measured(
            metrics={name: percent(hits) for name, hits in correct.items()},
            counts={"images": len(rank), "classes": classes},
            correct=correct,
            cluster=dict.fromkeys(correct, torch.cat(rows)[order]),
            chance={f"top{k}": 100 * min(k / classes, 1.0) for k in AT},
        )

    def notes(self, judged: EvaluationSet) -> tuple[str, ...]:
        """What is measured."""
        return (f"{judged.name}: top-1 of a head that was trained on the image tower's patches.",)
