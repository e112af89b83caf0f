"""Recipes: configuration as frozen dataclasses, presets as functions, and the placement apart from both."""

from cornerstone.recipes.data import DataConfig
from cornerstone.recipes.documents import DocumentData
from cornerstone.recipes.dual_encoder import DualEncoderConfig
from cornerstone.recipes.lotlip import LotlipConfig, LotlipLoss
from cornerstone.recipes.method import MethodConfig
from cornerstone.recipes.pairs import PairData, Scenes
from cornerstone.recipes.placement import Placement
from cornerstone.recipes.presets import PRESETS, preset
from cornerstone.recipes.recipe import Evaluation, Optimization, Recipe
from cornerstone.recipes.towers import BertText, CornerText, ImageTower

__all__ = [
    "PRESETS",
    "BertText",
    "CornerText",
    "DataConfig",
    "DocumentData",
    "DualEncoderConfig",
    "Evaluation",
    "ImageTower",
    "LotlipConfig",
    "LotlipLoss",
    "MethodConfig",
    "Optimization",
    "PairData",
    "Placement",
    "Recipe",
    "Scenes",
    "preset",
]
