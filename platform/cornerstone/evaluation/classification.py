"""Zero-shot classification: the class whose prompts are nearest to the image.

Shape legend: N images, C classes, P prompts, D feature width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.ranking import CHUNK, Measured, normalised, percent, ranks


def class_features(prompt_CPD: Tensor) -> Tensor:
    """One feature a class, (C, D): every prompt's feature normalised, their mean, normalised again (as CLIP does)."""
    return normalised(normalised(prompt_CPD).mean(dim=1))


def classify(image_ND: Tensor, prompt_CPD: Tensor, label_N: Tensor, *, chunk: int = CHUNK) -> Measured:
    """`top1` and `top5` accuracy in percent, similarities in fp32, ties wrong (`ranking.ranks`).

    Images whose label is negative have none: they are left out and counted.
    """
    classes = len(prompt_CPD)
    kept = torch.nonzero(label_N >= 0).flatten().to(image_ND.device)
    if len(label_N) != len(image_ND) or len(kept) == 0:
        raise CornerstoneError(
            f"{len(image_ND)} images with {len(label_N)} labels, {len(kept)} of them set: expected one for every image."
        )
    if int(label_N.max()) >= classes:
        raise CornerstoneError(f"Label {int(label_N.max())} among {classes} classes: expected 0 to {classes - 1}.")
    wanted = label_N.to(image_ND.device)[kept]
    every_class = torch.arange(classes, device=image_ND.device)

    def right(part: slice) -> Tensor:
        return wanted[part, None] == every_class[None, :]

    class_CD = class_features(prompt_CPD)
    rank = ranks(normalised(image_ND[kept]), class_CD, right, chunk)
    correct = {f"top{k}": (rank < k).cpu() for k in (1, 5)}
    return Measured(
        metrics={name: percent(hits) for name, hits in correct.items()},
        counts={"images": len(kept), "classes": classes, "images_without_label": len(image_ND) - len(kept)},
        correct=correct,
        cluster={name: kept.cpu() for name in correct},
    )
