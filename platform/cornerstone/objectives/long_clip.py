"""Long-CLIP's loss (Zhang et al. 2024): long texts match the image features, short ones their principal components alone.

B rows of this worker, N of all workers, n of a group, D width, k components, r = min(n, D).
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from cornerstone.errors import CornerstoneError
from cornerstone.objectives.contrastive import Pairs, Side
from cornerstone.objectives.gather import gather, rank, workers


def long_clip_loss(
    image_BD: Tensor,
    raw_BD: Tensor | None,
    long_BD: Tensor | None,
    scale: Tensor | float,
    *,
    components: int = 32,
    pca_group: int = 0,
    label_smoothing: float = 0.1,
    raw_weight: float = 1.0,
    long_weight: float = 1.0,
    row_ids_B: Tensor | None = None,
    raw_valid_B: Tensor | None = None,
    long_valid_B: Tensor | None = None,
    group: ProcessGroup | None = None,
    chunk: int | None = None,
) -> dict[str, Tensor]:
    """The loss in two parts, `raw` and `long`, whose sum is the loss.

    `long` is `contrastive_loss` of the images with the long texts, `raw` that of the images' reconstructions from their
    `components` principal components (`reconstructed`, not normalised again) with the raw texts. The components are those
    of `pca_group` consecutive images of the global batch, rows without any text left out, or of all of them (0): the
    result does not depend on the number of workers. The last group may be smaller.

    A part that is None or has weight 0 is left out. Features are L2-normalised; masks, `label_smoothing` and all else are
    as in `contrastive_loss`.
    """
    if components < 1 or pca_group < 0:
        raise CornerstoneError(
            f"{components} principal components of groups of {pca_group} images: expected 1 or more, and 0 or more."
        )
    raw_BD, long_BD = raw_BD if raw_weight else None, long_BD if long_weight else None
    parts = {}
    with torch.autocast(image_BD.device.type, enabled=False):
        masks = [mask for mask in (raw_valid_B, long_valid_B) if mask is not None]
        usable_B = torch.stack(masks).any(0) if len(masks) == 2 else None
        image = Side.of(image_BD, usable_B, group)
        if raw_BD is not None:
            pairs = Pairs.of(image_BD, row_ids_B, raw_valid_B, group)
            usable_N = Pairs.of(image_BD, None, usable_B, group).valid_N
            coarse_ND = _in_groups(image.all_ND, usable_N, components, pca_group, group)
            coarse = Side(coarse_ND[pairs.start : pairs.start + len(image_BD)], coarse_ND)
            raw = Side.of(raw_BD, raw_valid_B, group)
            parts["raw"] = raw_weight * pairs.loss(coarse, raw, scale, chunk, label_smoothing)
        if long_BD is not None:
            pairs = Pairs.of(image_BD, row_ids_B, long_valid_B, group)
            long = Side.of(long_BD, long_valid_B, group)
            parts["long"] = long_weight * pairs.loss(image, long, scale, chunk, label_smoothing)
    return parts


def reconstructed(image_nD: Tensor, components: int) -> Tensor:
    """(n, D): the features' mean and their `components` leading principal components; the gradient flows through all of it.

    With as many components as the features span it is the input itself. The gradient is finite for any features, repeated
    ones too, unlike that of torch's singular value decomposition: it is computed from the projection, which knows no
    order among the components that are kept nor among those that are left out.
    """
    if min(len(image_nD) - 1, image_nD.shape[1]) <= components:
        return image_nD
    mean_1D = image_nD.mean(0, keepdim=True)
    projected_nD: Tensor = _Projection.apply(image_nD - mean_1D, components)  # type: ignore[no-untyped-call]
    return projected_nD + mean_1D


def _in_groups(
    image_ND: Tensor, usable_N: Tensor | None, components: int, size: int, group: ProcessGroup | None
) -> Tensor:
    """All rows reconstructed, the groups dealt to the workers; rows that are not usable are 0."""
    place_n = torch.arange(len(image_ND), device=image_ND.device) if usable_N is None else usable_N.nonzero()[:, 0]
    kept_nD = image_ND[place_n]
    size = size or max(len(kept_nD), 1)
    ends = [min(start + size, len(kept_nD)) for start in range(0, len(kept_nD), size)]
    last = [len(ends) * (worker + 1) // workers(group) for worker in range(workers(group))]
    bounds = [0, *(ends[count - 1] if count else 0 for count in last)]  # each worker's rows, whole groups
    mine_nD = kept_nD[bounds[rank(group)] : bounds[rank(group) + 1]]
    found_nD = torch.cat([reconstructed(part, components) for part in mine_nD.split(size)])
    sizes = tuple(stop - start for start, stop in itertools.pairwise(bounds))
    return torch.zeros_like(image_ND).index_copy(0, place_n, gather(found_nD, group, sizes))


class _Projection(torch.autograd.Function):
    """Centred features X = U S Vᵀ to X V_k V_kᵀ.

    With G the gradient of the result, H = Uᵀ G V, i among the k kept components and j among the others, the gradient is

        G P + Q G (I − V Vᵀ) + Σ_ij c_ij (σ_i u_i v_jᵀ + σ_j u_j v_iᵀ),  c_ij = (σ_i H_ij + σ_j H_ji) / (σ_i² − σ_j²)

    with P = V_k V_kᵀ and Q = U_k U_kᵀ: only differences across the cut are divided by, and the third term of a right singular
    vector that X does not have (σ_j = 0) is the second. If X has rank k or less all of it is kept, and so is the gradient.
    """

    @staticmethod
    def forward(ctx: Any, x_nD: Tensor, components: int) -> Tensor:
        u_nr, s_r, vt_rD = torch.linalg.svd(x_nD, full_matrices=False)
        ctx.components = components
        ctx.save_for_backward(u_nr, s_r, vt_rD)
        kept = slice(components)
        projected_nD: Tensor = (u_nr[:, kept] * s_r[kept]) @ vt_rD[kept]
        return projected_nD

    @staticmethod
    def backward(ctx: Any, gradient_nD: Tensor) -> tuple[Tensor, None]:
        u_nr, s_r, vt_rD = ctx.saved_tensors
        k, zero = ctx.components, s_r[0] * max(gradient_nD.shape) * torch.finfo(s_r.dtype).eps
        kept, rest = slice(k), slice(k, None)
        turned_rD = u_nr.T @ gradient_nD
        h_rr = turned_rD @ vt_rD.T
        gradient_of_v_nk = gradient_nD @ vt_rD[kept].T
        s_k1, s_1j = s_r[kept, None], s_r[None, rest]
        # Equal singular values on both sides of the cut have no gradient: the floor keeps what is sent back finite.
        apart_kj = (s_k1 - s_1j).clamp(min=zero) * (s_k1 + s_1j).clamp(min=zero)
        c_kj = (s_k1 * h_rr[kept, rest] + s_1j * h_rr[rest, kept].T) / apart_kj
        found_nD = gradient_of_v_nk @ vt_rD[kept] + u_nr[:, kept] @ (turned_rD[kept] - h_rr[kept] @ vt_rD)
        found_nD = found_nD + u_nr[:, kept] @ ((s_k1 * c_kj) @ vt_rD[rest])
        found_nD = found_nD + u_nr[:, rest] @ ((s_1j * c_kj).T @ vt_rD[kept])
        return torch.where(s_r[k - 1] > zero, found_nD, gradient_nD), None
