"""The image tower of a transfer: of a saved model of any method, of a released model, of timm, or with random weights."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError
from cornerstone.models.image_tower import TimmTower, build_image_tower, state_hash
from cornerstone.recipes.towers import ImageTower
from cornerstone.recipes.transfers import from_scratch_like
from cornerstone.runtime.home import home
from cornerstone.runtime.hub import hub_answers

TIMM, RANDOM = "timm:", "random:"
_CONFIG = "config.json"
_USUAL_SIZE = 224
_SIZES = {
    "embed_dim": "width",
    "depth": "layers",
    "num_heads": "heads",
    "patch_size": "patch",
    "mlp_ratio": "mlp_ratio",
    "init_values": "layer_scale",
}
"""timm's names of what a recipe says of an architecture."""


def open_tower(named: str, image_size: int = 0, seed: int = 0) -> TimmTower:
    """The tower that MODEL names.

    Args:
        named: A saved model's folder or URI, a run's folder, a released model as `cornerstone.load` opens it
            (`open_clip:NAME/TAG`, `hf:NAME`, a folder), a folder in timm's layout, `timm:NAME` for timm's pretrained weights,
            `random:NAME` for timm's architecture with random weights.
        image_size: The side of the images in pixels; 0: as the tower was trained.
        seed: Draws random weights.

    Raises CornerstoneError if there is no tower of that name, if patches do not fill images of `image_size`, or if a saved
    tower was trained at another size.
    """
    scheme = next((s for s in (TIMM, RANDOM) if named.startswith(s)), "")
    if scheme or _is_timm_folder(named):
        tower = _of_timm(named.removeprefix(scheme), scheme != RANDOM, image_size, seed)
    else:
        tower = _of_model(named)
    if image_size and image_size != tower.size:
        raise CornerstoneError(
            f"The tower of {named} sees {tower.size} pixels, but --image-size {image_size} was given: its positions are learnt "
            f"for one size. Leave out --image-size, or give {tower.size}; images of any size are resized to it."
        )
    return _checked(tower, named, new_size=bool(scheme and image_size))


def tower_recipe(named: str, image_size: int = 0) -> ImageTower:
    """The tower that MODEL names (see `open_tower`) as a recipe says it, its weights not yet loaded.

    Raises CornerstoneError if a saved tower was trained at another size.
    """
    if _is_released(named):
        place = _copied(named)
        return _checked_size(_timm_recipe(place.uri, True, 0), named, image_size)
    place, described = _saved(named)
    if described is None:
        scheme = next((s for s in (TIMM, RANDOM) if named.startswith(s)), "")
        return _timm_recipe(named.removeprefix(scheme), scheme != RANDOM, image_size)
    return _checked_size(ImageTower(place.uri, size=described["size"], pooling="none"), named, image_size)


def _checked_size(tower: ImageTower, named: str, image_size: int) -> ImageTower:
    if image_size not in (0, tower.size):
        raise CornerstoneError(
            f"The tower of {named} sees {tower.size} pixels, but --image-size {image_size} was given: leave it out."
        )
    return tower


def architecture_of(tower: ImageTower) -> ImageTower:
    """The same architecture with random weights, as a recipe says it without the folder that the tower is loaded from."""
    _, described = _saved(tower.name)
    if described is not None:
        arguments, name = described["arguments"], described["arguments"]["model_name"]
    elif _is_timm_folder(tower.name):
        folder = json.loads(Location.of(tower.name).join("config.json").read_text())
        arguments, name = folder.get("model_args") or {}, folder["architecture"]
    else:
        return from_scratch_like(tower)
    sizes = {field: arguments[known] for known, field in _SIZES.items() if known in arguments}
    return ImageTower(name, False, locked=False, size=tower.size, pooling="none", **sizes)


def patch_count(tower: TimmTower) -> int:
    """Patches of an image."""
    patch: Any = tower.model.patch_embed
    return (tower.size // int(patch.patch_size[0])) * (tower.size // int(patch.patch_size[1]))


def random_like(tower: TimmTower, seed: int) -> TimmTower:
    """The same architecture with weights drawn from `seed`."""
    return TimmTower.rebuilt(tower.described(), seed)


def _of_model(named: str) -> TimmTower:
    from cornerstone.inference.load import load
    from cornerstone.inference.released.image_towers import image_tower_of

    return image_tower_of(load(named))


def _copied(named: str) -> Location:
    """The tower of a released model in timm's layout under the home, from where the workers of a run load it."""
    from timm.models import save_for_hf

    tower = _of_model(named)
    kept = home().join("towers", state_hash(tower))
    if not kept.join(_CONFIG).exists():
        arguments = {
            name: value for name, value in tower.arguments.items() if name not in ("model_name", "num_classes")
        }
        seen = {"input_size": (3, tower.size, tower.size), "mean": tower.mean, "std": tower.std}
        with tempfile.TemporaryDirectory() as folder:
            described = {"model_args": arguments, "pretrained_cfg": seen}
            save_for_hf(tower.model, folder, model_config=described, safe_serialization=True)
            for name in ("model.safetensors", _CONFIG):  # config.json last: the tower counts as missing until it exists
                kept.join(name).write_bytes((Path(folder) / name).read_bytes())
    return kept


def _is_released(named: str) -> bool:
    """Whether it is a released model's name, or a folder in its library's layout."""
    from cornerstone.inference.load import HUGGING_FACE, OPEN_CLIP, OPEN_CLIP_CONFIG

    if named.startswith((OPEN_CLIP, HUGGING_FACE)):
        return True
    folder = Location.of(named)
    config = folder.join(_CONFIG)
    return folder.join(OPEN_CLIP_CONFIG).exists() or (
        config.exists() and "model_type" in json.loads(config.read_text())
    )


def _of_timm(name: str, pretrained: bool, image_size: int, seed: int) -> TimmTower:
    if pretrained and not Location.of(name).exists():
        hub_answers()  # timm's client would retry for a minute
    return build_image_tower(_timm_recipe(name, pretrained, image_size), seed)


def _timm_recipe(name: str, pretrained: bool, image_size: int) -> ImageTower:
    import timm

    place = Location.of(name)
    folder = place.exists()
    known: Any = _folder_cfg(place) if folder else getattr(timm.models.get_pretrained_cfg(name), "input_size", None)
    size = image_size or (known[-1] if known else _USUAL_SIZE)
    return ImageTower(place.uri if folder else name, pretrained, locked=False, size=size, pooling="none")


def _saved(named: str) -> tuple[Location, dict[str, Any] | None]:
    """The folder `model` that a name stands for, and what it says of its image tower; None if it is no saved model.

    Raises CornerstoneError if the model was saved without an image tower.
    """
    given = Location.of(named)
    place = next((one for one in (given, given.join("model")) if one.join("config.json").exists()), given)
    if not place.join("config.json").exists():
        return place, None
    described = json.loads(place.join("config.json").read_text())
    if "method" not in described:  # a folder in timm's layout
        return place, None
    if described.get("image_tower") is None:
        raise CornerstoneError(f"The model {named} was saved without an image tower: transfer needs one.")
    return place, described["image_tower"]


def _is_timm_folder(named: str) -> bool:
    place = Location.of(named).join("config.json")
    return place.exists() and "architecture" in json.loads(place.read_text())


def _folder_cfg(place: Location) -> Any:
    described = json.loads(place.join("config.json").read_text())
    return described.get("pretrained_cfg", {}).get("input_size") or described.get("input_size")


def _checked(tower: TimmTower, named: str, new_size: bool) -> TimmTower:
    """A tower that was trained with an edge that no patch covers is used as it was trained."""
    patch = getattr(getattr(tower.model, "patch_embed", None), "patch_size", None)
    if patch is None:
        raise CornerstoneError(f"The tower of {named} has no patches to pool: name a vision transformer.")
    if new_size and any(tower.size % side for side in patch):
        raise CornerstoneError(
            f"Images of {tower.size} pixels cannot be cut into patches of {patch[0]} ({named}): give --image-size "
            f"{tower.size // patch[0] * patch[0] or patch[0]}."
        )
    return tower
