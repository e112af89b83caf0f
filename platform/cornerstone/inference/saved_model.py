"""Models on disk: what a run leaves, and what `cornerstone.load` opens. Nothing is asked of a hub.

    model.safetensors   all weights, the locked image tower's included
    config.json         the class that implements the method, and how to build it and its towers again
    recipe.json         the recipe it was trained with
    tokenizer.json

B images or texts, S pixels a side, T tokens, D width of the features, M = 1 + m: CLS and the corners.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from cornerstone.data.images import Transform
from cornerstone.data.storage import Location
from cornerstone.data.texts import FILE as TOKENIZER
from cornerstone.data.texts import TextTokenizer
from cornerstone.errors import CornerstoneError
from cornerstone.inference.lotlip_checkpoint import without_corners
from cornerstone.models.image_tower import TimmTower

CONFIG, RECIPE, WEIGHTS = "config.json", "recipe.json", "model.safetensors"
_VERSION = 1
_VISUAL = "visual."
_AT_A_TIME = 128


class LoadedModel:
    """A trained model with its tokenizer and transform."""

    def __init__(self, module: Any, tokenizer: TextTokenizer, recipe: Mapping[str, Any]) -> None:
        self.module, self.tokenizer, self.recipe = module.eval(), tokenizer, recipe

    @property
    def device(self) -> torch.device:
        """Where the model computes; inputs are brought there."""
        return next(self.module.parameters()).device

    def to(self, device: torch.device | str) -> LoadedModel:
        """Move the model."""
        self.module.to(device)
        return self

    @torch.no_grad()
    def encode_image(self, images_B3SS: Tensor) -> Tensor:
        """(B, D), L2-normalised, from normalised floats as `transform` gives them, or from uint8 pixels."""
        return torch.cat([self.module.encode_image(part.to(self.device)) for part in images_B3SS.split(_AT_A_TIME)])

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str] | Tensor, corners: bool = False) -> Tensor:
        """(B, D), L2-normalised, or with `corners` (B, M, D), CLS first.

        `texts` are strings, or ids (B, T) as the authors lay them out: corner k is the id `tokenizer.vocab_size` + k,
        at places 1 .. m, padding 0. An empty string is encoded as [CLS] [SEP].
        """
        if isinstance(texts, str):
            raise CornerstoneError("encode_text got one string: give a list of texts.")
        if isinstance(texts, Tensor):
            ids, lengths = without_corners(texts, vocab_size=self.tokenizer.vocab_size, corners=self.tokenizer.corners)
        else:
            ids, lengths = self._padded(texts)
        parts = zip(ids.to(self.device).split(_AT_A_TIME), lengths.to(self.device).split(_AT_A_TIME), strict=True)
        return torch.cat([self.module.encode_text(i, n, corners=corners) for i, n in parts])

    def transform(self, image: Image.Image | bytes) -> Tensor:
        """Normalised floats (3, S, S) of a picture: shortest side to S, bicubic, and the central crop.

        Give the encoded bytes where transparency, EXIF rotation and 16-bit greys are to be treated as in training.
        """
        tower = self.module.image_tower
        if tower is None:
            raise CornerstoneError("This model was saved without an image tower: it has no transform.")
        crop = Transform(tower.size, train=False)
        if isinstance(image, bytes):
            pixels = crop(image)
        else:
            square = image.convert("RGB").resize((tower.size,) * 2, Image.Resampling.BICUBIC, box=crop.box(*image.size))
            pixels = np.asarray(square, dtype=np.uint8).transpose(2, 0, 1)
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (tower.mean, tower.std))
        return (torch.from_numpy(pixels.copy()).float() / 255 - mean) / std

    def _padded(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        encoded = [ids or [self.tokenizer.cls, self.tokenizer.sep] for ids in self.tokenizer.encode(texts)]
        padded = nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in encoded], batch_first=True)
        return padded, torch.tensor([len(ids) for ids in encoded])


def save_model(
    folder: Location | str,
    model: Any,
    *,
    config: Any,
    recipe: Mapping[str, Any],
    tokenizer_json: str,
    image_tower: TimmTower | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a method's module (`Lotlip`, ...) so that `load` opens it anywhere.

    `config` is the recipe's method (it names the implementation), `recipe` the whole recipe as a mapping. `state`
    replaces the module's own weights where they are sharded (a consolidated state). `image_tower` is the locked tower;
    None takes the module's own, and a model without any encodes stored features alone. The configuration is written
    last: a folder without one is unfinished.
    """
    place = Location.of(folder)
    tower = image_tower or model.image_tower
    tensors = dict(model.state_dict() if state is None else state)
    if tower is not None and not any(name.startswith(_VISUAL) for name in tensors):
        tensors |= {_VISUAL + name: value for name, value in tower.state_dict().items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    described = {
        "version": _VERSION,
        "implementation": config.implementation,
        "method": asdict(config),
        "build": model.described(),
        "image_tower": None if tower is None else tower.described(),
    }
    place.join(WEIGHTS).write_bytes(safetensors.torch.save(tensors))
    place.join(TOKENIZER).write_text(tokenizer_json)
    place.join(RECIPE).write_text(json.dumps(recipe, indent=1) + "\n")
    place.join(CONFIG).write_text(json.dumps(described, indent=1) + "\n")


def load(path: Location | str, device: torch.device | str = "cpu") -> LoadedModel:
    """Open a model folder, or a run's folder that holds one as `model/`.

    Raises CornerstoneError where there is none, where it is unfinished or of a newer version, and where the weights do
    not fit.
    """
    place = Location.of(path)
    place = next((p for p in (place, place.join("model")) if p.join(CONFIG).exists()), place)
    missing = [name for name in (CONFIG, WEIGHTS, TOKENIZER, RECIPE) if not place.join(name).exists()]
    if missing:
        raise CornerstoneError(
            f"No model at {place}: it lacks {', '.join(missing)}. Give the folder `model` that a finished run left "
            f"(its path is printed at the end and tagged in MLflow), or one made by `cornerstone convert`."
        )
    described = json.loads(place.join(CONFIG).read_text())
    if not isinstance(described, dict) or described.get("version") not in range(1, _VERSION + 1):
        raise CornerstoneError(
            f"{place.join(CONFIG)} is not of a version that this Cornerstone reads (1 to {_VERSION}): update it."
        )
    tower = TimmTower.rebuilt(described["image_tower"]) if described["image_tower"] else None
    module = _implementation(described["implementation"]).rebuilt(described["method"], described["build"], tower)
    _load_weights(place, module, tower)
    text = described["method"]["text"]
    tokenizer = TextTokenizer(
        place.join(TOKENIZER).read_text(), limit=text["token_limit"], corners=text["corner_tokens"]
    )
    return LoadedModel(module.to(device), tokenizer, json.loads(place.join(RECIPE).read_text()))


def _load_weights(place: Location, module: nn.Module, tower: TimmTower | None) -> None:
    tensors = safetensors.torch.load(place.join(WEIGHTS).read_bytes())
    try:
        if tower is not None:
            visual = {name: value for name, value in tensors.items() if name.startswith(_VISUAL)}
            tower.load_state_dict({name.removeprefix(_VISUAL): value for name, value in visual.items()})
            if not any(name.startswith(_VISUAL) for name in module.state_dict()):  # locked: kept aside
                tensors = {name: value for name, value in tensors.items() if name not in visual}
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise CornerstoneError(f"The weights in {place} do not fit its {CONFIG}: {error}") from error


def _implementation(name: str) -> Any:
    """The class that a dotted `module:Class` names."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise CornerstoneError(
            f"The model needs {name!r}, which cannot be imported here ({error}): install what defines it."
        ) from error
