"""Cornerstone: an experiment platform for language-image pre-training on Ray."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

# Before torch is imported: threads that busy-wait for work slow each other down by ten times if anything else runs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from cornerstone.inference.opened_model import OpenedModel

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path: str, device: str = "cpu") -> OpenedModel:
    """Open a model with its tokenizer and transform.

    `path` is the folder `model` that a run left, `open_clip:NAME/TAG`, `hf:NAME` (CLIP, SigLIP, SigLIP 2, ALIGN), or a folder
    in the layout of either library. A hub is asked for names with a prefix only.

    `encode_image` takes normalised floats (B, 3, S, S), `encode_text` a list of texts; both give L2-normalised (B, D).
    """
    from cornerstone.inference.load import load as open_model  # decode actors import this package: torch must wait

    return open_model(path, device)
