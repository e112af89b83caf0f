"""Engines: one optimizer step on one worker's share of a batch.

`PlainEngine` is PyTorch alone, in one process: the reference, and what a bare loop measures. `DeepSpeedEngine` (in its own
file) is the same step under ZeRO. Both have the same interface; the loop does not know which one it drives.

A loss is local sum / global count × workers, and DeepSpeed averages gradients over the workers: together that is the
gradient of the global mean, for any number of workers and masked rows.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from cornerstone.data.batch import Batch
from cornerstone.errors import CornerstoneError
from cornerstone.models.method import Method
from cornerstone.recipes.recipe import Optimization
from cornerstone.training.report import StepReport
from cornerstone.training.schedule import build_optimizer
from cornerstone.training.step import forward_backward

Precision = Literal["fp32", "bf16"]


class Engine(Protocol):
    """One step of training, the state behind it, and the weights it has learnt."""

    device: torch.device

    def step(self, batch: Batch, learning_rate: float) -> StepReport:
        """Forward, backward, clip, update. A step whose gradient is not finite changes nothing and is counted."""
        ...

    def save(self, folder: str, step: int) -> None:
        """Write this worker's part of a checkpoint."""
        ...

    def load(self, folder: str) -> int:
        """Resume from a checkpoint; returns the number of steps done."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """Every parameter and buffer that training may have changed, whole."""
        ...


def check_precision(precision: Precision, device: torch.device) -> None:
    """Refuse bf16 on a GPU that only emulates it: the same experiment would give other numbers there."""
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise CornerstoneError(f"{torch.cuda.get_device_name(device)} has no bf16: set --recipe.precision fp32.")


def set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    """The step's learning rate, times each group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]


class PlainEngine:
    """PyTorch alone, on one device."""

    def __init__(
        self,
        model: Method[Any, Any],
        optimization: Optimization,
        precision: Precision = "fp32",
        micro_batch: int = 0,
    ) -> None:
        self.device = next(model.parameters()).device
        check_precision(precision, self.device)
        self.model, self.precision, self.micro_batch = model, precision, micro_batch
        self.clip_norm = optimization.clip_norm or float("inf")
        self.optimizer = build_optimizer(model, optimization)
        self.skipped = 0

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def step(self, batch: Batch, learning_rate: float) -> StepReport:
        """Forward, backward, clip, update."""
        set_learning_rate(self.optimizer, learning_rate)
        self.optimizer.zero_grad(set_to_none=True)
        losses = forward_backward(self.model, batch, self.micro_batch, self._forward, _backward)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        if torch.isfinite(norm):
            self.optimizer.step()
        else:
            self.skipped += 1
        return StepReport(*losses, norm, learning_rate, self.skipped)

    def _forward(self, batch: Batch) -> tuple[Any, ...]:
        with self._autocast():
            features: tuple[Any, ...] = self.model(batch)
        return features

    def save(self, folder: str, step: int) -> None:
        """Model, optimizer and step in one file."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": step}
        torch.save(state, os.path.join(folder, "plain.pt"))

    def load(self, folder: str) -> int:
        """Resume from `save`; returns the number of steps done."""
        state = torch.load(os.path.join(folder, "plain.pt"), map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])

    def weights(self) -> dict[str, Tensor]:
        """Every parameter and buffer that training may have changed."""
        return dict(self.model.state_dict())


def _backward(loss: Tensor, last: bool) -> None:
    loss.backward()
