"""What tells that image features have collapsed: their effective rank and their variance.

N images, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cornerstone.evaluation.ranking import normalised

COLLAPSED_RANK = 2.0
"""An effective rank below this is warned about: all images have nearly the same feature, or differ along one line."""
COLLAPSED_VARIANCE = 0.02


def effective_rank(image_ND: Tensor) -> float:
    """exp of the entropy of the covariance's normalised eigenvalues (Roy and Vetterli 2007): 1 to min(N − 1, D).

    Features are normalised to length 1 here and centred. Equal features have rank 1.
    """
    centred_ND = normalised(image_ND).double()
    centred_ND = centred_ND - centred_ND.mean(0)
    power = torch.linalg.svdvals(centred_ND).square()
    if float(power.sum()) < 1e-12 * len(image_ND):
        return 1.0
    share = power / power.sum()
    return float(torch.special.entr(share).sum().exp())


def variance(image_ND: Tensor) -> float:
    """Mean squared distance of the features, of length 1, from their mean: 0 if all are equal, 1 if they cancel out."""
    mean_D = normalised(image_ND).double().mean(0)
    return 1 - float(mean_D.square().sum())


def collapse_warning(rank: float, spread: float) -> str:
    """A sentence that says that the features have collapsed; "" if they have not."""
    if rank >= COLLAPSED_RANK and spread >= COLLAPSED_VARIANCE:
        return ""
    return (
        f"the image features have collapsed (effective rank {rank:.1f}, variance {spread:.3f}): the model does not tell images "
        "apart. The loss can do without them: raise the weight of a loss that compares images, or train longer."
    )
