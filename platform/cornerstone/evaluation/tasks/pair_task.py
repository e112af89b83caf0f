"""What the tasks on image-text pairs share: features of the images and of the texts that are judged.

Shape legend: N images, T texts, D feature width.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from cornerstone.data.batch import Batch, pad_lists
from cornerstone.data.manifest import Kind
from cornerstone.data.pairs.batch import EvaluationBatch
from cornerstone.data.pairs.source import PairEvaluation
from cornerstone.data.pairs.views import About
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.ranking import Measured, Similarity
from cornerstone.evaluation.tasks.task import Collected, EvaluationInputs, EvaluationSet, Judge, Task

ROWS_AT_ONCE = 256
"""Images, or texts, of one forward pass: a batch may hold as many rows as a training step."""
EncodeTexts = Callable[[Sequence[str]], Tensor]
"""Text features (T, D), fp32 on the CPU, by the model that is evaluated."""


@runtime_checkable
class Encoder(Protocol):
    """What these tasks need of a model. Corner tokens are not computed."""

    def encode_image(self, image: Tensor) -> Tensor:
        """(B, D) from images or stored features."""
        ...

    def encode_text(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """(B, D) of the CLS token from token ids (B, T) and lengths (B,)."""
        ...

    def similarity(self, image: Tensor, text: Tensor) -> Tensor:
        """(N, T) of every image and every text, from their normalised features."""
        ...

    def text_similarity(self, image: Tensor, text: Tensor) -> Tensor:
        """(N, T): what a text finds an image by."""
        ...


@dataclass(frozen=True)
class Encoded:
    """Features and labels of a set's usable rows, ordered by row; fp32 on the CPU."""

    similarity: Similarity
    """How the model compares images with texts."""
    text_similarity: Similarity
    """The same where a text looks for its image."""
    image_ND: Tensor
    """(N, D), or (N, ..., D) of a model with several features of an image."""
    label_N: Tensor
    """-1: the row has no label."""
    groups: tuple[str, ...]
    """The group of each image; empty: none."""
    text_TD: Tensor
    owner_T: Tensor
    """Index of the image that each text belongs to."""
    place_T: Tensor
    """Index of each text among the texts that the view takes of its row."""
    key_T: Tensor
    """Equal for identical texts."""
    about: tuple[About, ...] = ()
    """What is known of each text."""


@dataclass
class PairFeatures(Collected):
    """Features of the rows of one set that this worker has seen, in that order; on the CPU, in fp32."""

    rows: list[Tensor] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    texts: list[Tensor] = field(default_factory=list)
    text_rows: list[Tensor] = field(default_factory=list)
    text_places: list[Tensor] = field(default_factory=list)
    text_keys: list[Tensor] = field(default_factory=list)
    text_about: list[About] = field(default_factory=list)
    left_out: int = 0
    """Rows whose image could not be used."""

    def add(self, batch: Batch, judge: Judge) -> None:
        """Encode the images and texts of some rows."""
        if not isinstance(batch, EvaluationBatch):
            raise TypeError(f"a {type(batch).__name__} is no batch of an evaluation set of pairs")
        self.left_out += len(batch.bad)
        if len(batch.row) == 0:
            return
        self.rows.append(batch.row)
        for part in batch.image.split(ROWS_AT_ONCE):
            self.images.append(judge.model.encode_image(part.to(judge.device)).float().cpu())
        self.labels.append(batch.label)
        self.groups += batch.group
        kept = batch.text_length > 0
        if kept.any():
            ids, lengths = batch.text_ids[kept], batch.text_length[kept]
            self.texts.append(encode_texts(judge.model, ids, lengths, judge.device))
            self.text_rows.append(batch.text_row[kept])
            self.text_places.append(batch.text_place[kept])
            self.text_keys.append(batch.text_key[kept])
            self.text_about += itertools.compress(batch.text_about, kept.tolist())


class PairTask(Task):
    """A task that compares images with texts."""

    reads: ClassVar[Kind] = "pairs"

    def refusal(self, method: type) -> str:
        """It needs a model that encodes images and texts apart."""
        return "" if issubclass(method, Encoder) else "is no dual encoder, so no evaluation set of pairs suits it"

    def source(self, judged: EvaluationSet, inputs: EvaluationInputs) -> PairEvaluation:
        """The rows with every text that is judged."""
        if inputs.texts is None:
            raise CornerstoneError(f"{judged.name} is judged by its texts, but the method has no text tower.")
        images = inputs.images.for_evaluation(inputs.stores.get(judged.folder, ""))
        return PairEvaluation(judged.folder, judged.rows, images, judged.limited(inputs.texts), judged.view)

    def collected(self) -> PairFeatures:
        """Features."""
        return PairFeatures()

    def conclude(self, judged: EvaluationSet, parts: Sequence[PairFeatures], judge: Judge) -> Measured:
        """Judge the features of all workers."""
        texts = judge.texts
        assert texts is not None, "a dual encoder has a text tower"

        def encode(prompts: Sequence[str]) -> Tensor:
            return encode_texts(judge.model, *pad_lists(texts.encode_texts(prompts)), judge.device)

        return self.judge(judged, _merged(judged, parts, judge.model), encode)

    @abstractmethod
    def judge(self, judged: EvaluationSet, encoded: Encoded, encode_texts: EncodeTexts) -> Measured:
        """All of `metrics`, and each query's result."""


def encode_texts(model: Encoder, ids: Tensor, lengths: Tensor, device: torch.device) -> Tensor:
    """CLS features (N, D), fp32 on the CPU. Texts are sorted by length, so that each pass has little padding."""
    order = torch.argsort(lengths)
    out: list[Tensor] = []
    for chosen in order.split(ROWS_AT_ONCE):
        longest = int(lengths[chosen].max())
        out.append(model.encode_text(ids[chosen, :longest].to(device), lengths[chosen].to(device)).float().cpu())
    return torch.cat(out)[torch.argsort(order)]


def _merged(judged: EvaluationSet, parts: Sequence[PairFeatures], model: Encoder) -> Encoded:
    """The features of all workers, ordered by row, so that the result does not depend on the number of workers."""
    if not any(part.rows for part in parts):
        raise CornerstoneError(f"Evaluation set {judged.name!r} has no usable row: {judged.rows} were refused.")
    by = model.similarity, model.text_similarity
    rows = torch.cat([r for p in parts for r in p.rows])
    order = torch.argsort(rows)
    images = torch.cat([x for p in parts for x in p.images])[order]
    labels = torch.cat([x for p in parts for x in p.labels])[order]
    groups = [g for p in parts for g in p.groups]
    groups = [groups[i] for i in order.tolist()]
    texts = [t for p in parts for t in p.texts]
    if not texts:
        if judged.view:
            raise CornerstoneError(f"Evaluation set {judged.name!r} has no usable text to judge.")
        none = torch.zeros(0, dtype=torch.int64)
        return Encoded(*by, images, labels, tuple(groups), images[:0], none, none, none)
    text_rows = torch.cat([t for p in parts for t in p.text_rows])
    places = torch.cat([t for p in parts for t in p.text_places])
    keys = torch.cat([t for p in parts for t in p.text_keys])
    by_row = torch.argsort(text_rows * (int(places.max()) + 1) + places)
    owner = torch.searchsorted(rows[order], text_rows[by_row])
    features = torch.cat(texts)[by_row]
    about = [one for p in parts for one in p.text_about]
    about = [about[i] for i in by_row.tolist()] if about else []
    return Encoded(*by, images, labels, tuple(groups), features, owner, places[by_row], keys[by_row], tuple(about))
