"""Zero-shot classification: an image belongs to the class whose prompts are nearest to it.

Shape legend: N images, C classes, P prompts, D feature width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cornerstone.data.manifest import CLASSIFICATION
from cornerstone.data.pairs.views import View
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.ranking import CHUNK, Measured, Similarity, cosine, normalised, percent, ranks
from cornerstone.evaluation.tasks.pair_task import Encoded, EncodeTexts, PairTask
from cornerstone.evaluation.tasks.task import Contents, EvaluationSet, Metric

AT = (1, 5)


@dataclass(frozen=True)
class Classification(PairTask):
    """Top-1 and top-5 accuracy over the classes and prompts of the set's manifest."""

    name = CLASSIFICATION
    metrics = (Metric("top1", "top-1"), Metric("top5", "top-5", shown=False))

    def applies(self, contents: Contents) -> bool:
        """Rows with labels are judged by classification."""
        return contents.labelled

    def views(self, contents: Contents) -> dict[str, View]:
        """One set, which reads no text of its rows."""
        return {"": ()}

    def prompts(self, judged: EvaluationSet) -> tuple[str, ...]:
        """The manifest's; without any the name alone."""
        return judged.prompts or ("{}",)

    def judge(self, judged: EvaluationSet, encoded: Encoded, encode_texts: EncodeTexts) -> Measured:
        """Compare each image with the features of the classes."""
        prompts = [prompt.replace("{}", name) for name in judged.classes for prompt in self.prompts(judged)]
        features = encode_texts(prompts)
        prompt_CPD = features.view(len(judged.classes), -1, *features.shape[1:])
        return classify(encoded.image_ND, prompt_CPD, encoded.label_N, similarity=encoded.similarity)


def class_features(prompt_CPD: Tensor) -> Tensor:
    """One feature per class, (C, D): the normalised mean of its prompts' normalised features, as in CLIP."""
    return normalised(normalised(prompt_CPD).mean(dim=1))


def classify(
    image_ND: Tensor, prompt_CPD: Tensor, label_N: Tensor, *, chunk: int = CHUNK, similarity: Similarity = cosine
) -> Measured:
    """`top1` and `top5` accuracy in percent. Similarities are in fp32, and ties count as wrong (`ranking.ranks`).

    Prompts of one feature each are combined to one of their class (`class_features`); of a model whose prompts have several
    features each, (C, P, ..., D), the similarities are averaged (FILIP). Images with a negative label have no label: they
    are left out and counted.
    """
    classes = len(prompt_CPD)
    kept = torch.nonzero(label_N >= 0).flatten().to(image_ND.device)
    if len(label_N) != len(image_ND) or len(kept) == 0:
        raise CornerstoneError(
            f"{len(image_ND)} images with {len(label_N)} labels, {len(kept)} of them set: expected one label per image."
        )
    if int(label_N.max()) >= classes:
        raise CornerstoneError(f"Label {int(label_N.max())} among {classes} classes: expected 0 to {classes - 1}.")
    wanted = label_N.to(image_ND.device)[kept]
    every_class = torch.arange(classes, device=image_ND.device)

    def right(part: slice) -> Tensor:
        return wanted[part, None] == every_class[None, :]

    def mean_over_prompts(image_CD: Tensor, prompt_CPD: Tensor) -> Tensor:
        return torch.stack([similarity(image_CD, prompt) for prompt in prompt_CPD.unbind(1)]).mean(0)

    images = normalised(image_ND[kept])
    if prompt_CPD.ndim > 3:
        rank = ranks(images, normalised(prompt_CPD), right, chunk, mean_over_prompts)
    else:
        rank = ranks(images, class_features(prompt_CPD), right, chunk, similarity)
    correct = {f"top{k}": (rank < k).cpu() for k in AT}
    return Measured(
        metrics={name: percent(hits) for name, hits in correct.items()},
        counts={"images": len(kept), "classes": classes, "images_without_label": len(image_ND) - len(kept)},
        correct=correct,
        cluster={name: kept.cpu() for name in correct},
        chance={f"top{k}": 100 * min(k / classes, 1.0) for k in AT},
    )
