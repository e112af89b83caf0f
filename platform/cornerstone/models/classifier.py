"""A classifier on an image tower's patches, the tower frozen or trained (LCL, appendix: transfer to ImageNet).

B images, S pixels a side, P patches, V width of the patches, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from cornerstone.data.pairs.batch import LabelledBatch
from cornerstone.errors import CornerstoneError
from cornerstone.models.attention_pooling import AttentionPooling, usual_heads
from cornerstone.models.image_tower import TimmTower
from cornerstone.models.method import Group, Inputs, Losses, Method, grouped
from cornerstone.models.tower_holder import TowerHolder
from cornerstone.objectives.contrastive import at_least_fp32
from cornerstone.objectives.gather import global_mean
from cornerstone.recipes.classifier import ClassifierConfig


class Features(NamedTuple):
    """What the loss is made of."""

    logits_BC: Tensor


class Classifier(TowerHolder, Method[LabelledBatch, Features]):
    """Tower, attention pooling, LayerNorm, linear layer.

    A frozen tower is held outside the registered parameters, and a batch may bring its patches instead of images.
    """

    config: ClassifierConfig

    def __init__(self, config: ClassifierConfig, inputs: Inputs, seed: int = 0) -> None:
        super().__init__()
        self.config, self.width = config, inputs.image_width
        if not config.frozen and inputs.image_tower is None:
            raise CornerstoneError("The image tower is to be trained, but none is given.")
        self.hold(inputs.image_tower, config.frozen)
        heads = config.pooling_heads or usual_heads(self.width)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.pool = AttentionPooling(self.width, self.width, heads)
            self.head = nn.Sequential(nn.LayerNorm(self.width), nn.Linear(self.width, config.classes))

    @classmethod
    def build(cls, config: Any, inputs: Inputs, seed: int) -> Self:
        """The module to train."""
        return cls(config, inputs, seed)

    def forward(self, batch: LabelledBatch) -> Features:
        """Logits from images (B, 3, S, S), or from a frozen tower's patches (B, P, V)."""
        return Features(self.classify(batch.image))

    def classify(self, image: Tensor) -> Tensor:
        """(B, C) logits from images (B, 3, S, S), or from a frozen tower's patches (B, P, V)."""
        patches_BPV = image if image.ndim == 3 else self._patches(image)
        logits_BC: Tensor = self.head(self.pool(patches_BPV).feature_NW)
        return logits_BC

    def _patches(self, image_B3SS: Tensor) -> Tensor:
        if self.image_tower is None:
            raise CornerstoneError("Images were given, but this classifier has no image tower: it takes patches.")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen):
            patches: Tensor = self.image_tower(image_B3SS).patches
        return patches

    def losses(self, features: Features, batch: LabelledBatch, group: ProcessGroup | None = None) -> Losses:
        """The cross-entropy over rows that have a label and an image."""
        logits_BC = at_least_fp32(features.logits_BC)
        label_B = batch.label.clamp(min=0).long()
        loss_B = functional.cross_entropy(logits_BC, label_B, reduction="none") * batch.valid
        correct_B = (logits_BC.detach().argmax(1) == label_B) & batch.valid
        rows = batch.valid.sum()
        accuracy = global_mean(correct_B.sum().float(), rows, group)
        return Losses({"classification": global_mean(loss_B.sum(), rows, group)}, {"accuracy": accuracy})

    def parameter_groups(self) -> list[Group]:
        """The tower's learning rate is the new parts' times the factor."""
        new = [*self.pool.parameters(), *self.head.parameters()]
        groups = grouped(new)
        if self.visual is not None:
            groups += grouped(self.visual.parameters(), self.config.tower_lr_factor)
        return groups

    def described(self) -> dict[str, Any]:
        """What `rebuilt` needs besides the configuration."""
        return {"width": self.width}

    @classmethod
    def rebuilt(cls, config: Any, described: Mapping[str, Any], image_tower: TimmTower | None) -> Self:
        """The module of a saved model, its weights still to be loaded."""
        return cls(config, Inputs(0, described["width"], image_tower))
