"""The image tower of a transfer: of a saved model of any method, of timm, or with random weights."""

from __future__ import annotations

import json
from typing import Any

from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError
from cornerstone.models.image_tower import TimmTower, build_image_tower
from cornerstone.recipes.towers import ImageTower

TIMM, RANDOM = "timm:", "random:"
_USUAL_SIZE = 224


def open_tower(named: str, image_size: int = 0, seed: int = 0) -> TimmTower:
    """The tower that MODEL names.

    Args:
        named: A saved model's folder or URI, a run's folder, a folder in timm's layout, `timm:NAME` for timm's pretrained
            weights, `random:NAME` for timm's architecture with random weights.
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


def random_like(tower: TimmTower, seed: int) -> TimmTower:
    """The same architecture with weights drawn from `seed`."""
    return TimmTower.rebuilt(tower.described(), seed)


def _of_model(named: str) -> TimmTower:
    from cornerstone.inference.saved_model import load

    model = load(named)
    tower = model.module.image_tower
    if tower is None:
        raise CornerstoneError(
            f"The model {named} was saved without an image tower (its method is {model.module.config.kind!r}): transfer needs "
            f"one. Name the folder `model` of a run, or timm:NAME."
        )
    return tower


def _of_timm(name: str, pretrained: bool, image_size: int, seed: int) -> TimmTower:
    import timm

    from cornerstone.runtime.hub import hub_answers

    place = Location.of(name)
    folder = place.exists()
    if pretrained and not folder:
        hub_answers()  # timm's client would retry for a minute
    known: Any = _folder_cfg(place) if folder else getattr(timm.models.get_pretrained_cfg(name), "input_size", None)
    size = image_size or (known[-1] if known else _USUAL_SIZE)
    config = ImageTower(place.uri if folder else name, pretrained, locked=False, size=size, pooling="none")
    return build_image_tower(config, seed)


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
