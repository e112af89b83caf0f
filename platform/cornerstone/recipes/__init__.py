"""Recipes: configuration as frozen dataclasses, presets as functions, and the placement apart from both."""

from cornerstone.recipes.beit3 import Beit3Config
from cornerstone.recipes.blip2 import Blip2Config, Blip2Loss, QFormerText
from cornerstone.recipes.coca import CocaConfig, CocaLoss
from cornerstone.recipes.conversations import ConversationData, SceneConversations
from cornerstone.recipes.data import DataConfig
from cornerstone.recipes.documents import DocumentData, DocumentPairs, SceneDocuments
from cornerstone.recipes.dual_encoder import DualEncoderConfig
from cornerstone.recipes.emu import EmuConfig
from cornerstone.recipes.filip import FilipConfig, FilipLoss
from cornerstone.recipes.flamingo import FlamingoConfig
from cornerstone.recipes.labelled import LabelledData, LabelledScenes
from cornerstone.recipes.language import CausalText
from cornerstone.recipes.lcl import LclConfig, LclLoss
from cornerstone.recipes.long_clip import LongClipConfig, LongClipLoss
from cornerstone.recipes.long_clip_tuned import LongClipTunedConfig
from cornerstone.recipes.lotlip import LotlipConfig, LotlipLoss
from cornerstone.recipes.lotlip_t5 import LotlipT5Config
from cornerstone.recipes.method import MethodConfig
from cornerstone.recipes.pairs import PairData, Scenes
from cornerstone.recipes.placement import Placement
from cornerstone.recipes.presets import PRESETS, preset
from cornerstone.recipes.recipe import Evaluation, Optimization, Recipe
from cornerstone.recipes.siglip import SiglipConfig, SiglipLoss
from cornerstone.recipes.towers import BertText, ClipText, CornerText, ImageTower, T5Text, TextTowerConfig

__all__ = [
    "PRESETS",
    "Beit3Config",
    "BertText",
    "Blip2Config",
    "Blip2Loss",
    "CausalText",
    "ClipText",
    "CocaConfig",
    "CocaLoss",
    "ConversationData",
    "CornerText",
    "DataConfig",
    "DocumentData",
    "DocumentPairs",
    "DualEncoderConfig",
    "EmuConfig",
    "Evaluation",
    "FilipConfig",
    "FilipLoss",
    "FlamingoConfig",
    "ImageTower",
    "LabelledData",
    "LabelledScenes",
    "LclConfig",
    "LclLoss",
    "LongClipConfig",
    "LongClipLoss",
    "LongClipTunedConfig",
    "LotlipConfig",
    "LotlipLoss",
    "LotlipT5Config",
    "MethodConfig",
    "Optimization",
    "PairData",
    "Placement",
    "QFormerText",
    "Recipe",
    "SceneConversations",
    "SceneDocuments",
    "Scenes",
    "SiglipConfig",
    "SiglipLoss",
    "T5Text",
    "TextTowerConfig",
    "preset",
]
