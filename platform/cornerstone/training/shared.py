"""What the recipes of a sweep share while they are prepared: each thing is opened, hashed or computed once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from cornerstone.recipes.towers import ImageTower

Say = Callable[[str], None]
T = TypeVar("T")


class Shared:
    """Results by their cache key.

    `say` shows what takes time. Without `compute_features`, stored features that are missing stay so (a dry run).
    """

    def __init__(self, say: Say, compute_features: bool) -> None:
        self.say, self.compute_features = say, compute_features
        self._done: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """The result of `make`, which is called only the first time that somebody asks with this key."""
        if key not in self._done:
            self._done[key] = make()
        found: T = self._done[key]
        return found

    def tower(self, config: ImageTower) -> tuple[int, str]:
        """Length of an image tower's feature, and a digest of its weights ("" if it starts at random and is trained)."""
        return self.once(("image tower", config), lambda: describe_tower(config))


def describe_tower(config: ImageTower) -> tuple[int, str]:
    """Length of the tower's feature, and a digest of its weights ("" if it starts at random and is trained)."""
    from cornerstone.models.image_tower import build_image_tower, state_hash

    tower = build_image_tower(config)
    return tower.width, state_hash(tower) if config.pretrained or config.locked else ""
