"""Interleaved documents: how well the text is predicted, what the images are worth to that, and whether they can be told apart.

Shape legend: B sequences, N images, D feature width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from cornerstone.data.batch import Batch
from cornerstone.data.documents.batch import SequenceBatch
from cornerstone.data.documents.source import PackedSource
from cornerstone.data.manifest import Kind
from cornerstone.data.pairs.image_input import DecodedImages
from cornerstone.data.pairs.views import View
from cornerstone.data.scenes.documents import known_worth
from cornerstone.data.shards import DataSet
from cornerstone.data.source import Part
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.collapse import effective_rank, variance
from cornerstone.evaluation.ranking import Measured, normalised, percent, ranks
from cornerstone.evaluation.tasks.task import Collected, Contents, EvaluationInputs, EvaluationSet, Judge, Metric, Task
from cornerstone.models.document_model import DocumentModel

ROWS_AT_ONCE = 32
"""Sequences of one forward pass."""


@dataclass
class Readings(Collected):
    """What a worker has read."""

    rows: list[Tensor] = field(default_factory=list)
    loss: list[Tensor] = field(default_factory=list)
    shuffled: list[Tensor] = field(default_factory=list)
    correct: list[Tensor] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    contexts: list[Tensor] = field(default_factory=list)
    compared: list[Tensor] = field(default_factory=list)
    image_rows: list[Tensor] = field(default_factory=list)
    left_out: int = 0
    """Images that could not be used."""

    def add(self, batch: Batch, judge: Judge) -> None:
        """Read some sequences twice: with their own images, and with those of other documents."""
        if not isinstance(batch, SequenceBatch):
            raise TypeError(f"a {type(batch).__name__} is no batch of packed documents")
        self.left_out += len(batch.bad)
        batch = batch.rows(0, int(batch.valid.sum()))
        for part in batch.split(math.ceil(len(batch) / ROWS_AT_ONCE)) if len(batch) else []:
            here = part.to(judge.device)
            read, other = judge.model.reading(here), judge.model.reading(shuffled(here))
            self.rows.append(part.row)
            self.tokens.append(part.target.sum(1))
            self.loss.append(read.token_loss_B1[:, 0].double().cpu())
            self.shuffled.append(other.token_loss_B1[:, 0].double().cpu())
            self.correct.append(read.correct_B1[:, 0].double().cpu())
            usable = part.image_valid
            self.images.append(read.image_ND.float().cpu()[usable])
            self.contexts.append(read.context_ND.float().cpu()[usable])
            self.compared.append(read.compared_N.cpu()[usable])
            self.image_rows.append(part.row[part.image_row][usable] * 2**16 + part.image_at[usable])


def shuffled(batch: SequenceBatch) -> SequenceBatch:
    """The same sequences with each image replaced by one of another sequence, as far as there is one."""
    count = len(batch.image_row)
    if count < 2:
        return replace(batch, image=255 - batch.image if batch.image.dtype == torch.uint8 else -batch.image)
    other = torch.arange(count, device=batch.image.device).roll(count // 2)
    return replace(batch, image=batch.image[other], image_valid=batch.image_valid[other])


@dataclass(frozen=True)
class Interleaved(Task):
    """L_gen and token accuracy; retrieval of each image by what its document said before it; worth and spread of images."""

    name = "interleaved"
    reads: ClassVar[Kind] = "packing"
    metrics = (
        Metric("generation", "L_gen", "nats"),
        Metric("context_r1", "context→image R@1"),
        Metric("image_worth", "image worth", "nats"),
        Metric("image_worth_share", "worth used"),
        Metric("effective_rank", "effective rank", ""),
        Metric("token_accuracy", "token accuracy", shown=False),
        Metric("bits_per_token", "bits a token", "bits", shown=False),
        Metric("context_r5", "context→image R@5", shown=False),
        Metric("image_r1", "image→context R@1", shown=False),
        Metric("image_variance", "image variance", "", shown=False),
    )

    def applies(self, contents: Contents) -> bool:
        """Every packing is judged by it."""
        return True

    def refusal(self, method: type) -> str:
        """It needs a model that reads documents."""
        return "" if issubclass(method, DocumentModel) else "reads no documents"

    def views(self, contents: Contents) -> dict[str, View]:
        """One set."""
        return {"": ()}

    def worth(self, data: DataSet) -> float:
        """What the images are worth for predicting the text, in nats; 0 if it is not known."""
        return known_worth(DataSet.open(data.manifest.source["data"], "documents").manifest)

    def source(self, judged: EvaluationSet, inputs: EvaluationInputs) -> PackedSource:
        """The packing's sequences, each image on the side that epoch 0 of seed 0 draws."""
        if not isinstance(inputs.images, DecodedImages):
            raise CornerstoneError(f"{judged.name} holds documents, whose images are not stored as features.")
        opened = DataSet.open(judged.folder, "packing")
        part = Part(tuple(shard.row_groups for shard in opened.manifest.shards))
        transform = replace(inputs.images.transform, train=False)
        return PackedSource.of([opened], (part,), inputs.tokenizer, transform, seed=0)

    def collected(self) -> Readings:
        """Losses and features."""
        return Readings()

    def conclude(self, judged: EvaluationSet, parts: Sequence[Readings], judge: Judge) -> Measured:
        """Sums over all sequences, and ranks among all images."""
        rows = _joined(parts, "rows")
        if not len(rows):
            raise CornerstoneError(f"Evaluation set {judged.name!r} has no usable row: {judged.rows} were refused.")
        order = torch.argsort(rows)
        loss, other, correct, tokens = (
            float(_joined(parts, name)[order].double().sum()) for name in ("loss", "shuffled", "correct", "tokens")
        )
        by_image = torch.argsort(_joined(parts, "image_rows"))
        image, context = (_joined(parts, name)[by_image] for name in ("images", "contexts"))
        compared = _joined(parts, "compared")[by_image]
        retrieved = _retrieved(image[compared], context[compared])
        metrics = {
            "generation": loss / max(tokens, 1),
            "token_accuracy": 100 * correct / max(tokens, 1),
            "bits_per_token": loss / max(tokens, 1) / math.log(2),
            "image_worth": (other - loss) / max(len(image), 1),
            "image_worth_share": 100 * (other - loss) / judged.worth if judged.worth else math.nan,
            "effective_rank": effective_rank(image) if len(image) > 1 else math.nan,
            "image_variance": variance(image) if len(image) > 1 else math.nan,
            **{name: percent(hits) for name, hits in retrieved.items()},
        }
        count = int(compared.sum())
        return Measured(
            metrics={
                metric.name: metrics[metric.name] for metric in self.metrics if not math.isnan(metrics[metric.name])
            },
            counts={"sequences": len(rows), "images": len(image), "images_compared": count, "tokens": int(tokens)},
            correct=retrieved,
            cluster=dict.fromkeys(retrieved, torch.arange(count)),
            chance={name: 100 * min(int(name[-1]) / max(count, 1), 1.0) for name in retrieved},
        )

    def notes(self, judged: EvaluationSet) -> tuple[str, ...]:
        """What the columns mean."""
        return (
            f"{judged.name}: L_gen is the mean −log p of the text targets; image worth is its rise, for each image, if "
            "every image is replaced by another document's"
            + (", worth used its share of what there was to gain." if judged.worth else "."),
        )


def _retrieved(image_ND: Tensor, context_ND: Tensor) -> dict[str, Tensor]:
    """For each context whether its image is the nearest, and the other way round."""
    image_ND, context_ND = normalised(image_ND), normalised(context_ND)
    own = torch.eye(len(image_ND), dtype=torch.bool)
    found = {
        "context": ranks(context_ND, image_ND, own.__getitem__),
        "image": ranks(image_ND, context_ND, own.__getitem__),
    }
    return {"context_r1": found["context"] < 1, "context_r5": found["context"] < 5, "image_r1": found["image"] < 1}


def _joined(parts: Sequence[Readings], name: str) -> Tensor:
    found = [x for part in parts for x in getattr(part, name)]
    return torch.cat(found) if found else torch.zeros(0)
