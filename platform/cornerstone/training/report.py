"""What an engine's step returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class StepReport(NamedTuple):
    """One optimizer step, as this worker saw it. Tensors are detached scalars, still on the device."""

    parts: dict[str, Tensor]
    """This worker's losses by name; their sum, averaged over the workers, is the loss."""
    reports: dict[str, Tensor]
    """Other numbers of the step (`logit_scale`, an accuracy): logged, never summed into the loss."""
    grad_norm: Tensor
    """L2 norm of the gradient over all parameters, before clipping."""
    learning_rate: float
    """The learning rate of the step."""
