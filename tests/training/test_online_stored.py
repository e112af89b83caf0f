"""Training from stored features is training with the locked tower online, where the crop is fixed."""

from __future__ import annotations

import pytest
import torch

from cornerstone.data.features import FeatureKeys, check_store
from cornerstone.data.layout import Layout
from cornerstone.data.manifest import Manifest
from cornerstone.data.stream import Stream
from cornerstone.errors import CornerstoneError
from cornerstone.recipes import Data, ImageTower, LotlipConfig, Optimization, Recipe, TextTower
from cornerstone.training.build import build_method, build_tower
from cornerstone.training.engine import PlainEngine
from cornerstone.training.prepare import describe_tower, prepare

STEPS = 8


@pytest.fixture(scope="module")
def recipe(shards) -> Recipe:
    return Recipe(
        "online",
        LotlipConfig(
            image=ImageTower(name=shards.tower, size=32),
            text=TextTower(name="", width=32, layers=1, heads=2, token_limit=24),
        ),
        Data(train=shards.train, crop_scale=(1.0, 1.0)),
        Optimization(steps=STEPS, batch_size=16, learning_rate=1e-2, warmup_steps=2),
    )


def losses(prepared) -> torch.Tensor:
    engine = PlainEngine(build_method(prepared, build_tower(prepared)), prepared.recipe.optimization)
    stream = Stream.local(Layout(prepared.stream(), 1), 0, 0)
    parts = [engine.step(stream.training(step), 1e-2) for step in range(STEPS)]
    return torch.tensor([[part["raw"], part["long"]] for part in parts])


def bad(prepared) -> list:
    stream = Stream.local(Layout(prepared.stream(), 1), 0, 0)
    return [stream.training(step).bad for step in range(STEPS)]


@pytest.mark.timeout(240)
def test_online_and_stored_give_the_same_losses(ray_cluster, recipe):
    online = prepare(recipe)
    stored = prepare(recipe.with_data(features="stored", feature_dtype="float32"))
    assert (online.features, build_tower(stored)) == ((), None)
    assert Manifest.read(stored.features, "features").rows == 100
    wanted = losses(online)
    torch.testing.assert_close(losses(stored), wanted, rtol=0, atol=1e-5)
    assert bad(stored) == bad(online)
    assert sum(map(len, bad(online))) >= 4  # of the 128 rows of an epoch and a quarter

    # the comparison can fail: other pictures are seen in it, and what fp16 costs
    cropped = losses(prepare(recipe.with_data(crop_scale=(0.2, 0.3))))
    assert (cropped - wanted).abs().max() > 1e-3
    coarse = prepare(recipe.with_data(features="stored"))
    assert 1e-5 < (losses(coarse) - wanted).abs().max() < 1e-1
    with pytest.raises(CornerstoneError, match="the numbers' type"):
        check_store(coarse.features, FeatureKeys(**Manifest.read(stored.features, "features").keys))

    told = []
    assert prepare(stored.given, told.append).features == stored.features
    assert told == []  # found again, not computed again


def test_two_towers_drawn_at_random_share_no_store():
    def drawn(name: str) -> str:
        return describe_tower(ImageTower(name=name, pretrained=False, size=32))[1]

    assert drawn("test_vit.r160_in1k") != drawn("vit_tiny_patch16_224")
