"""What the recipes of a sweep share while they are prepared: each thing is opened, hashed or computed once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from cornerstone.data.storage import Location
from cornerstone.hashing import canonical_json, content_digest
from cornerstone.recipes.towers import ImageTower, TextTowerConfig

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
        return self.once(("image tower", config), lambda: describe_tower(config, self.say))

    def weights(self, name: str) -> str:
        """A digest of the weights in a folder; of a hub's, their name."""
        place = Location.of(name)
        if not place.exists():
            return content_digest(name)
        files = sorted(one for one in place.files() if one.endswith((".safetensors", ".bin")))
        return self.once(("weights", name), lambda: content_digest(*(place.join(one).sha256() for one in files)))

    def text_tower(self, config: TextTowerConfig, vocab_size: int) -> str:
        """A digest of the weights of a text tower that is read from a folder."""
        return self.once(("text tower", config.name, vocab_size), lambda: digest_of_text_tower(config, vocab_size))


def describe_tower(config: ImageTower, say: Say = lambda text: None) -> tuple[int, str]:
    """Length of the tower's feature, and a digest of its weights ("" if it starts at random and is trained).

    Says so if a pretrained tower was trained at another size than it is used at.
    """
    from cornerstone.models.image_tower import build_image_tower, saved_tower, state_hash
    from cornerstone.runtime.hub import hub_answers

    if config.pretrained and not Location.of(config.name).exists():
        hub_answers()  # timm's client would retry for a minute
    tower = build_image_tower(config)
    configuration: Any = tower.model.pretrained_cfg or {}
    trained_at = configuration.get("input_size", (config.size,))[-1]
    if trained_at != config.size and config.pretrained and saved_tower(config.name) is None:
        say(
            f"The image tower {config.name} was made for {trained_at} pixels and is used at {config.size}: "
            f"--recipe.method.image.size {trained_at} uses it as it was trained"
        )
    return tower.width, state_hash(tower) if config.pretrained or config.locked else ""


def digest_of_text_tower(config: TextTowerConfig, vocab_size: int) -> str:
    """A digest of a text tower's weights and of what its folder's configuration says beside their shapes."""
    import cornerstone.models  # noqa: F401 - repairs torchvision, which towers import
    from cornerstone.models.image_tower import state_hash
    from cornerstone.recipes.method import imported
    from cornerstone.runtime.hub import hub_answers

    if not Location.of(config.name).exists():
        hub_answers()
    weights, beside = imported(config.implementation).pretrained(config, vocab_size)
    return content_digest(state_hash(weights), canonical_json(beside))
