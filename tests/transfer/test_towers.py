"""The towers that MODEL names, as recipes say them: weights by folder, architectures without any folder."""

from __future__ import annotations

import pytest
import torch

from cornerstone.errors import CornerstoneError
from cornerstone.inference.saved_model import save_model
from cornerstone.models.classifier import Classifier
from cornerstone.models.image_tower import build_image_tower
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
