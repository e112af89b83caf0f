"""What an engine's step returns, and observers of the loop read."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class StepReport(NamedTuple):
    """One optimizer step, as one worker saw it; tensors are still on the device."""

    parts: dict[str, Tensor]
    """This worker's losses, whose sum's mean over workers is the loss."""
    reports: dict[str, Tensor]
    """Logged beside the losses and never summed into them."""
    grad_norm: Tensor
    """Norm of the whole gradient before clipping, the same on all workers."""
    learning_rate: float
    skipped: int = 0
    """Steps so far that were skipped because their gradient was not finite, the same on all workers."""

    @property
    def loss(self) -> Tensor:
        """The sum of the parts."""
        return sum(self.parts.values())  # type: ignore[return-value]
