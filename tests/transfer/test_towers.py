"""The towers that MODEL names, as recipes say them: weights by folder, architectures without any folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_released
import torch
from pyarrow import fs
from transformers import CLIPModel, SiglipModel

import cornerstone
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError
from cornerstone.inference.saved_model import save_model
from cornerstone.models.classifier import Classifier
from cornerstone.models.image_tower import TimmTower, build_image_tower
from cornerstone.models.method import Inputs
from cornerstone.recipes import ImageTower
from cornerstone.recipes.classifier import ClassifierConfig
from cornerstone.transfer.towers import architecture_of, open_tower, tower_recipe

SMALL = ImageTower(
    "vit_base_patch16_224", False, False, 32, "none", width=32, layers=1, heads=2, patch=8, layer_scale=0.1
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with a saved model."""
    folder, tower = tmp_path_factory.mktemp("run"), build_image_tower(SMALL, seed=3)
    module = Classifier.build(ClassifierConfig(3, frozen=False), Inputs(0, tower.width, tower), 0)
    save_model(folder / "model", module, recipe={}, tokenizer_json="")
    return str(folder)


@pytest.mark.parametrize("named", ["{run}", "{run}/model", "{tower}", "random:vit_tiny_patch16_224"])
def test_a_named_tower_is_the_one_that_the_recipe_builds(named, run, tiny_tower):
    named = named.format(run=run, tower=tiny_tower)
    size = 32 if named.startswith("random:") else 0
    recipe, tower = tower_recipe(named, size), open_tower(named, size)
    built = build_image_tower(recipe, seed=0)
    assert built.size == tower.size == 32
    assert built.state_dict().keys() == tower.state_dict().keys()
    assert all(torch.equal(value, tower.state_dict()[name]) for name, value in built.state_dict().items())
    architecture = architecture_of(recipe)
    assert not architecture.pretrained
    assert "/" not in architecture.name
    random = build_image_tower(architecture, seed=1)
    shapes = {name: value.shape for name, value in tower.state_dict().items()}
    assert {name: value.shape for name, value in random.state_dict().items()} == shapes
    assert not torch.equal(random.model.pos_embed, tower.model.pos_embed)


def test_a_saved_tower_has_one_size(run):
    with pytest.raises(CornerstoneError, match=r"sees 32 pixels, but --image-size 64 was given"):
        tower_recipe(run, 64)


def released(family: str, folder: Path) -> str:
    if family == "clip":
        return tiny_released.clip(folder)
    if family == "siglip":
        return tiny_released.siglip(folder, tiny_released.t5_like())
    quick = {"model": {"quick_gelu": True}, "mean": [0.3] * 3, "std": [0.2] * 3}
    return tiny_released.open_clip_folder(folder, {}, **quick)


@torch.no_grad()
def patches(family: str, folder: str, images: torch.Tensor) -> torch.Tensor:
    """Behind the last norm, as the library that releases the model computes them."""
    if family == "clip":
        tower = CLIPModel.from_pretrained(folder).vision_model
        return tower.post_layernorm(tower(pixel_values=images).last_hidden_state[:, 1:])
    if family == "siglip":
        return SiglipModel.from_pretrained(folder).vision_model(pixel_values=images).last_hidden_state
    tower = cornerstone.load(folder).module.model.visual
    return tower.ln_post(tower.transformer(tower._embeds(images))[:, 1:])


@pytest.mark.parametrize("prefix", ["", "hf:"])
@pytest.mark.parametrize("family", ["clip", "siglip", "open_clip"])
def test_a_released_tower_is_that_of_its_library(family, prefix, tmp_path, monkeypatch):
    monkeypatch.setenv("CORNERSTONE_HOME", str(tmp_path / "home"))
    folder = released(family, tmp_path / family)
    images = torch.randn(3, 3, 32, 32)
    expected, tower = patches(family, folder, images), open_tower(prefix + folder)
    with torch.no_grad():
        torch.testing.assert_close(tower.eval()(images).patches, expected, rtol=0, atol=1e-5)
    assert (tower.mean, tower.std) == cornerstone.load(folder).mean_std
    recipe = tower_recipe(prefix + folder)  # a copy that workers can open
    assert recipe.name.startswith(str(tmp_path / "home"))
    built = build_image_tower(recipe)
    assert (built.mean, built.std, built.size) == (tower.mean, tower.std, 32)
    with torch.no_grad():
        torch.testing.assert_close(built.eval()(images).patches, expected, rtol=0, atol=1e-5)
    random = build_image_tower(architecture_of(recipe), seed=1).state_dict()
    shapes = {name: value.shape for name, value in random.items()}
    assert shapes == {name: value.shape for name, value in tower.state_dict().items()}
    with pytest.raises(CornerstoneError, match="sees 32 pixels, but --image-size 64 was given"):
        tower_recipe(prefix + folder, 64)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """s3://bucket, whose files stand in a folder that no library can guess."""
    root, local = tmp_path / "objects", Location.resolve
    root.mkdir()

    def resolve(place: Location):
        if not place.uri.startswith("s3://bucket"):
            return local(place)
        return fs.SubTreeFileSystem(str(root), fs.LocalFileSystem()), place.uri.removeprefix("s3://bucket").lstrip("/")

    monkeypatch.setattr(Location, "resolve", resolve)
    return "s3://bucket"


def test_a_released_tower_is_kept_in_an_object_store(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("CORNERSTONE_HOME", f"{bucket}/home")
    folder = released("clip", tmp_path / "clip")
    recipe, tower = tower_recipe(folder), open_tower(folder)
    assert recipe.name.startswith(f"{bucket}/home/towers/")
    built = build_image_tower(recipe)
    assert built.state_dict().keys() == tower.state_dict().keys()
    assert all(torch.equal(value, tower.state_dict()[name]) for name, value in built.state_dict().items())
    assert (built.mean, built.std) == (tower.mean, tower.std)
    again = TimmTower.rebuilt(built.described())  # where there is no such folder
    assert again.state_dict().keys() == built.state_dict().keys()
    random = build_image_tower(architecture_of(recipe), seed=1).state_dict()
    assert {n: x.shape for n, x in random.items()} == {n: x.shape for n, x in tower.state_dict().items()}
    Location.of(recipe.name).join("model.safetensors").remove()
    with pytest.raises(
        CornerstoneError, match=r"The image tower s3://bucket/home/towers/\w+ has no model\.safetensors"
    ):
        build_image_tower(recipe)


@pytest.mark.parametrize("family", ["align", "naflex"])
def test_a_tower_without_a_grid_of_patches_is_refused(family, tmp_path):
    folder = (
        tiny_released.align(tmp_path)
        if family == "align"
        else tiny_released.naflex(tmp_path, tiny_released.gemma_like())
    )
    with pytest.raises(CornerstoneError, match=r"gives no patches of a fixed grid.*NaFlex"):
        open_tower(f"hf:{folder}")


def test_another_norm_than_the_released_models_is_refused(tmp_path):
    folder = Path(tiny_released.clip(tmp_path))
    described = json.loads((folder / "config.json").read_text())
    described["vision_config"]["layer_norm_eps"] = 1e-3
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(CornerstoneError, match=r"epsilon 0\.001 are not those of released models"):
        open_tower(str(folder))
