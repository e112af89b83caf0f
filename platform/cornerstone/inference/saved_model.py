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
import numpy.typing as npt
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from cornerstone.data.images import Transform
from cornerstone.data.pairs.image_input import DecodedImages
from cornerstone.data.released_texts import ReleasedTexts
from cornerstone.data.storage import Location
from cornerstone.data.texts import FILE as TOKENIZER
from cornerstone.data.texts import TextInput
from cornerstone.errors import CornerstoneError
from cornerstone.hashing import as_json
from cornerstone.inference.documents import encode_documents
from cornerstone.inference.lotlip_checkpoint import without_corners
from cornerstone.inference.opened_model import AT_A_TIME, OpenedModel
from cornerstone.models.dual_encoder import DualEncoder
from cornerstone.models.image_tower import VISUAL, TimmTower
from cornerstone.models.loading import load_weights, read_safetensors
from cornerstone.models.method import Method
from cornerstone.recipes.method import MethodConfig, implementation_of, method_config

CONFIG, RECIPE, WEIGHTS = "config.json", "recipe.json", "model.safetensors"
_VERSION = 3
_IN_VERSION_1 = {"log_scale": "logit_scale"}
"""Weights that had another name in version 1."""


class SavedModel(OpenedModel):
    """A model that was trained here, or whose weights were converted to a method's own."""

    module: Method[Any, Any]

    def __init__(
        self,
        module: Method[Any, Any],
        tokenizer_json: str,
        recipe: Mapping[str, Any],
        texts: ReleasedTexts | None = None,
    ) -> None:
        """`texts` replaces the method's own format by that of the model's authors."""
        text_input = texts or TextInput.of_method(module.config, tokenizer_json)
        super().__init__(module, tokenizer_json, recipe, text_input)

    @property
    def name(self) -> str:
        """Its method."""
        return self.module.config.kind

    @property
    def judged_by(self) -> str:
        """The task that its method names."""
        return self.module.config.judged_by

    @property
    def encoder(self) -> DualEncoder[Any]:
        """The module; CornerstoneError if its method does not encode images and texts."""
        if not isinstance(self.module, DualEncoder):
            raise CornerstoneError(f"The method {self.module.config.kind!r} is no dual encoder: it cannot encode this.")
        return self.module

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str] | Tensor, corners: bool = False) -> Tensor:
        """(B, D), L2-normalised, or with `corners` (B, M, D), [CLS] first.

        `texts` are strings, or ids (B, T) as LoTLIP's authors lay them out: corner k is the id `vocab_size` + k at places
        1 .. m, padding 0. An empty string is encoded as [CLS] [SEP].
        """
        encoder = self.encoder
        if isinstance(texts, Tensor):
            corner_count: int = encoder.text.extra_features
            ids, lengths = without_corners(texts, vocab_size=encoder.inputs.vocab_size, corners=corner_count)
        else:
            ids, lengths = self.padded(texts)
        parts = zip(ids.to(self.device).split(AT_A_TIME), lengths.to(self.device).split(AT_A_TIME), strict=True)
        return torch.cat([encoder.encode_text(i, n, corners=corners) for i, n in parts])

    def encode_documents(self, images_N3SS: Tensor, token_ids_BT: Tensor) -> dict[str, Tensor]:
        """LCL's features and logits of documents: `image_features`, `text_features`, `logits`, `labels`.

        See `inference.documents.encode_documents`. Raises CornerstoneError for a method that reads no documents.
        """
        return encode_documents(self.module, images_N3SS.to(self.device), token_ids_BT)

    @property
    def _tower(self) -> TimmTower:
        tower = self.module.image_tower
        if tower is None:
            raise CornerstoneError("This model was saved without an image tower: it has no transform.")
        return tower

    @property
    def image_size(self) -> int:
        """Side of the square that the image tower sees, in pixels; CornerstoneError if there is none."""
        return self._tower.size

    @property
    def image_input(self) -> DecodedImages:
        """Shortest side to S, bicubic, and the central crop."""
        return DecodedImages(Transform(self.image_size, train=False))

    @property
    def mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The image tower's."""
        return self._tower.mean, self._tower.std

    def pixels(self, image: Image.Image | bytes) -> npt.NDArray[np.uint8]:
        """(3, S, S) as in training."""
        crop = Transform(self.image_size, train=False)
        if isinstance(image, bytes):
            return crop(image)
        side = (self.image_size, self.image_size)
        square = image.convert("RGB").resize(side, Image.Resampling.BICUBIC, box=crop.box(*image.size))
        return np.asarray(square, dtype=np.uint8).transpose(2, 0, 1)


def save_model(
    folder: Location | str,
    model: Method[Any, Any],
    *,
    recipe: Mapping[str, Any],
    tokenizer_json: str,
    config: MethodConfig | None = None,
    image_tower: TimmTower | None = None,
    state: Mapping[str, Tensor] | None = None,
    texts: ReleasedTexts | None = None,
    content: Mapping[str, str] | None = None,
) -> None:
    """Write a method's module so that `load` opens it anywhere.

    `config` replaces the module's own, `recipe` is the whole recipe as a mapping. `state` replaces the module's weights if
    they are sharded (a consolidated state). `image_tower` is the locked tower; None takes the module's own, and a model
    without any encodes stored features alone. `texts` is how the authors of converted weights treat texts, `content` the
    hashes of what it was trained from. config.json is written last: a folder without one is unfinished.
    """
    place, config = Location.of(folder), config or model.config
    tower = image_tower or model.image_tower
    tensors = dict(model.state_dict() if state is None else state)
    if tower is not None and not any(name.startswith(VISUAL) for name in tensors):
        tensors |= {VISUAL + name: value for name, value in tower.state_dict().items()}
    tensors = _apart({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    described = {
        "version": _VERSION,
        "method": as_json(config),
        "config_class": f"{type(config).__module__}:{type(config).__qualname__}",
        "build": model.described(),
        "image_tower": None if tower is None else tower.described(),
    }
    if texts is not None:
        described["texts"] = texts.described()
    if content:
        described["content"] = dict(content)
    place.join(WEIGHTS).write_bytes(safetensors.torch.save(tensors))
    place.join(TOKENIZER).write_text(tokenizer_json)
    place.join(RECIPE).write_text(json.dumps(recipe, indent=1) + "\n")
    place.join(CONFIG).write_text(json.dumps(described, indent=1) + "\n")


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of which no two share memory, as those of an embedding that is the head too: safetensors refuses these."""
    seen = set[int]()
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        found[name] = value.clone() if value.numel() and value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return found


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
    tokenizer = place.join(TOKENIZER).read_text()
    texts = ReleasedTexts.rebuilt(described["texts"], tokenizer) if "texts" in described else None
    model = SavedModel(module.to(device), tokenizer, recipe, texts)
    model.content = described.get("content", {})
    return model


def _kind_in_version_1(implementation: str) -> str:
    """Version 1 named the module's class; LoTLIP was the only method."""
    if implementation != "cornerstone.models.lotlip:Lotlip":
        raise CornerstoneError(f"The model needs {implementation!r}, which cannot be opened here: save it again.")
    return "lotlip"


def _load_weights(place: Location, module: nn.Module, tower: TimmTower | None) -> None:
    tensors = read_safetensors(place.join(WEIGHTS))
    tensors = {_IN_VERSION_1.get(name, name): value for name, value in tensors.items()}
    refused = f"The weights in {place} do not fit its {CONFIG}"
    if tower is not None:
        visual = {name: value for name, value in tensors.items() if name.startswith(VISUAL)}
        load_weights(tower, {name.removeprefix(VISUAL): value for name, value in visual.items()}, refused)
        if not any(name.startswith(VISUAL) for name in module.state_dict()):  # locked: not a registered parameter
            tensors = {name: value for name, value in tensors.items() if name not in visual}
    load_weights(module, tensors, refused)
