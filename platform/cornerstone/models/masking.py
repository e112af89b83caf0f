"""What masked modelling hides: blocks of an image's patches, and some of a document's words.

B sequences, T tokens, H and W patches of an image's height and width.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cornerstone.models.causal_text import positions

ASPECT = 0.3
"""Blocks are from ASPECT to 1 / ASPECT times as high as wide."""
_TRIES = 10


def block_mask(draw: np.random.Generator, grid: tuple[int, int], masked: int, min_block: int) -> npt.NDArray[np.bool_]:
    """(H, W) bool with exactly `masked` True: blocks of BEiT-2's public generator (masking_generator.py).

    Rectangles of an area U(min_block, what is left to mask) and a log-uniform aspect are placed uniformly; one that adds more
    than what is left, or nothing, is drawn again, ten times at most. Then patches are added or taken away at random.
    """
    height, width = grid
    mask: npt.NDArray[np.bool_] = np.zeros(grid, dtype=bool)
    while (left := masked - int(mask.sum())) > 0 and _add_block(draw, mask, left, min_block):
        pass
    if left > 0:
        mask.flat[draw.choice(np.flatnonzero(~mask), left, replace=False)] = True
    assert mask.shape == (height, width)
    return mask


def _add_block(draw: np.random.Generator, mask: npt.NDArray[np.bool_], left: int, min_block: int) -> bool:
    """Whether a block was added in place."""
    height, width = mask.shape
    for _ in range(_TRIES):
        area, aspect = (
            draw.uniform(*sorted((min_block, left))),
            math.exp(draw.uniform(math.log(ASPECT), -math.log(ASPECT))),
        )
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (h < height and w < width):
            continue
        top, side = draw.integers(height - h + 1), draw.integers(width - w + 1)
        block = mask[top : top + h, side : side + w]
        if 0 < block.size - int(block.sum()) <= left:
            block[:] = True
            return True
    return False


def text_mask(drawn_BT: Tensor, maskable_BT: Tensor, document_BT: Tensor, share_BT: Tensor) -> Tensor:
    """(B, T) bool: in each document the maskable tokens with the smallest numbers, `round(share × count)` of them.

    At least one, and never all of two or more, as in BEiT-3's public fine-tuning code (datasets.py). `drawn_BT` are uniform
    numbers, `share_BT` is the same for all tokens of a document. Documents are contiguous; -1 is padding, at the end.
    """
    tokens = document_BT.shape[1]
    number_BT = torch.where(document_BT < 0, tokens, document_BT)  # padding is the last document
    order_BT = (number_BT + torch.where(maskable_BT, drawn_BT / 2, 0.75)).argsort(dim=1)
    # Documents stay where they were, so that the place in the document is the rank of what was sorted there.
    rank_BT = torch.empty_like(order_BT).scatter(1, order_BT, positions(document_BT, restart=True))
    count_BD = maskable_BT.new_zeros(len(number_BT), tokens + 1, dtype=torch.int64)
    count_BT = count_BD.scatter_add(1, number_BT, maskable_BT.long()).gather(1, number_BT)
    wanted_BT = (share_BT * count_BT).round().clamp(min=1).minimum((count_BT - 1).clamp(min=1))
    return maskable_BT & (rank_BT < wanted_BT)
