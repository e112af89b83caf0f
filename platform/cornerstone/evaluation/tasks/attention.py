"""Where a model looks: the energy of its attention maps in the boxes of the objects that a text mentions.

Shape legend: B images of a batch, P patches, G patches a side, D feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from cornerstone.data.batch import Batch
from cornerstone.data.manifest import ATTENTION, Kind
from cornerstone.data.pairs.batch import EvaluationBatch
from cornerstone.data.pairs.image_input import StoredFeatures
from cornerstone.data.pairs.source import PairEvaluation
from cornerstone.data.pairs.views import View, Wanted
from cornerstone.data.scenes.boxes import boxes_of
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.attention import area, attention_maps, covered, energy_inside
from cornerstone.evaluation.ranking import Measured
from cornerstone.evaluation.tasks.pair_task import encode_texts
from cornerstone.evaluation.tasks.task import Collected, Contents, EvaluationInputs, EvaluationSet, Judge, Metric, Task

ROWS_AT_ONCE = 256


@runtime_checkable
class PatchEncoder(Protocol):
    """What the task needs of a model."""

    def encode_patches(self, image: Tensor) -> Tensor:
        """(B, P, D) in the space of texts; CornerstoneError if they are in another one."""
        ...

    def encode_text(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """(B, D)."""
        ...


@dataclass
class Energies(Collected):
    """For each metric the rows that have it, their energies and the boxes' shares of the area, in percent."""

    found: dict[str, list[tuple[int, float, float]]] = field(default_factory=dict)
    left_out: int = 0
    """Rows whose image could not be used."""

    def add(self, batch: Batch, judge: Judge) -> None:
        """Compare the patches of some rows with their texts."""
        if not isinstance(batch, EvaluationBatch):
            raise TypeError(f"a {type(batch).__name__} is no batch of an evaluation set of pairs")
        self.left_out += len(batch.bad)
        places = [place for place, boxes in enumerate(batch.boxes) if boxes]
        text_of = {row: text for text, row in enumerate(batch.text_row.tolist()) if batch.text_length[text] > 0}
        places = [place for place in places if int(batch.row[place]) in text_of]
        for part in (places[i : i + ROWS_AT_ONCE] for i in range(0, len(places), ROWS_AT_ONCE)):
            patch_BPD = judge.model.encode_patches(batch.image[part].to(judge.device)).float().cpu()
            texts = [text_of[int(batch.row[place])] for place in part]
            text_BD = encode_texts(judge.model, batch.text_ids[texts], batch.text_length[texts], judge.device)
            for place, map_GG in zip(part, attention_maps(patch_BPD, text_BD), strict=True):
                boxes = batch.boxes[place]
                chosen = {
                    "energy": boxes,
                    "energy_salient": [box for box in boxes if box.salient],
                    "energy_other": [box for box in boxes if not box.salient],
                }
                for name, some in chosen.items():
                    if some:
                        inside_GG = covered(some, len(map_GG))
                        one = int(batch.row[place]), energy_inside(map_GG, inside_GG), area(inside_GG)
                        self.found.setdefault(name, []).append(one)


@dataclass(frozen=True)
class Attention(Task):
    """The share of a map's energy in the boxes of mentioned objects: all, the salient one, the others; chance: their area."""

    name = ATTENTION
    reads: ClassVar[Kind] = "pairs"
    metrics = (
        Metric("energy", "energy in boxes"),
        Metric("energy_salient", "in the salient box"),
        Metric("energy_other", "in other boxes"),
    )

    def on_request(self, contents: Contents) -> bool:
        """Built-in scenes with captions can be judged by it."""
        return contents.scenes and bool(contents.roles)

    def refusal(self, method: type) -> str:
        """It needs patches in the space of texts."""
        return (
            ""
            if issubclass(method, PatchEncoder)
            else "does not compare patches with texts, so it has no attention maps"
        )

    def views(self, contents: Contents) -> dict[str, View]:
        """One set: the first long caption of each row, or the first raw one."""
        return {"": (Wanted("long" if "long" in contents.roles else "raw", every=False),)}

    def source(self, judged: EvaluationSet, inputs: EvaluationInputs) -> PairEvaluation:
        """The rows' images, texts and boxes."""
        if isinstance(inputs.images, StoredFeatures):
            raise CornerstoneError(
                f"{judged.name} asks where the model looks, but stored features stand for its images here, which have no "
                f"patches: set --recipe.data.features online, or evaluate the saved model (`cornerstone evaluate RUN "
                f"--task {self.name} --data {judged.folder}`, without --features)."
            )
        if inputs.texts is None:
            raise CornerstoneError(f"{judged.name} is judged by its texts, but the method has no text tower.")
        images = inputs.images.for_evaluation("")
        return PairEvaluation(judged.folder, judged.rows, images, inputs.texts, judged.view, boxes_of)

    def collected(self) -> Energies:
        """Energies."""
        return Energies()

    def conclude(self, judged: EvaluationSet, parts: Sequence[Any], judge: Judge) -> Measured:
        """Means over the images; an image is a cluster."""
        result = Measured({}, {})
        for metric in self.metrics:
            rows = sorted(one for part in parts for one in part.found.get(metric.name, ()))
            if rows:
                row, energy, chance = (torch.tensor(column) for column in zip(*rows, strict=True))
                result.metrics[metric.name] = float(energy.double().mean())
                result.scores[metric.name], result.cluster[metric.name] = energy, row
                result.chance[metric.name] = float(chance.double().mean())
        if not result.metrics:
            raise CornerstoneError(
                f"No row of {judged.name!r} has a text that mentions an object whose place is known: only the built-in scenes "
                f"say where objects are."
            )
        result.counts["images"] = len(result.scores[self.metrics[0].name])
        return result

    def notes(self, judged: EvaluationSet) -> tuple[str, ...]:
        """What is measured."""
        return (
            f"{judged.name}: the share of the attention map's energy (the cosine of each patch with the text, above the "
            f"image's lowest) in the boxes of the objects that the text mentions; by chance: the boxes' share of the area.",
        )
