"""SigLIP 2's NaFlex models, which see the patches of an image at its own aspect ratio.

B images, N the most patches of one, V numbers of a patch (3 × its side²).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cornerstone.data.released_images import PatchTransform
from cornerstone.inference.released.hugging_face_encoder import (
    HALF,
    HuggingFaceEncoder,
    mean_std,
    numbered_filter,
    pooled,
)
from cornerstone.inference.released.model import Seen


def naflex_seen(vision: Any, described: Mapping[str, Any], name: str) -> Seen:
    """How it sees images: by its preprocessor_config.json, else with as many patches as it has positions, bilinear."""
    side, most = described.get("patch_size", vision.patch_size), described.get("max_num_patches", vision.num_patches)
    transform = PatchTransform(int(side), int(most), numbered_filter(described, "bilinear", name))
    return Seen(transform, *mean_std(described, (HALF, HALF)))


class NaflexEncoder(HuggingFaceEncoder):
    """Images are arrays (1 + N, V) of a `PatchTransform`: row 0 holds the numbers of rows and columns of patches."""

    def image_features(self, image_B1NV: Tensor) -> Tensor:
        """Pooled over an image's own patches."""
        grid_B2 = image_B1NV[:, 0, 0:4:2].round().long() * 256 + image_B1NV[:, 0, 1:4:2].round().long()
        patches_BNV = image_B1NV[:, 1:]
        real_BN = torch.arange(patches_BNV.shape[1], device=image_B1NV.device) < grid_B2.prod(1)[:, None]
        model: Any = self.model
        return pooled(
            model.get_image_features(
                pixel_values=patches_BNV * real_BN[..., None],
                pixel_attention_mask=real_BN.int(),
                spatial_shapes=grid_B2,
            )
        )

    def floats(self, image_B1NV: Tensor) -> Tensor:
        """The patches normalised, row 0 as it is."""
        if image_B1NV.dtype != torch.uint8:
            return image_B1NV
        patches = image_B1NV[:, 1:].float() / 255
        repeated = patches.shape[-1] // 3
        mean, std = (torch.tensor(x, device=patches.device).repeat(repeated) for x in self.seen[1:])
        return torch.cat([image_B1NV[:, :1].float(), (patches - mean) / std], dim=1)
