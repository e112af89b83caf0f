"""Losses: plain PyTorch, on one device or over a torch.distributed group."""

from cornerstone.objectives.blip2 import query_contrastive_loss
from cornerstone.objectives.coca import coca_loss
from cornerstone.objectives.contrastive import contrastive_loss
from cornerstone.objectives.filip import filip_loss
from cornerstone.objectives.generation import token_losses
from cornerstone.objectives.lcl import lcl_loss
from cornerstone.objectives.long_clip import long_clip_loss
from cornerstone.objectives.lotlip import lotlip_loss
from cornerstone.objectives.regression import regression_losses
from cornerstone.objectives.siglip import siglip_loss

__all__ = [
    "coca_loss",
    "contrastive_loss",
    "filip_loss",
    "lcl_loss",
    "long_clip_loss",
    "lotlip_loss",
    "query_contrastive_loss",
    "regression_losses",
    "siglip_loss",
    "token_losses",
]
