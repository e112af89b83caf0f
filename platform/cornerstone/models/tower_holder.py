"""A module's image tower: trained with it, or frozen and kept out of its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from torch import Tensor, nn

from cornerstone.models.image_tower import TimmTower


class TowerHolder(nn.Module):
    """Base of methods whose tower may be frozen: a frozen tower is neither trained nor saved nor sharded with the module."""

    visual: TimmTower | None

    def hold(self, tower: TimmTower | None, frozen: bool) -> None:
        """Take the tower; a frozen one is locked, follows the module to its device, and is no part of `parameters()`."""
        self._aside: tuple[TimmTower, ...] = ()
        if tower is not None and frozen:
            self._aside = (tower.lock(),)  # in a tuple, so that nn.Module does not register it
        self.visual = None if self._aside else tower

    @property
    def image_tower(self) -> TimmTower | None:
        """The image tower, frozen or not; None if there are only stored features."""
        return self._aside[0] if self._aside else self.visual

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        for tower in self._aside:
            tower._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self
