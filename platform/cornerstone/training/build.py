"""A method's module from what was prepared: the class that the recipe names, at the recipe's seed."""

from __future__ import annotations

from importlib import import_module

from torch import nn

from cornerstone.models.towers import TimmTower, build_image_tower
from cornerstone.training.prepare import Prepared


def build_tower(prepared: Prepared) -> TimmTower | None:
    """The image tower, or None where stored features stand for it."""
    if prepared.features:
        return None
    return build_image_tower(prepared.recipe.method.image, seed=prepared.recipe.seed)


def build_method(prepared: Prepared, tower: TimmTower | None) -> nn.Module:
    """The module to train, initialised from the recipe's seed."""
    config = prepared.recipe.method
    module, _, name = config.implementation.partition(":")
    method: type[nn.Module] = getattr(import_module(module), name)
    return method(
        config,
        vocab_size=prepared.vocabulary,
        image_width=prepared.image_width,
        image_tower=tower,
        seed=prepared.recipe.seed,
    )
