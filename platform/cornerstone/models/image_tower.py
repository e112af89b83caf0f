"""Image towers: timm vision transformers with the pooling, projection and regularisation that a recipe names.

B images, S pixels a side, P patches, V width inside, W width of the pooled feature.
"""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError
from cornerstone.models.loading import load_weights, read_safetensors
from cornerstone.recipes.towers import ImageTower

_CHECK_SEED = 0x70_77_65_72
"""Draws what loaded weights replace; no tower that somebody trained or saved started from it."""
_PROJECTION_SEED = 0x69_6D_67_70
_POSITION_SEED = 0x70_6F_73_69
_POOLING = {"token": "token", "average": "avg", "attention": "map", "none": ""}
"""timm's names of the poolings."""
CONFIG, WEIGHTS = "config.json", "model.safetensors"
VISUAL = "visual."
"""What the names of a tower's weights begin with in a saved model."""


class ImageFeatures(NamedTuple):
    """What an image tower gives, not normalised."""

    pooled: Tensor | None
    """(B, W); None without pooling."""
    patches: Tensor
    """(B, P, V): the patches after the last norm, class token and registers left out."""


class TimmTower(nn.Module):
    """A timm model with all that is needed to feed it and, from `arguments` and its weights, to build it again."""

    def __init__(self, model: nn.Module, size: int, arguments: Mapping[str, Any], projection: int = 0) -> None:
        super().__init__()
        self.model, self.size, self.arguments = model, size, dict(arguments)
        described: Mapping[str, Any] = getattr(model, "pretrained_cfg", {})
        self.mean = tuple(float(x) for x in described["mean"])
        self.std = tuple(float(x) for x in described["std"])
        inside: int = model.num_features  # type: ignore[assignment]
        self.projection = nn.Linear(inside, projection, bias=False) if projection else None
        self.width = projection or inside

    def forward(self, image_B3SS: Tensor) -> ImageFeatures:
        """Features from normalised floats, or from uint8 pixels, which are normalised here."""
        model: Any = self.model
        tokens_BTV = model.forward_features(self.normalised(image_B3SS))
        patches_BPV = tokens_BTV[:, model.num_prefix_tokens :]
        if not self.arguments["global_pool"]:
            return ImageFeatures(None, patches_BPV)
        pooled_BW = model.forward_head(tokens_BTV)
        return ImageFeatures(pooled_BW if self.projection is None else self.projection(pooled_BW), patches_BPV)

    def pooled_patches(self, image_B3SS: Tensor) -> Tensor:
        """(B, P, W): each patch by the path of the pooled feature, behind the last norm and through the projection.

        Raises CornerstoneError for a tower that pools by attention, or not at all: its patches have no such path.
        """
        if self.arguments["global_pool"] not in (_POOLING["token"], _POOLING["average"]):
            raise CornerstoneError(
                "Patches are compared with texts only where the image's feature is the class token or the mean of the patches, "
                "but this image tower pools otherwise: use a model whose tower has --recipe.method.image.pooling token."
            )
        model: Any = self.model
        patches_BPV = self(image_B3SS).patches
        patches_BPW: Tensor = model.head(model.fc_norm(patches_BPV))  # the last norm, if it stands behind the mean
        return patches_BPW if self.projection is None else self.projection(patches_BPW)

    def normalised(self, image_B3SS: Tensor) -> Tensor:
        """Images as the model reads them, in its precision: uint8 pixels are normalised, floats are already."""
        if image_B3SS.dtype == torch.uint8:
            mean, std = (torch.tensor(x, device=image_B3SS.device).view(3, 1, 1) for x in (self.mean, self.std))
            image_B3SS = (image_B3SS.float() / 255 - mean) / std
        return image_B3SS.to(next(self.model.parameters()).dtype)

    def lock(self) -> TimmTower:
        """No gradients, no dropout: the tower stays as it is."""
        self.requires_grad_(False)
        return self.eval()

    def described(self) -> dict[str, Any]:
        """JSON from which `rebuilt` makes the same tower, but for its weights; no hub is asked."""
        projection = {} if self.projection is None else {"projection": self.width}
        plain = {"arguments": self.arguments, "size": self.size, "mean": list(self.mean), "std": list(self.std)}
        return plain | projection

    @staticmethod
    def rebuilt(described: Mapping[str, Any], seed: int = 0) -> TimmTower:
        """The tower that `described` describes, its weights drawn from `seed` or still to be loaded."""
        model = _create(described["arguments"], pretrained=False, seed=seed)
        tower = TimmTower(model, described["size"], described["arguments"], described.get("projection", 0))
        tower.mean, tower.std = tuple(described["mean"]), tuple(described["std"])
        return tower


def without_last_layer(tower: TimmTower) -> TimmTower:
    """The tower whose patches are those before its last layer and its last norm, as LLaVA reads CLIP's. Weights are shared.

    Raises CornerstoneError for a tower of one layer, or without a list of them.
    """
    blocks: Any = getattr(tower.model, "blocks", None)
    if blocks is None or len(blocks) < 2:
        raise CornerstoneError("The tower has no second-last layer to read patches from: give --patches last.")
    model: Any = copy.copy(tower.model)
    model._modules = {**tower.model._modules, "blocks": blocks[:-1], "norm": nn.Identity()}
    shorter = TimmTower(model, tower.size, tower.arguments)
    shorter.mean, shorter.std = tower.mean, tower.std
    return shorter


def build_image_tower(config: ImageTower, seed: int = 0) -> TimmTower:
    """The tower of a recipe: by timm name, from a folder, or from a run's model; locked (no gradients, eval mode) if so named.

    Weights that are not pretrained are drawn from `seed`, without moving torch's own generator. Raises CornerstoneError
    for an unknown name, a hub that does not answer, a model that cannot be pooled as asked, and weights that do not fit.
    """
    if not config.name:
        raise CornerstoneError(
            "No image tower is named: set --recipe.method.image.name to a timm model or a folder of one."
        )
    tower = _of_run(config) or _of_timm(config, seed)
    if config.projection and tower.projection is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed ^ _PROJECTION_SEED)
            tower = TimmTower(tower.model, tower.size, tower.arguments, config.projection)
        if tower.projection is not None and (released := _released_projection(config)) is not None:
            tower.projection.weight.data.copy_(released)
    return tower.lock() if config.locked else tower


@contextmanager
def _timm_folder(name: str) -> Iterator[Path | None]:
    """The folder that a name stands for, in timm's layout; None of a name of timm. timm reads local folders only: of another
    one it is a copy that lasts as long as the block.
    """
    place = Location.of(name)
    if place.is_local:
        yield Path(place.uri) if Path(place.uri).is_dir() else None
        return
    with tempfile.TemporaryDirectory() as copy:
        for file in (CONFIG, WEIGHTS):
            if not place.join(file).exists():
                raise CornerstoneError(
                    f"The image tower {name} has no {file}: expected a folder with {CONFIG} and {WEIGHTS} "
                    f"(--recipe.method.image.name)."
                )
            (Path(copy) / file).write_bytes(place.join(file).read_bytes())
        yield Path(copy)


def _of_timm(config: ImageTower, seed: int) -> TimmTower:
    with _timm_folder(config.name) as folder:
        return _of_timm_in(folder, config, seed)


def _of_timm_in(folder: Path | None, config: ImageTower, seed: int) -> TimmTower:
    name = f"local-dir:{folder}" if folder else config.name
    pretrained = config.pretrained or folder is not None
    arguments: dict[str, Any] = {"model_name": name, "num_classes": 0}
    arguments |= {"global_pool": _POOLING[config.pooling], "img_size": config.size}
    arguments |= {"drop_path_rate": config.drop_path} if config.drop_path else {}
    arguments |= {"init_values": config.layer_scale} if config.layer_scale else {}
    arguments |= config.sizes
    model = _create(arguments, pretrained, _CHECK_SEED if pretrained else seed)
    if config.position_std and not pretrained:
        positions: Any = model.pos_embed
        generator = torch.Generator().manual_seed(seed ^ _POSITION_SEED)
        with torch.no_grad():
            positions.copy_(config.position_std * torch.randn(positions.shape, generator=generator))
    if pretrained:
        _refuse_unloaded(model, _create(arguments, pretrained=False, seed=_CHECK_SEED), config.name)
    if folder is not None:  # a saved model must open on machines that do not have this folder
        saved_name, saved_arguments = _folder_arguments(folder)
        arguments = {**saved_arguments, **arguments, "model_name": saved_name}
    elif name.startswith("hf-hub:"):
        arguments["model_name"] = model.pretrained_cfg["architecture"]  # type: ignore[index]
    return TimmTower(model, config.size, arguments)


def _released_projection(config: ImageTower) -> Tensor | None:
    """(D, V): the projection of a released CLIP, which timm's weights hold as a classifier without bias; None of others."""
    if not config.pretrained or saved_tower(config.name) is not None:
        return None
    with _timm_folder(config.name) as folder:
        name = f"local-dir:{folder}" if folder else config.name
        plain: Any = _create({"model_name": name, "img_size": config.size}, pretrained=False, seed=_CHECK_SEED)
        if plain.num_classes != config.projection:
            return None
        arguments = {"model_name": name, "img_size": config.size, "num_classes": config.projection}
        head: Any = _create(arguments, pretrained=True, seed=_CHECK_SEED).get_classifier()  # type: ignore[operator]
    return None if head.bias is not None and head.bias.any() else head.weight.detach()


def _of_run(config: ImageTower) -> TimmTower | None:
    """The image tower of a run's folder `model`; None if the name is not one."""
    described, place = saved_tower(config.name), Location.of(config.name)
    if described is None:
        return None
    if described["size"] != config.size:
        raise CornerstoneError(
            f"The image tower of {place} sees {described['size']} pixels, the recipe says {config.size}: set "
            f"--recipe.method.image.size {described['size']}."
        )
    tower = TimmTower.rebuilt(described)
    tensors = read_safetensors(place.join(WEIGHTS))
    visual = {n.removeprefix(VISUAL): x for n, x in tensors.items() if n.startswith(VISUAL)}
    load_weights(tower, visual, f"The image tower's weights in {place} do not fit its config.json")
    return tower


def saved_tower(name: str) -> Mapping[str, Any] | None:
    """What a run's folder `model` says of its image tower (`TimmTower.described`); None if the name is not one."""
    place = Location.of(name) if "/" in name else None
    if place is None or not place.join(CONFIG).exists():
        return None
    described: Mapping[str, Any] | None = json.loads(place.join(CONFIG).read_text()).get("image_tower")
    return described


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
                f"transformer with one, for example vit_base_patch16_224.augreg_in21k (--recipe.method.image.name), or "
                f"another --recipe.method.image.pooling."
            ) from error
        except (RuntimeError, ValueError, KeyError, OSError) as error:
            raise CornerstoneError(
                f"Cannot load the image tower {name!r}: {error} Expected a timm model name, or a folder with "
                f"config.json and model.safetensors (--recipe.method.image.name). Where the hub does not answer, name "
                f"a folder, or train from scratch with --recipe.method.image.pretrained False."
            ) from error


def _folder_arguments(folder: Path) -> tuple[str, dict[str, Any]]:
    described = json.loads((folder / CONFIG).read_text())
    return described["architecture"], dict(described.get("model_args") or {})


def _refuse_unloaded(loaded: nn.Module, fresh: nn.Module, name: str) -> None:
    """timm only logs what it does not find in a file: a weight that is still as drawn was not loaded.

    Attention pooling and layer scale are new parts of a pretrained tower.
    """
    drawn = dict(fresh.named_parameters())
    named = [(k, v) for k, v in loaded.named_parameters() if not k.startswith("attn_pool.")]
    left = [k for k, v in named if v.ndim > 1 and v.std() > 0 and torch.equal(v, drawn[k])]
    if left:
        raise CornerstoneError(
            f"The weights of the image tower {name!r} do not fit its architecture: {len(left)} of {len(drawn)} "
            f"parameters are missing, {left[0]} among them. Check the folder's config.json and model.safetensors."
        )
