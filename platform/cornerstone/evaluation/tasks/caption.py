"""Captions that a model writes, greedily, against the raw captions of the set's rows: CIDEr, BLEU and ROUGE-L."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from cornerstone.data.batch import Batch
from cornerstone.data.manifest import Kind
from cornerstone.data.pairs.batch import EvaluationBatch
from cornerstone.data.pairs.source import PairEvaluation
from cornerstone.data.pairs.views import View
from cornerstone.data.shards import DataSet, Reader
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.captions import score_captions
from cornerstone.evaluation.ptb import tokenizer
from cornerstone.evaluation.ranking import Measured
from cornerstone.evaluation.tasks.task import Collected, Contents, EvaluationInputs, EvaluationSet, Judge, Metric, Task
from cornerstone.models.caption_transfer import CaptionTransfer

ROWS_AT_ONCE = 128


@dataclass
class Written(Collected):
    """The captions of the rows that this worker has seen."""

    captions: dict[int, str] = field(default_factory=dict)
    left_out: int = 0

    def add(self, batch: Batch, judge: Judge) -> None:
        """Write a caption for each image."""
        if not isinstance(batch, EvaluationBatch):
            raise TypeError(f"a {type(batch).__name__} is no batch of an evaluation set of pairs")
        self.left_out += len(batch.bad)
        form = judge.texts
        assert form is not None, "a model that writes captions reads them too"
        longest = form.max_tokens - 2  # what begins and ends a text are not written
        written = [
            ids
            for part in batch.image.split(ROWS_AT_ONCE)
            if len(part)
            for ids in judge.model.generate(part.to(judge.device), form.first, form.last, longest)
        ]
        for row, ids in zip(batch.row.tolist(), written, strict=True):
            self.captions[row] = form.tokenizer.decode(ids, skip_special_tokens=True)


@dataclass(frozen=True)
class Captioning(Task):
    """COCO's scores, × 100. An image that cannot be read has an empty caption; one without a raw caption is not judged."""

    name = "caption"
    reads: ClassVar[Kind] = "pairs"
    metrics = (
        Metric("cider", "CIDEr", ""),
        Metric("bleu4", "BLEU@4", ""),
        Metric("rouge_l", "ROUGE-L", "", shown=False),
        *(Metric(f"bleu{n}", f"BLEU@{n}", "", shown=False) for n in (1, 2, 3)),
    )

    def refusal(self, method: type) -> str:
        """It needs a model that writes."""
        return "" if issubclass(method, CaptionTransfer) else "writes no captions"

    def views(self, contents: Contents) -> dict[str, View]:
        """One set; its captions are read when they are compared."""
        return {"": ()}

    def source(self, judged: EvaluationSet, inputs: EvaluationInputs) -> PairEvaluation:
        """The rows' images."""
        if inputs.texts is None:
            raise CornerstoneError(f"{judged.name} is judged by captions, but the method reads no texts.")
        images = inputs.images.for_evaluation("")
        return PairEvaluation(judged.folder, judged.rows, images, inputs.texts, judged.view)

    def collected(self) -> Written:
        """Captions."""
        return Written()

    def conclude(self, judged: EvaluationSet, parts: Sequence[Written], judge: Judge) -> Measured:
        """Scores of the whole set."""
        references = raw_captions(DataSet.open(judged.folder, "pairs"))
        found: Mapping[int, str] = {row: text for part in parts for row, text in part.captions.items()}
        written = {row: found.get(int(row), "") for row in references}
        scores = score_captions(written, references, tokenizer(lambda text: None))
        return Measured(
            metrics={metric.name: scores.metrics[metric.name] for metric in self.metrics},
            counts={"images": len(written), "captions": sum(map(len, references.values()))},
        )

    def notes(self, judged: EvaluationSet) -> tuple[str, ...]:
        """What is measured."""
        return (
            f"{judged.name}: greedy captions of a language model that was trained on the image tower's patches. CIDEr weighs "
            f"words by how rare they are among the set's references: on small sets, and on scenes, it is comparable only "
            f"within this table.",
        )


def raw_captions(data: DataSet) -> dict[str, list[str]]:
    """The raw captions of each row that has some, by its number. CornerstoneError if none has."""
    column = Reader(data, ["captions"]).take(np.arange(len(data)))["captions"].to_pylist()
    told = {
        str(row): [one["text"] for one in captions or [] if one["role"] == "raw"] for row, captions in enumerate(column)
    }
    references = {row: texts for row, texts in told.items() if texts}
    if not references:
        raise CornerstoneError(
            f"No image of {data.location} has a raw caption to compare with: import it with --raw FIELD, once for each "
            f"caption."
        )
    return references
