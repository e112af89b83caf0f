"""Training from stored features is training with the locked tower online, where the crop is fixed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cornerstone.data.images import Transform
from cornerstone.data.layout import Layout
from cornerstone.data.manifest import Manifest
from cornerstone.data.mixture import write_mixture
from cornerstone.data.pairs.feature_store import FeatureKeys, check_store
from cornerstone.data.shards import DataSet
from cornerstone.data.storage import Location
from cornerstone.data.stream import Stream
from cornerstone.errors import CornerstoneError
from cornerstone.jobs.features import FeatureJob, _Work, _write_shards, write_features
from cornerstone.recipes import CornerText, ImageTower, LotlipConfig, Optimization, PairData, Recipe
from cornerstone.training.build import build_method, build_tower
from cornerstone.training.engine import PlainEngine
from cornerstone.training.prepare import prepare
from cornerstone.training.shared import describe_tower

STEPS = 8


@pytest.fixture(scope="module")
def recipe(shards) -> Recipe:
    return Recipe(
        "online",
        LotlipConfig(
            image=ImageTower(name=shards.tower, size=32),
            text=CornerText(name="", width=32, layers=1, heads=2, token_limit=24),
        ),
        PairData(train=shards.train, crop_scale=(1.0, 1.0)),
        Optimization(steps=STEPS, batch_size=16, learning_rate=1e-2, warmup_steps=2),
    )


def losses(prepared) -> torch.Tensor:
    engine = PlainEngine(build_method(prepared, build_tower(prepared)), prepared.recipe.optimization)
    stream = Stream.local(Layout(prepared.stream(), 1), 0, 0)
    parts = [engine.step(stream.batch(step), 1e-2).parts for step in range(STEPS)]
    return torch.tensor([[part["raw"], part["long"]] for part in parts])


def bad(prepared) -> list:
    stream = Stream.local(Layout(prepared.stream(), 1), 0, 0)
    return [stream.batch(step).bad for step in range(STEPS)]


@pytest.mark.timeout(240)
def test_online_and_stored_give_the_same_losses(ray_cluster, recipe):
    online = prepare(recipe)
    stored = prepare(recipe.with_data(features="stored", feature_dtype="float32"))
    assert (online.stored_features, build_tower(stored)) == (False, None)
    (store,) = stored.train.images.stores
    assert Manifest.read(store, "features").rows == 100
    wanted = losses(online)
    torch.testing.assert_close(losses(stored), wanted, rtol=0, atol=1e-5)
    assert bad(stored) == bad(online)
    assert sum(map(len, bad(online))) >= 4  # of the 128 rows of an epoch and a quarter

    # the comparison can fail: other pictures are seen in it, and what fp16 costs
    cropped = losses(prepare(recipe.with_data(crop_scale=(0.2, 0.3))))
    assert (cropped - wanted).abs().max() > 1e-3
    coarse = prepare(recipe.with_data(features="stored"))
    assert 1e-5 < (losses(coarse) - wanted).abs().max() < 1e-3
    with pytest.raises(CornerstoneError, match="the numbers' type"):
        check_store(coarse.train.images.stores[0], FeatureKeys(**Manifest.read(store, "features").keys))

    told = []
    again = prepare(recipe.with_data(features="stored", feature_dtype="float32"), told.append)
    assert again.train.images.stores == (store,)
    assert told == []  # found again, not computed again


@pytest.mark.timeout(240)
def test_a_mixture_is_trained_on_with_a_store_for_each_of_its_data_sets(
    ray_cluster, recipe, shards, tmp_path, small_data
):
    other = small_data.write(tmp_path / "other", [small_data.pair(i) for i in range(300, 330)])
    write_mixture(tmp_path / "both", [(shards.train, "1"), (other, "2")])
    mixed = recipe.with_data(train=str(tmp_path / "both"), tokenizer=shards.train)
    online = prepare(mixed)
    stored = prepare(mixed.with_data(features="stored", feature_dtype="float32"))
    assert len(stored.train.images.stores) == 2
    assert [Manifest.read(store).rows for store in stored.train.images.stores] == [100, 30]
    torch.testing.assert_close(losses(stored), losses(online), rtol=0, atol=1e-5)
    rows = [row for step in range(STEPS) for row in online.stream().plan.batch(step)[0].tolist()]
    assert online.rows == 160
    assert abs(sum(row >= 100 for row in rows) - STEPS * 16 * 60 / 160) <= 1
    assert online.passes() == "0 epochs, and 128 rows of the first one's 160"


def test_an_interrupted_store_goes_on_after_its_finished_shards(ray_cluster, shards, tmp_path):
    data, config, transform = (
        DataSet.open(shards.train),
        ImageTower(name=shards.tower, size=32),
        Transform(32, train=False),
    )
    keys = FeatureKeys(data.manifest.content_hash, describe_tower(config)[1], transform.key(), "float16")
    whole, cut = (FeatureJob(data, Location.of(tmp_path / name).make(), keys) for name in ("whole", "cut"))
    write_features([whole], config, transform, width=32)

    _write_shards(_Work((cut,), config, transform), [(0, 0), (0, 3)], 32, 1, 0.0, None)
    assert cut.waiting() == [1, 2, 4, 5, 6]
    with pytest.raises(CornerstoneError, match="is unfinished"):
        check_store(cut.out, keys)
    assert replace(cut, keys=replace(keys, tower="another")).waiting() == list(range(7))
    files = [tmp_path / "cut" / data.manifest.shards[index].file for index in (0, 3)]
    before = [file.stat().st_mtime_ns for file in files]
    files[1].write_bytes(b"cut off")
    assert cut.waiting() == [1, 2, 3, 4, 5, 6]

    write_features([cut], config, transform, width=32)
    assert files[0].stat().st_mtime_ns == before[0]
    assert check_store(cut.out, keys).manifest.shards == check_store(whole.out, keys).manifest.shards
    assert not list((tmp_path / "cut").glob("*.done.json"))


def test_two_towers_drawn_at_random_share_no_store():
    def drawn(name: str) -> str:
        return describe_tower(ImageTower(name=name, pretrained=False, size=32))[1]

    assert drawn("test_vit.r160_in1k") != drawn("vit_tiny_patch16_224")
