"""A saved model from stored features: no image is read, and features of other rows or another tower are refused."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from cornerstone.data.images import Transform
from cornerstone.data.manifest import Manifest
from cornerstone.data.pairs.feature_store import FeatureKeys, feature_schema
from cornerstone.data.pairs.image_input import DecodedImages
from cornerstone.data.shards import DataSet, Reader, write_row_groups
from cornerstone.data.storage import Location
from cornerstone.data.texts import SentenceFormat
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.judged import metrics_of
from cornerstone.evaluation.offline import evaluate_model, overlaps, stores_in_home, texts_cut
from cornerstone.evaluation.sets import open_sets
from cornerstone.inference.saved_model import load, save_model
from cornerstone.models.image_tower import build_image_tower, state_hash
from cornerstone.models.lotlip import Lotlip
from cornerstone.models.method import Inputs
from cornerstone.recipes import CornerText, ImageTower, LotlipConfig


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_tower, wordpiece):
    """A model with a locked tower, whose recipe says that it was trained on stored features."""
    config = LotlipConfig(
        image=ImageTower(tiny_tower, pretrained=True, size=32),
        text=CornerText(name="", width=16, layers=1, heads=2, token_limit=32),
    )
    tower = build_image_tower(config.image)
    text = wordpiece.read_text()
    method = Lotlip.build(config, Inputs(SentenceFormat(text, 30).vocab_size, tower.width, tower), seed=0)
    folder = str(tmp_path_factory.mktemp("model"))
    recipe = {"data": {"features": "stored", "feature_dtype": "float16"}}
    save_model(folder, method, recipe=recipe, tokenizer_json=text, image_tower=tower)
    return load(folder)


def write_store(folder, pairs_folder, tower, dtype="float16"):
    """The features of all rows in the layout of `cornerstone features`."""
    data, place, transform = DataSet.open(pairs_folder), Location.of(folder), Transform(32, train=False)
    reader, shards, number = Reader(data, ["image"]), [], 0
    for shard in data.manifest.shards:
        groups = []
        for _ in shard.row_groups:
            images = [transform(image) for image in reader.group(number)["image"].to_pylist()]
            with torch.no_grad():
                vectors = tower(torch.from_numpy(np.stack(images))).pooled.numpy().astype(dtype)
            columns = [pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), tower.width)]
            columns.append(pa.array([""] * len(images)))
            groups.append(pa.Table.from_arrays(columns, schema=feature_schema(tower.width, dtype)))
            number += 1
        shards.append(write_row_groups(place, shard.file, groups))
    keys = FeatureKeys(data.manifest.content_hash, state_hash(tower), transform.key(), dtype)
    Manifest("features", "pairs", tuple(shards), source={"width": tower.width}, keys=asdict(keys)).write(place)
    return keys


def test_stored_features_give_the_numbers_of_the_images(saved, pairs_folder, tmp_path, monkeypatch):
    sets = open_sets([pairs_folder])
    online = metrics_of(evaluate_model(saved, sets))
    write_store(tmp_path, pairs_folder, saved.module.image_tower, "float32")
    monkeypatch.setattr(DecodedImages, "open", lambda self: pytest.fail("no image is read"))
    assert metrics_of(evaluate_model(saved, sets, features=[str(tmp_path)])) == online


def test_features_of_other_rows_or_another_tower_are_refused(saved, pairs_folder, tmp_path):
    sets = open_sets([pairs_folder])
    tower = saved.module.image_tower
    keys = write_store(tmp_path, pairs_folder, tower)
    manifest = Manifest.read(tmp_path, "features")
    for changed, said in (({"data": "x"}, "None of the features given is of the rows"), ({"tower": "x"}, "weights")):
        replace(manifest, keys=asdict(replace(keys, **changed))).write(Location.of(tmp_path))
        with pytest.raises(CornerstoneError, match=said):
            evaluate_model(saved, sets, features=[str(tmp_path)])


def test_the_features_of_the_models_own_run_are_found_in_the_home(saved, pairs_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("CORNERSTONE_HOME", str(tmp_path))
    sets = open_sets([pairs_folder])
    assert stores_in_home(saved, sets) == []
    keys = write_store(tmp_path / "elsewhere", pairs_folder, saved.module.image_tower)
    folder = tmp_path / "features" / keys.digest()
    folder.parent.mkdir()
    (tmp_path / "elsewhere").rename(folder)
    assert stores_in_home(saved, sets) == [str(folder)]
    monkeypatch.setitem(saved.recipe, "data", {"features": "online"})
    assert stores_in_home(saved, sets) == []


def test_a_set_that_the_model_was_trained_on_is_named(saved, pairs_folder, small_data, tmp_path):
    """By the saved hash, and row by row where the training data still are."""
    sets = open_sets([pairs_folder])
    assert overlaps(saved, sets) == []
    text, content = saved.tokenizer_json, {"data": sets[0].content_hash}
    save_model(str(tmp_path / "a"), saved.module, recipe={}, tokenizer_json=text, content=content)
    (said,) = overlaps(load(str(tmp_path / "a")), sets)
    assert "50 of 50 images of pairs are in the training data (it is the training data)" in said
    train = small_data.write(tmp_path / "train", map(small_data.pair, range(45, 60)))
    recipe, content = {"data": {"train": train, "limit_rows": 3}}, {"data": DataSet.open(train).manifest.content_hash}
    save_model(str(tmp_path / "b"), saved.module, recipe=recipe, tokenizer_json=text, content=content)
    (said,) = overlaps(load(str(tmp_path / "b")), sets)
    assert "3 of 50 images of pairs are in the training data (by name or content)" in said
    save_model(str(tmp_path / "c"), saved.module, recipe=recipe, tokenizer_json=text, content={"data": "other rows"})
    assert overlaps(load(str(tmp_path / "c")), sets) == []


def test_texts_that_are_longer_than_the_model_reads_are_counted(saved, pairs_folder, monkeypatch):
    sets = open_sets([pairs_folder])
    lengths = [len(ids) for ids in saved.text_format.encode_uncut([[f"raw {i}"] for i in range(50)])]
    assert texts_cut(saved, sets)["pairs-short"] == (0, 50)
    monkeypatch.setattr(saved.text_format, "max_tokens", min(lengths))
    expected = sum(length > min(lengths) for length in lengths)
    assert texts_cut(saved, sets)["pairs-short"] == (expected, 50)
    assert 0 < expected < 50
