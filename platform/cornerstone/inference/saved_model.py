"""Models on disk: what a run leaves, and what `cornerstone.load` opens. Nothing is asked of a hub.

    model.safetensors   all weights, the locked image tower's included
    config.json         the method's configuration with its kind, and how to build it and its towers again
    recipe.json         the recipe it was trained with
    tokenizer.json

B images or texts, S pixels a side, T tokens, D width of the features, M = 1 + m: [CLS] and the tower's extra features
(corners).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from cornerstone.data.images import Transform
from cornerstone.data.storage import Location
from cornerstone.data.texts import FILE as TOKENIZER
from cornerstone.data.texts import TextInput
from cornerstone.errors import CornerstoneError
from cornerstone.hashing import as_json
from cornerstone.inference.documents import encode_documents
from cornerstone.inference.lotlip_checkpoint import without_corners
from cornerstone.models.dual_encoder import DualEncoder
from cornerstone.models.image_tower import VISUAL, TimmTower
from cornerstone.models.method import Method
from cornerstone.recipes.method import MethodConfig, implementation_of, method_config

CONFIG, RECIPE, WEIGHTS = "config.json", "recipe.json", "model.safetensors"
_VERSION = 3
_IN_VERSION_1 = {"log_scale": "logit_scale"}
"""Weights that had another name in version 1."""
_AT_A_TIME = 128


class SavedModel:
    """An opened model with its tokenizer and transform; encoding needs a dual encoder."""

    def __init__(self, module: Method[Any, Any], tokenizer_json: str, recipe: Mapping[str, Any]) -> None:
        self.module, self.tokenizer_json, self.recipe = module.eval(), tokenizer_json, recipe
        self.text_input = TextInput.of_method(module.config, tokenizer_json)
        self.text_format = self.text_input.open() if self.text_input is not None else None

    @property
    def device(self) -> torch.device:
        """Where the model computes; inputs are brought there."""
        return next(self.module.parameters()).device

    def to(self, device: torch.device | str) -> SavedModel:
        """Move the model."""
        self.module.to(device)
        return self

    @property
    def encoder(self) -> DualEncoder[Any]:
        """The module; CornerstoneError if its method does not encode images and texts."""
        if not isinstance(self.module, DualEncoder):
            raise CornerstoneError(f"The method {self.module.config.kind!r} is no dual encoder: it cannot encode this.")
        return self.module

    @torch.no_grad()
    def encode_image(self, images_B3SS: Tensor) -> Tensor:
        """(B, D), L2-normalised, from normalised floats as `transform` gives them, or from uint8 pixels.

        Of a method with several features of an image (BLIP-2's queries) they are (B, Q, D); `module.similarity` compares them.
        """
        return torch.cat([self.encoder.encode_image(part.to(self.device)) for part in images_B3SS.split(_AT_A_TIME)])

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str] | Tensor, corners: bool = False) -> Tensor:
        """(B, D), L2-normalised, or with `corners` (B, M, D), [CLS] first.

        `texts` are strings, or ids (B, T) as LoTLIP's authors lay them out: corner k is the id `vocab_size` + k at places
        1 .. m, padding 0. An empty string is encoded as [CLS] [SEP].
        """
        if isinstance(texts, str):
            raise CornerstoneError("encode_text got one string: give a list of texts.")
        encoder = self.encoder
        if isinstance(texts, Tensor):
            corner_count: int = encoder.text.extra_features
            ids, lengths = without_corners(texts, vocab_size=encoder.inputs.vocab_size, corners=corner_count)
        else:
            ids, lengths = self._padded(texts)
        parts = zip(ids.to(self.device).split(_AT_A_TIME), lengths.to(self.device).split(_AT_A_TIME), strict=True)
        return torch.cat([encoder.encode_text(i, n, corners=corners) for i, n in parts])

    def encode_documents(self, images_N3SS: Tensor, token_ids_BT: Tensor) -> dict[str, Tensor]:
        """LCL's features and logits of documents: `image_features`, `text_features`, `logits`, `labels`.

        See `inference.documents.encode_documents`. Raises CornerstoneError for a method that reads no documents.
        """
        return encode_documents(self.module, images_N3SS.to(self.device), token_ids_BT)

    @property
    def image_size(self) -> int:
        """Side of the square that the image tower sees, in pixels; CornerstoneError if there is none."""
        tower = self.module.image_tower
        if tower is None:
            raise CornerstoneError("This model was saved without an image tower: it has no transform.")
        return tower.size

    def transform(self, image: Image.Image | bytes) -> Tensor:
        """Normalised floats (3, S, S) of an image: shortest side to S, bicubic, and the central crop.

        Give the encoded bytes if transparency, EXIF rotation and 16-bit greys are to be treated as in training.
        """
        size, tower = self.image_size, self.module.image_tower
        assert tower is not None
        crop = Transform(size, train=False)
        if not isinstance(image, bytes | Image.Image):
            raise CornerstoneError(
                f"transform got {type(image).__name__} ({str(image)[:80]!r}): expected a PIL image, or the bytes of an image "
                f"file, as in transform(open(path, 'rb').read())."
            )
        if isinstance(image, bytes):
            pixels = crop(image)
        else:
            square = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC, box=crop.box(*image.size))
            pixels = np.asarray(square, dtype=np.uint8).transpose(2, 0, 1)
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (tower.mean, tower.std))
        return (torch.from_numpy(pixels.copy()).float() / 255 - mean) / std

    def _padded(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        form = self.text_format
        if form is None:
            raise CornerstoneError(f"The method {self.module.config.kind!r} has no text tower.")
        encoded = [ids or form.empty for ids in form.encode_texts(texts)]
        padded = nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in encoded], batch_first=True)
        return padded, torch.tensor([len(ids) for ids in encoded])


def save_model(
    folder: Location | str,
    model: Method[Any, Any],
    *,
    recipe: Mapping[str, Any],
    tokenizer_json: str,
    config: MethodConfig | None = None,
    image_tower: TimmTower | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a method's module so that `load` opens it anywhere.

    `config` replaces the module's own, `recipe` is the whole recipe as a mapping. `state` replaces the module's weights if
    they are sharded (a consolidated state). `image_tower` is the locked tower; None takes the module's own, and a model
    without any encodes stored features alone. config.json is written last: a folder without one is unfinished.
    """
    place, config = Location.of(folder), config or model.config
    tower = image_tower or model.image_tower
    tensors = dict(model.state_dict() if state is None else state)
    if tower is not None and not any(name.startswith(VISUAL) for name in tensors):
        tensors |= {VISUAL + name: value for name, value in tower.state_dict().items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    described = {
        "version": _VERSION,
        "method": as_json(config),
        "config_class": f"{type(config).__module__}:{type(config).__qualname__}",
        "build": model.described(),
        "image_tower": None if tower is None else tower.described(),
    }
    place.join(WEIGHTS).write_bytes(safetensors.torch.save(tensors))
    place.join(TOKENIZER).write_text(tokenizer_json)
    place.join(RECIPE).write_text(json.dumps(recipe, indent=1) + "\n")
    place.join(CONFIG).write_text(json.dumps(described, indent=1) + "\n")


def load(path: Location | str, device: torch.device | str = "cpu") -> SavedModel:
    """Open a model folder, or a run's folder that holds one as `model/`.

    Raises CornerstoneError if there is none, if it is unfinished or of a newer version, and if the weights do not fit.
    """
    place = Location.of(path)
    place = next((p for p in (place, place.join("model")) if p.join(CONFIG).exists()), place)
    missing = [name for name in (CONFIG, WEIGHTS, TOKENIZER, RECIPE) if not place.join(name).exists()]
    if missing:
        raise CornerstoneError(
            f"No model at {place}: it lacks {', '.join(missing)}. Give the folder `model` that a finished run left "
            f"(its path is printed at the end and tagged in MLflow)."
        )
    described = json.loads(place.join(CONFIG).read_text())
    if not isinstance(described, dict) or described.get("version") not in range(1, _VERSION + 1):
        raise CornerstoneError(
            f"{place.join(CONFIG)} is not of a version that this Cornerstone reads (1 to {_VERSION}): update it."
        )
    if described["version"] == 1:
        described["method"]["kind"] = _kind_in_version_1(described["implementation"])
    config = method_config(described["method"], described.get("config_class", ""))
    tower = TimmTower.rebuilt(described["image_tower"]) if described["image_tower"] else None
    module: Method[Any, Any] = implementation_of(config).rebuilt(config, described["build"], tower)
    _load_weights(place, module, tower)
    recipe = json.loads(place.join(RECIPE).read_text())
    return SavedModel(module.to(device), place.join(TOKENIZER).read_text(), recipe)


def _kind_in_version_1(implementation: str) -> str:
    """Version 1 named the module's class; LoTLIP was the only method."""
    if implementation != "cornerstone.models.lotlip:Lotlip":
        raise CornerstoneError(f"The model needs {implementation!r}, which cannot be opened here: save it again.")
    return "lotlip"


def _load_weights(place: Location, module: nn.Module, tower: TimmTower | None) -> None:
    tensors = safetensors.torch.load(place.join(WEIGHTS).read_bytes())
    tensors = {_IN_VERSION_1.get(name, name): value for name, value in tensors.items()}
    try:
        if tower is not None:
            visual = {name: value for name, value in tensors.items() if name.startswith(VISUAL)}
            tower.load_state_dict({name.removeprefix(VISUAL): value for name, value in visual.items()})
            if not any(name.startswith(VISUAL) for name in module.state_dict()):  # locked: not a registered parameter
                tensors = {name: value for name, value in tensors.items() if name not in visual}
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise CornerstoneError(f"The weights in {place} do not fit its {CONFIG}: {error}") from error
