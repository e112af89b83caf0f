"""FILIP's late interaction (Yao et al. 2022, equations 3 to 6) over all workers, without the tensor of all patches and tokens.

B rows of this worker, N of all workers, C of a chunk, P patches, T tokens, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.distributed import ProcessGroup

from cornerstone.objectives.contrastive import Pairs, Side
from cornerstone.objectives.gather import gather_sizes, gather_values

_COSINES = 2**24
"""Cosines of patches and tokens held at a time: 64 MiB in fp32."""
_LARGEST = 2**22
"""Maxima of a chunk of rows, whose places are kept for the backward pass."""


def filip_loss(
    patches_BPD: Tensor,
    tokens_BTD: Tensor,
    mask_BT: Tensor,
    scale: Tensor | float,
    *,
    row_ids_B: Tensor | None = None,
    valid_B: Tensor | None = None,
    group: ProcessGroup | None = None,
    chunk: int | None = None,
) -> Tensor:
    """½ (image → text + text → image) InfoNCE of `image_to_text` and `text_to_image`, a mean over all workers' valid rows.

    Patches and tokens are L2-normalised, `mask_BT` is False for padding, which takes no part. The workers' texts may be
    padded to different lengths. Masked rows, `scale` (shape (1,) or a float) and the value on several workers are as in
    `contrastive_loss`. Rows are compared `chunk` at a time (None: as memory allows) with a part of all columns at a time,
    and again in the backward pass: value and gradient are exact.
    """
    with torch.autocast(patches_BPD.device.type, enabled=False):
        longest = max(gather_sizes(tokens_BTD.transpose(0, 1), group))
        tokens_BTD = functional.pad(tokens_BTD, (0, 0, 0, longest - tokens_BTD.shape[1]))
        mask_NT = gather_values(functional.pad(mask_BT, (0, longest - mask_BT.shape[1])), group)
        pairs = Pairs.of(patches_BPD, row_ids_B, valid_B, group)
        image, text = (Side.of(x, valid_B, group) for x in (patches_BPD, tokens_BTD))

        def of_images(rows_CPD: Tensor, columns_NTD: Tensor, scale: Tensor | float, first: int) -> Tensor:
            return pairs.infonce(scale * image_to_text(rows_CPD, columns_NTD, mask_NT), first)

        def of_texts(rows_CTD: Tensor, columns_NPD: Tensor, scale: Tensor | float, first: int) -> Tensor:
            mask_CT = mask_NT[first : first + len(rows_CTD)]
            return pairs.infonce(scale * text_to_image(rows_CTD, mask_CT, columns_NPD), first)

        if isinstance(scale, Tensor):
            scale = scale.to(image.local_BD.dtype)
        total = pairs.sum_of(of_images, image, text, scale, chunk or _rows(image, text))
        total = total + pairs.sum_of(of_texts, text, image, scale, chunk or _rows(text, image))
        return 0.5 * pairs.mean_of(total, image)


def image_to_text(patches_CPD: Tensor, tokens_NTD: Tensor, mask_NT: Tensor) -> Tensor:
    """(C, N): the mean over an image's patches of the largest cosine with a token of the text, padding left out."""
    found = []
    size = _columns(patches_CPD, tokens_NTD)
    for tokens, mask in zip(tokens_NTD.split(size), _not_empty(mask_NT).split(size), strict=True):
        cosine_CPnT = torch.einsum("cpd,ntd->cpnt", patches_CPD, tokens).masked_fill(~mask, -torch.inf)
        found.append(cosine_CPnT.max(-1).values.mean(1))
    return torch.cat(found, dim=1)


def text_to_image(tokens_CTD: Tensor, mask_CT: Tensor, patches_NPD: Tensor) -> Tensor:
    """(C, N): the mean over a text's tokens, padding left out, of the largest cosine with a patch of the image."""
    weight_CT = _not_empty(mask_CT).to(tokens_CTD.dtype)
    weight_CT = weight_CT / weight_CT.sum(1, keepdim=True)
    found = []
    for patches in patches_NPD.split(_columns(tokens_CTD, patches_NPD)):
        largest_CTn = torch.einsum("ctd,npd->ctnp", tokens_CTD, patches).max(-1).values
        found.append((weight_CT[..., None] * largest_CTn).sum(1))
    return torch.cat(found, dim=1)


def _not_empty(mask_NT: Tensor) -> Tensor:
    """A text without any token, which no loss counts, has a finite similarity."""
    first_T = torch.arange(mask_NT.shape[1], device=mask_NT.device) == 0
    return mask_NT | first_T


def _columns(rows_CPD: Tensor, columns_NTD: Tensor) -> int:
    return max(1, _COSINES // max(rows_CPD.shape[0] * rows_CPD.shape[1] * columns_NTD.shape[1], 1))


def _rows(rows: Side, columns: Side) -> int:
    return max(1, _LARGEST // max(rows.local_BD.shape[1] * len(columns.all_ND), 1))
