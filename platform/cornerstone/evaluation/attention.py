"""Attention maps of a dual encoder: the cosine of a text with each patch of an image (LoTLIP, Figures 1 and 6).

A dual encoder has no cross-attention: its map is how much each patch, behind the last norm and projected as the image's own
feature is, looks like the text. The energy of a map is what of it lies in given boxes.

N images, P = G × G patches, G patches a side, D feature width, S pixels a side of a mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor

from cornerstone.data.pairs.views import Box
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.ranking import normalised

_MASK = 224
"""Pixels a side of the mask in which boxes are drawn, before it is reduced to the patches."""


def attention_maps(patch_NPD: Tensor, text_ND: Tensor) -> Tensor:
    """(N, G, G) fp32: the cosine of each image's patches with its text. CornerstoneError if they are no square."""
    side = math.isqrt(patch_NPD.shape[1])
    if side * side != patch_NPD.shape[1]:
        raise CornerstoneError(f"{patch_NPD.shape[1]} patches are no square: only towers with square images have maps.")
    cosine_NP = torch.einsum("npd,nd->np", normalised(patch_NPD), normalised(text_ND))
    return cosine_NP.unflatten(1, (side, side))


def covered(boxes: Sequence[Box], side: int) -> Tensor:
    """(G, G): the share of each patch that lies in any of the boxes."""
    mask_SS = torch.zeros(_MASK, _MASK)
    for box in boxes:
        left, right = (round(x * _MASK) for x in (box.left, box.right))
        top, bottom = (round(y * _MASK) for y in (box.top, box.bottom))
        mask_SS[top:bottom, left:right] = 1
    return functional.adaptive_avg_pool2d(mask_SS[None], side)[0]


def energy_inside(map_GG: Tensor, inside_GG: Tensor) -> float:
    """The share of a map's energy in the covered part, in percent.

    The energy of a patch is its cosine above the lowest of the image, so that a model's offset does not matter. The covered
    share of the area is what a map that knows nothing has; a map that is the same everywhere has it too, and so has NaN.
    """
    energy_GG = (map_GG - map_GG.min()).double()
    total = float(energy_GG.sum())
    if not total > 1e-9 * map_GG.numel():
        return area(inside_GG)
    return 100 * float((energy_GG * inside_GG).sum()) / total


def area(inside_GG: Tensor) -> float:
    """The covered share of the area, in percent."""
    return 100 * float(inside_GG.double().mean())
