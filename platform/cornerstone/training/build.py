"""A method's module from what was prepared: the class that the recipe names, at the recipe's seed."""

from __future__ import annotations

from importlib import import_module

import torch
from torch import nn

from cornerstone.models.image_tower import TimmTower, build_image_tower
from cornerstone.recipes.placement import Placement
from cornerstone.training.prepare import Prepared


def length_buckets(placement: Placement, device: torch.device) -> int:
    """In how many runs, sorted by length, a batch of texts goes through the tower: less padding, more calls.

    As the placement says; otherwise 4 on a CPU, where padding costs what it looks like, and 1 on a GPU.
    """
    return placement.length_buckets or (1 if device.type == "cuda" else 4)


def build_tower(prepared: Prepared) -> TimmTower | None:
    """The image tower, or None where stored features stand for it."""
    if prepared.features:
        return None
    return build_image_tower(prepared.recipe.method.image, seed=prepared.recipe.seed)


def build_method(prepared: Prepared, tower: TimmTower | None, buckets: int = 1) -> nn.Module:
    """The module to train, initialised from the recipe's seed. `buckets` is a matter of speed: see `length_buckets`."""
    config = prepared.recipe.method
    module, _, name = config.implementation.partition(":")
    method: type[nn.Module] = getattr(import_module(module), name)
    return method(
        config,
        vocab_size=prepared.vocabulary,
        image_width=prepared.image_width,
        image_tower=tower,
        seed=prepared.recipe.seed,
        buckets=buckets,
    )
