"""Repositories of the Hugging Face hub that are not in transformers' layout: open_clip's (LoTLIP's authors use it too), and
models of this project as they were saved or exported.
"""

from __future__ import annotations

import json
from pathlib import Path

from cornerstone.errors import CornerstoneError, first_line
from cornerstone.inference.released.hugging_face import file_of
from cornerstone.runtime.hub import hub_answers

CONFIG, OPEN_CLIP_CONFIG = "config.json", "open_clip_config.json"
BESIDE = ("*.json", "*.txt", "*.model")
"""Configurations and tokenizers."""
WEIGHTS = (("*.safetensors",), ("*.bin", "*.pt"))
"""The second ones only where there are none of the first."""


def downloaded(name: str) -> Path | None:
    """The folder of a repository's files in the hub's cache.

    None if the repository is in transformers' layout; open_hugging_face then opens it or reports the error.

    Raises CornerstoneError if a file cannot be downloaded.
    """
    try:
        found = file_of(name, CONFIG)
        described = json.loads(Path(found).read_text()) if found else {}
        if "model_type" in described or not ("method" in described or file_of(name, OPEN_CLIP_CONFIG)):
            return None
    except (OSError, ValueError):  # no such repository, a private or gated one, a malformed name, or no JSON
        return None
    folder = _snapshot(name, (*BESIDE, *WEIGHTS[0]))
    if not any(folder.glob("*.safetensors")):
        folder = _snapshot(name, (*BESIDE, *WEIGHTS[1]))
    return folder


def _snapshot(name: str, files: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(files), local_files_only=not hub_answers()))
    except (OSError, ValueError) as error:
        raise CornerstoneError(f"Cannot download hf:{name}: {first_line(error)}.") from error
