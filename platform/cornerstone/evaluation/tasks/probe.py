"""What a frozen image tower has learnt: its features' neighbours and a linear classifier, on labelled images.

Shape legend: N images, V feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from cornerstone.data.batch import Batch
from cornerstone.data.manifest import PROBE, Kind
from cornerstone.data.pairs.batch import EvaluationBatch
from cornerstone.data.pairs.image_input import DecodedImages
from cornerstone.data.pairs.source import PairEvaluation
from cornerstone.data.pairs.views import View
from cornerstone.data.texts import TextInput
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.probes import linear, nearest
from cornerstone.evaluation.ranking import Measured, percent
from cornerstone.evaluation.tasks.task import Collected, Contents, EvaluationInputs, EvaluationSet, Judge, Metric, Task

ROWS_AT_ONCE = 256
_MIXING = 2654435761


@dataclass
class ImageFeatures(Collected):
    """Features of the rows that this worker has seen; on the CPU, in fp32."""

    rows: list[Tensor] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    left_out: int = 0

    def add(self, batch: Batch, judge: Judge) -> None:
        """Encode the images of some rows."""
        if not isinstance(batch, EvaluationBatch):
            raise TypeError(f"a {type(batch).__name__} is no batch of an evaluation set of pairs")
        self.left_out += len(batch.bad)
        self.rows.append(batch.row)
        self.labels.append(batch.label)
        for part in batch.image.split(ROWS_AT_ONCE) if len(batch.row) else ():
            self.images.append(judge.model.image_features(part.to(judge.device)).float().cpu())


@dataclass(frozen=True)
class Probe(Task):
    """Top-1 accuracy of probes that are fitted on one half of a labelled set's rows and judged on the other."""

    name = PROBE
    reads: ClassVar[Kind] = "pairs"
    metrics = (Metric("linear_top1", "linear probe"), Metric("knn_top1", "k-NN"))

    def refusal(self, method: type) -> str:
        """It needs an image tower alone."""
        return ""

    def views(self, contents: Contents) -> dict[str, View]:
        """One set, which reads no text of its rows."""
        return {"": ()}

    def source(self, judged: EvaluationSet, inputs: EvaluationInputs) -> PairEvaluation:
        """The rows' images and labels."""
        if not isinstance(inputs.images, DecodedImages):
            raise CornerstoneError(f"{judged.name} probes the image tower, which stored features stand for here.")
        none = TextInput("plain", inputs.tokenizer, 3)
        return PairEvaluation(judged.folder, judged.rows, inputs.images.for_evaluation(""), none, judged.view)

    def collected(self) -> ImageFeatures:
        """Features and labels."""
        return ImageFeatures()

    def conclude(self, judged: EvaluationSet, parts: Sequence[ImageFeatures], judge: Judge) -> Measured:
        """Fit on one half, judge the other."""
        rows = torch.cat([x for part in parts for x in part.rows])
        order = torch.argsort(rows)
        labels = torch.cat([x for part in parts for x in part.labels])[order].long()
        images = torch.cat([x for part in parts for x in part.images])[order] if len(rows) else torch.zeros(0, 1)
        labelled = labels >= 0
        rows, images, labels = rows[order][labelled], images[labelled], labels[labelled]
        fit = (rows * _MIXING >> 16) % 2 == 0  # not the even rows: classes may come in turn
        test = ~fit
        if int(fit.sum()) < 2 or not test.any():
            raise CornerstoneError(
                f"Evaluation set {judged.name!r} has {len(rows)} labelled rows: too few for a probe."
            )
        classes = max(len(judged.classes), int(labels.max()) + 1)
        correct = {
            "linear_top1": linear(images[fit], labels[fit], images[test], classes) == labels[test],
            "knn_top1": nearest(images[fit], labels[fit], images[test], classes) == labels[test],
        }
        return Measured(
            metrics={name: percent(hits) for name, hits in correct.items()},
            counts={"fitted": int(fit.sum()), "images": int(test.sum()), "classes": classes},
            correct=correct,
            cluster=dict.fromkeys(correct, torch.nonzero(test).flatten()),
            chance=dict.fromkeys(correct, 100 / classes),
        )

    def notes(self, judged: EvaluationSet) -> tuple[str, ...]:
        """What is probed."""
        return (f"{judged.name}: the frozen tower's mean patch; fitted on one half of the rows, judged on the other.",)
