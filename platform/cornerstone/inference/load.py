"""`cornerstone.load`: a run's model, or a released one, by what was given."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError, did_you_mean
from cornerstone.inference import saved_model
from cornerstone.inference.opened_model import OpenedModel

OPEN_CLIP, HUGGING_FACE = "open_clip:", "hf:"
OPEN_CLIP_CONFIG = "open_clip_config.json"


def load(given: Location | str, device: torch.device | str = "cpu") -> OpenedModel:
    """Open a model.

    Args:
        given: A run's folder or its `model`; `open_clip:NAME/TAG`; `hf:NAME` or `hf:FOLDER`; or a folder. Names and folders of
            the hub are in the layout of transformers (CLIP, Long-CLIP, SigLIP, SigLIP 2, ALIGN), of open_clip (LoTLIP's
            authors use it too), or of this project.
        device: Where it computes.

    Raises CornerstoneError if there is none, if it is unfinished, and if its weights do not fit. A hub is asked for names
    with a prefix only.
    """
    name = str(given.uri if isinstance(given, Location) else given)
    if name.startswith(OPEN_CLIP):
        from cornerstone.inference.released.open_clip_models import open_named

        return open_named(name.removeprefix(OPEN_CLIP)).to(device)
    if name.startswith(HUGGING_FACE):
        return _of_hub(name).to(device)
    prefix, colon, _ = name.partition(":")
    folder = Path(name).expanduser()
    if colon and "/" not in prefix and not folder.exists() and "://" not in name:
        valid = [OPEN_CLIP.rstrip(":"), HUGGING_FACE.rstrip(":")]
        raise CornerstoneError(f"No models are named {prefix}:{did_you_mean(prefix, valid)} Or give a folder.")
    return (_of_folder(folder, name) or saved_model.load(given, device)).to(device)


def _of_hub(name: str) -> OpenedModel:
    from cornerstone.inference.released.hub import downloaded
    from cornerstone.inference.released.hugging_face import open_hugging_face

    source = name.removeprefix(HUGGING_FACE)
    local = Path(source).expanduser()
    folder = local if local.is_dir() else downloaded(source)
    if folder is None:
        return open_hugging_face(source, name)
    return _of_folder(folder, name) or saved_model.load(str(folder))


def _of_folder(folder: Path, name: str) -> OpenedModel | None:
    """The released model of a folder; None if it is not in a released model's layout."""
    if (config := folder / OPEN_CLIP_CONFIG).is_file():
        if "num_corner_token" in _read(config).get("model_cfg", {}).get("text_cfg", {}):
            from cornerstone.inference.released.lotlip import open_lotlip

            return open_lotlip(folder)
        from cornerstone.inference.released.open_clip_models import open_folder

        return open_folder(folder, name)
    if (config := folder / saved_model.CONFIG).is_file() and "model_type" in _read(config):
        from cornerstone.inference.released.hugging_face import open_hugging_face

        return open_hugging_face(str(folder), name)
    return None


def _read(file: Path) -> dict[str, dict[str, dict[str, object]]]:
    try:
        found: dict[str, dict[str, dict[str, object]]] = json.loads(file.read_text())
    except ValueError as error:
        raise CornerstoneError(f"{file} is not JSON: {error}") from error
    return found
