"""Cornerstone: an experiment platform for language-image pre-training on Ray."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

# Before torch is imported: threads that busy-wait for work slow each other down by ten times if anything else runs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from cornerstone.inference.saved_model import SavedModel

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path: str, device: str = "cpu") -> SavedModel:
    """Open a trained model: the folder `model` that a run left, with its tokenizer and transform. Asks no hub.

    `encode_image` takes normalised floats (B, 3, S, S), `encode_text` a list of texts; both give L2-normalised (B, D).
    """
    from cornerstone.inference.saved_model import (
        load as open_model,  # decode actors import this package: torch must wait
    )

    return open_model(path, device)
