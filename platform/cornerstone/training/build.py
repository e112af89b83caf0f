"""A method's module from what was prepared: the class that the recipe's method names, at the recipe's seed."""

from __future__ import annotations

from typing import Any

import torch

from cornerstone.inference.language_models import load_language_model
from cornerstone.models.image_tower import TimmTower, build_image_tower
from cornerstone.models.method import Inputs, Method
from cornerstone.recipes.method import implementation_of
from cornerstone.recipes.placement import Placement
from cornerstone.training.prepared import Prepared


def length_buckets(placement: Placement, device: torch.device) -> int:
    """In how many runs, sorted by length, a batch of texts goes through the tower: less padding, more calls.

    As the placement says; otherwise 4 on a CPU, where padding costs as much as text, and 1 on a GPU.
    """
    return placement.length_buckets or (1 if device.type == "cuda" else 4)


def build_tower(prepared: Prepared) -> TimmTower | None:
    """The image tower; None if stored features stand for it, and for a method that has none."""
    config = prepared.recipe.method.image_tower
    if config is None or prepared.stored_features:
        return None
    return build_image_tower(config, seed=prepared.recipe.seed)


def unsharded(tower: TimmTower | None, prepared: Prepared) -> TimmTower | None:
    """The tower for a second module beside the one that is trained, as evaluation at ZeRO-3 needs it.

    A locked tower is shared. A trained one is built anew, since ZeRO-3 has sharded the parameters of the first.
    """
    if tower is None or not any(parameter.requires_grad for parameter in tower.parameters()):
        return tower
    return build_tower(prepared)


def build_method(prepared: Prepared, tower: TimmTower | None, buckets: int = 1) -> Method[Any, Any]:
    """The module to train, initialised from the recipe's seed. `buckets` is a matter of speed: see `length_buckets`."""
    config = prepared.recipe.method
    brought = config.weights.get("language_model")
    inputs = Inputs(
        vocab_size=prepared.vocab_size,
        image_width=prepared.image_width,
        image_tower=tower,
        special_ids=prepared.special_ids,
        length_buckets=buckets,
        language_model=load_language_model(brought) if brought else None,
    )
    method: Method[Any, Any] = implementation_of(config).build(config, inputs, prepared.recipe.seed)
    return method
