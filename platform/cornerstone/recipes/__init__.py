"""Recipes: configuration as frozen dataclasses, presets as functions, and the placement apart from both."""

from cornerstone.recipes.lotlip import LotlipConfig, LotlipLoss
from cornerstone.recipes.placement import Placement
from cornerstone.recipes.presets import PRESETS, preset
from cornerstone.recipes.recipe import Data, Evaluation, Optimization, Recipe, Scenes, digest
from cornerstone.recipes.towers import ImageTower, TextTower

__all__ = [
    "PRESETS",
    "Data",
    "Evaluation",
    "ImageTower",
    "LotlipConfig",
    "LotlipLoss",
    "Optimization",
    "Placement",
    "Recipe",
    "Scenes",
    "TextTower",
    "digest",
    "preset",
]
