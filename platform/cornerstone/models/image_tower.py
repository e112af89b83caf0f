"""Image towers: a timm vision transformer whose class token is the image's feature, without projection.

B images, S pixels a side, W the tower's width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.towers import ImageTower

_CHECK_SEED = 0x70_77_65_72
"""Draws what loaded weights replace; no tower that somebody trained or saved started from it."""


class TimmTower(nn.Module):
    """A timm model with all that is needed to feed it and, from `arguments` and its weights, to build it again."""

    def __init__(self, model: nn.Module, size: int, arguments: Mapping[str, Any]) -> None:
        super().__init__()
        self.model, self.size, self.arguments = model, size, dict(arguments)
        described: Mapping[str, Any] = getattr(model, "pretrained_cfg", {})
        self.mean = tuple(float(x) for x in described["mean"])
        self.std = tuple(float(x) for x in described["std"])
        self.width: int = model.num_features  # type: ignore[assignment]

    def forward(self, image_B3SS: Tensor) -> Tensor:
        """(B, W) from normalised floats, or from uint8 pixels, which are normalised here."""
        if image_B3SS.dtype == torch.uint8:
            mean, std = (torch.tensor(x, device=image_B3SS.device).view(3, 1, 1) for x in (self.mean, self.std))
            image_B3SS = (image_B3SS.float() / 255 - mean) / std
        return self.model(image_B3SS.to(next(self.model.parameters()).dtype))

    def lock(self) -> TimmTower:
        """No gradients, no dropout: the tower stays as it is."""
        self.requires_grad_(False)
        return self.eval()

    def described(self) -> dict[str, Any]:
        """JSON from which `rebuilt` makes the same tower, but for its weights; no hub is asked."""
        return {"arguments": self.arguments, "size": self.size, "mean": list(self.mean), "std": list(self.std)}

    @staticmethod
    def rebuilt(described: Mapping[str, Any]) -> TimmTower:
        """The tower that `described` tells of, with weights that are still to be loaded."""
        tower = TimmTower(_create(described["arguments"], pretrained=False), described["size"], described["arguments"])
        tower.mean, tower.std = tuple(described["mean"]), tuple(described["std"])
        return tower


def build_image_tower(config: ImageTower, seed: int = 0) -> TimmTower:
    """The tower of a recipe, by timm name or folder; locked (no gradients, eval mode) where the recipe says so.

    Weights that are not pretrained are drawn from `seed`, without moving torch's own generator. Raises
    CornerstoneError for an unknown name, a hub that does not answer, a model without a class token, and weights that
    do not fit the model.
    """
    if not config.name:
        raise CornerstoneError(
            "No image tower is named: set --recipe.method.image.name to a timm model or a folder of one."
        )
    folder = Path(config.name).expanduser()
    name = f"local-dir:{folder}" if folder.is_dir() else config.name
    pretrained = config.pretrained or folder.is_dir()
    arguments = {"model_name": name, "num_classes": 0, "global_pool": "token", "img_size": config.size}
    model = _create(arguments, pretrained, _CHECK_SEED if pretrained else seed)
    if pretrained:
        _refuse_unloaded(model, _create(arguments, pretrained=False, seed=_CHECK_SEED), config.name)
    if folder.is_dir():  # a saved model must open where this folder is not
        saved_name, saved_arguments = _folder_arguments(folder)
        arguments = {**saved_arguments, **arguments, "model_name": saved_name}
    elif name.startswith("hf-hub:"):
        arguments["model_name"] = model.pretrained_cfg["architecture"]  # type: ignore[index]
    tower = TimmTower(model, config.size, arguments)
    return tower.lock() if config.locked else tower


def state_hash(module: nn.Module) -> str:
    """16 hexadecimal digits over names, types, shapes and values of a module's weights and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _create(arguments: Mapping[str, Any], pretrained: bool, seed: int = 0) -> nn.Module:
    name = arguments["model_name"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return timm.create_model(**arguments, pretrained=pretrained)
        except (AssertionError, TypeError) as error:
            raise CornerstoneError(
                f"The image tower {name!r} has no class token to pool, or no settable size ({error}): choose a vision "
                f"transformer with one, for example vit_base_patch16_224.augreg_in21k (--recipe.method.image.name)."
            ) from error
        except (RuntimeError, ValueError, KeyError, OSError) as error:
            raise CornerstoneError(
                f"Cannot load the image tower {name!r}: {error} Expected a timm model name, or a folder with "
                f"config.json and model.safetensors (--recipe.method.image.name). Where the hub does not answer, name "
                f"a folder, or train from scratch with --recipe.method.image.pretrained False."
            ) from error


def _folder_arguments(folder: Path) -> tuple[str, dict[str, Any]]:
    described = json.loads((folder / "config.json").read_text())
    return described["architecture"], dict(described.get("model_args") or {})


def _refuse_unloaded(loaded: nn.Module, fresh: nn.Module, name: str) -> None:
    """timm only logs what it does not find in a file: a weight still as drawn was not loaded."""
    drawn = dict(fresh.named_parameters())
    left = [k for k, v in loaded.named_parameters() if v.ndim > 1 and v.std() > 0 and torch.equal(v, drawn[k])]
    if left:
        raise CornerstoneError(
            f"The weights of the image tower {name!r} do not fit its architecture: {len(left)} of {len(drawn)} "
            f"parameters are missing, {left[0]} among them. Check the folder's config.json and model.safetensors."
        )
