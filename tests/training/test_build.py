"""The tower of a second module."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from cornerstone.recipes import ImageTower, LotlipConfig, Recipe
from cornerstone.training.build import build_tower, unsharded


@pytest.mark.parametrize("locked", [True, False])
def test_a_trained_tower_is_built_anew_and_a_locked_one_is_shared(tiny_tower, locked):
    recipe = Recipe("r", LotlipConfig(image=ImageTower(tiny_tower, locked=locked, size=32)))
    prepared = SimpleNamespace(recipe=recipe, stored_features=False)
    tower = build_tower(prepared)
    second = unsharded(tower, prepared)
    assert (second is tower) == locked
    for name, value in tower.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value, rtol=0, atol=0)
    assert unsharded(None, prepared) is None
