from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from cornerstone.data.documents.pieces import LOW
from cornerstone.data.layout import Layout
from cornerstone.data.manifest import Manifest
from cornerstone.data.pairs.feature_store import FeatureKeys, feature_schema
from cornerstone.data.pairs.views import Wanted
from cornerstone.data.shards import DataSet, write_row_groups
from cornerstone.data.storage import Location
from cornerstone.data.stream import Stream
from cornerstone.data.texts import plain_tokenizer, vocabulary_size
from cornerstone.errors import CornerstoneError
from cornerstone.jobs.built_in_scenes import BuiltInScenes
from cornerstone.recipes import SceneDocuments, preset
from cornerstone.recipes.lotlip import LotlipConfig, with_sub_captions
from cornerstone.runtime.home import home
from cornerstone.training import prepare as prepare_module
from cornerstone.training import resolve as resolve_module
from cornerstone.training import shared as shared_module
from cornerstone.training.prepare import Preparer, prepare
from cornerstone.training.shared import describe_tower

WIDTH = 64  # of the little tower


def quiet(text):
    pass


def offline(recipe):
    """Prepared as a dry run does it: no features are computed."""
    return Preparer(quiet, compute_features=False).prepare(recipe)


@pytest.fixture
def recipe(pairs_folder):
    """A recipe on the small pairs: a little tower from scratch, 4 steps of 8."""
    recipe = preset("photos").with_image(size=32).with_text(width=16, layers=1, heads=2, token_limit=32)
    recipe = recipe.with_optimization(batch_size=8, steps=4, warmup_steps=0)
    return recipe.with_data(train=pairs_folder, tokenizer="")


def test_every_name_becomes_something_that_opens_anywhere(recipe, pairs_folder, wordpiece, monkeypatch):
    monkeypatch.chdir(Path(pairs_folder).parent)
    relative = recipe.with_data(train="pairs").with_evaluation(sets=("dci=pairs", "pairs"), best="eval/dci/i2t_r1")
    prepared = prepare(relative, quiet)
    assert prepared.recipe.data.train == pairs_folder
    assert prepared.recipe.evaluation.sets == (f"dci={pairs_folder}", pairs_folder)
    assert prepared.tokenizer == wordpiece.read_text()
    assert prepared.vocab_size == prepared.train.texts.open().vocab_size
    assert prepared.image_width == WIDTH
    assert prepared.rows == 50
    assert [s.name for s in prepared.sets] == ["dci", "dci-short", "dci", "pairs", "pairs-short", "pairs"]
    assert prepared.described() == {
        "name": "pairs",
        "digest": Manifest.read(pairs_folder).content_hash,
        "uri": pairs_folder,
        "rows": 50,
    }


def test_what_is_prepared_streams(recipe):
    spec = prepare(recipe.with_evaluation(sets=(recipe.data.train,), every=2), quiet).stream()
    assert (spec.steps, spec.every, spec.plan.batch_size, spec.plan.seed) == (4, 2, 8, 0)
    assert spec.evaluations[0].view == (Wanted("long"),)
    batch = Stream.local(Layout(spec, 1), 0, 0).batch(0)
    assert batch.image.shape == (8, 3, 32, 32)
    assert batch.valid.all()


def test_the_hash_is_that_of_content_not_of_places(recipe, pairs_folder, tmp_path):
    prepared = prepare(recipe, quiet)
    copy = shutil.copytree(pairs_folder, tmp_path / "copy")
    moved = prepare(recipe.with_data(train=str(copy), tokenizer=str(copy)).with_seed(3), quiet)
    assert moved.recipe_hash == prepared.recipe_hash
    (copy / "tokenizer.json").write_text(prepared.tokenizer.replace('"five"', '"six"') + " ")
    assert prepare(recipe.with_data(train=str(copy)), quiet).recipe_hash != prepared.recipe_hash
    assert prepare(recipe.with_text(corner_tokens=0), quiet).recipe_hash != prepared.recipe_hash


def bert_folder(folder, wordpiece, seed=0, heads=2, safe=True):
    """A small BERT as people save it, with its weights in safetensors or as pytorch_model.bin."""
    import cornerstone.models  # noqa: F401, I001 - repairs torchvision before transformers is imported
    from transformers import BertConfig, BertModel

    vocab = vocabulary_size(plain_tokenizer(wordpiece.read_text()))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": heads, "intermediate_size": 32}
    torch.manual_seed(seed)
    bert = BertModel(BertConfig(vocab_size=vocab, max_position_embeddings=64, **sizes))
    bert.save_pretrained(folder)
    if not safe:
        (folder / "model.safetensors").unlink()
        torch.save(bert.state_dict(), folder / "pytorch_model.bin")
    return str(folder)


def test_a_text_tower_is_its_weights_however_they_are_saved(recipe, wordpiece, tmp_path):
    def hash_of(name, **how):
        folder = bert_folder(tmp_path / name, wordpiece, **how)
        return prepare(recipe.with_text(name=folder), quiet).recipe_hash

    one = hash_of("one")
    assert hash_of("copy") == hash_of("bin", safe=False) == one
    assert len({one, hash_of("other", seed=1, safe=False), hash_of("heads", heads=4)}) == 3


def test_a_method_that_is_no_dual_encoder_has_no_evaluation_sets(recipe, monkeypatch):
    monkeypatch.setattr(LotlipConfig, "implementation", "cornerstone.models.method:Method")
    assert prepare(recipe, quiet).sets == ()
    with pytest.raises(CornerstoneError, match=r"'lotlip' is no dual encoder, .*: leave out --eval"):
        prepare(recipe.with_evaluation(sets=(recipe.data.train,)), quiet)


def test_other_rows_are_another_experiment(recipe, tmp_path, small_data, wordpiece):
    folders = []
    for name, first in (("one", 0), ("two", 0), ("three", 1)):
        folders.append(small_data.write(tmp_path / name, map(small_data.pair, range(first, first + 20))))
        shutil.copy(wordpiece, folders[-1])
    one, two, three = (prepare(recipe.with_data(train=folder), quiet).recipe_hash for folder in folders)
    assert one == two
    assert one != three


def test_sets_of_pairs_are_evaluated_at_other_token_limits_too(recipe, pairs_folder):
    recipe = recipe.with_evaluation(sets=(f"dci={pairs_folder}", f"val={pairs_folder}"), best="eval/val/i2t_r1")
    before = offline(recipe)
    prepared = offline(recipe.with_evaluation(token_limits=(8, 512)))
    names = ["dci", "dci-short", "dci", "val", "val-short", "val"]
    limited = [f"{name}@{limit}" for name in (*names[:3], "val-short") for limit in (8, 512)]  # `val` chooses
    assert [one.name for one in prepared.sets] == [*names, *limited]
    assert prepared.recipe_hash == before.recipe_hash
    assert prepared.eval_hash != before.eval_hash
    assert {one.texts.max_tokens for one in prepared.evaluations[:6]} == {30}
    assert [one.texts.max_tokens for one in prepared.evaluations[6:8]] == [6, 510]  # two corner tokens
    long = np.arange(2)
    opened = (prepared.evaluations[0], *prepared.evaluations[6:8])
    texts = [one.open().take(long, long)["texts"].to_pylist() for one in opened]
    whole, cut, uncut = (max(len(ids) for row in found for ids in row) for found in texts)
    assert cut <= 6 < whole == uncut


@pytest.mark.parametrize(("limit", "message"), [(4, "leaves no room"), (513, "above the 512 positions")])
def test_a_token_limit_of_evaluation_that_the_tower_cannot_read_is_refused(recipe, limit, message):
    with pytest.raises(CornerstoneError, match=message):
        offline(recipe.with_evaluation(sets=(recipe.data.train,), token_limits=(8, limit)))


def test_evaluation_sets_have_a_hash_of_their_own(recipe, pairs_folder):
    without, with_sets = prepare(recipe, quiet), prepare(recipe.with_evaluation(sets=(pairs_folder,)), quiet)
    assert without.recipe_hash == with_sets.recipe_hash
    assert without.eval_hash != with_sets.eval_hash


def test_a_limit_is_the_number_of_rows(recipe):
    assert prepare(recipe.with_data(limit_rows=20), quiet).rows == 20
    assert prepare(recipe.with_data(limit_rows=99), quiet).rows == 50


REFUSED = {
    "No data set at": lambda r: r.with_data(train="/nowhere"),
    "No rewrite of a raw caption in .*--recipe.data.no-rewrites": lambda r: r.with_data(rewrites=True),
    "No long caption by 'llava' in .*captioners are a, b, c": lambda r: r.with_data(captioners=("a", "llava")),
    "batch of 51 is larger than the 50 rows .* to 50 or less": lambda r: r.with_optimization(batch_size=51),
    "batch of 8 is larger than the 7 rows": lambda r: r.with_data(limit_rows=7),
    "No tokenizer at .*nowhere.json": lambda r: r.with_data(tokenizer="/nowhere.json"),
    "chosen by 'eval/dci/i2t_r1', which no evaluation set gives: there is none": lambda r: r.with_evaluation(
        best="eval/dci/i2t_r1"
    ),
    "'scenes' takes its image tower from the built-in scenes": lambda r: replace(r, name="scenes").with_image(name=""),
    r"'photos' trains on your own data: name them with --train": lambda r: r.with_data(
        train="", tokenizer="bert-base-uncased"
    ),
    "Cannot load the image tower 'no_such_tower'": lambda r: r.with_image(name="no_such_tower"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_resolved_is_refused_before_anything_starts(recipe, message):
    with pytest.raises(CornerstoneError, match=message):
        prepare(REFUSED[message](recipe), quiet)


def test_shards_without_a_tokenizer_need_one_named(recipe, tmp_path, small_data, wordpiece):
    folder = small_data.write(tmp_path / "bare", map(small_data.pair, range(10)))
    with pytest.raises(CornerstoneError, match=r"keeps none beside its shards. Name one: --tokenizer"):
        prepare(recipe.with_data(train=folder), quiet)
    prepared = prepare(recipe.with_data(train=folder, tokenizer=str(wordpiece.parent)), quiet)
    assert prepared.tokenizer == wordpiece.read_text()


def test_without_train_the_scenes_are_the_data(recipe, pairs_folder, monkeypatch):
    built_in = BuiltInScenes(pairs_folder, (pairs_folder,), "test_vit.r160_in1k")
    asked = []
    monkeypatch.setattr(
        resolve_module, "prepare_scenes", lambda *a, tower, named: asked.append((*a, tower)) or built_in
    )
    prepared = prepare(recipe.with_data(train="").with_image(name=""), quiet)
    assert [(*a[:2], a[-1]) for a in asked] == [(recipe.data.scenes, 32, True)]
    assert prepared.recipe.data.train == pairs_folder
    assert prepared.recipe.method.image.name == "test_vit.r160_in1k"
    assert prepared.recipe.evaluation.sets == (pairs_folder,)
    named = prepare(recipe.with_data(train="").with_evaluation(sets=(f"mine={pairs_folder}",)), quiet)
    assert named.recipe.evaluation.sets == (f"mine={pairs_folder}",)
    assert named.recipe.method.image == recipe.method.image
    assert asked[-1][-1] is False  # a tower that is named needs none to be pretrained


def test_documents_and_their_pairs_are_of_the_same_images(monkeypatch, tmp_path):
    """A tokenizer and the labelled images of the probe too; of the documents a sequence is packed, of the pairs one a row."""
    monkeypatch.setenv("CORNERSTONE_HOME", str(tmp_path))
    small = SceneDocuments(documents=40, validation=20, probe_images=40, mismatch=0.3)
    preparer = Preparer(quiet)
    packed = preparer.prepare(preset("scenes-lcl").with_data(scenes=small).with_optimization(batch_size=2))
    recipe = preset("scenes-coca").with_data(documents=small).with_optimization(batch_size=8)
    paired = preparer.prepare(recipe)
    assert paired.tokenizer == packed.tokenizer
    assert [(s.name, s.task.name) for s in paired.sets] == [("validation", "retrieval"), ("probe", "probe")]
    assert paired.sets[1].folder == packed.sets[1].folder
    counted = packed.data.manifest.source["packed"]
    images = counted["found"]["images"] - counted["left_out"]["images"][LOW]
    assert paired.rows == images
    batch = Stream.local(Layout(paired.stream(), 1), 0, 0).batch(0)
    assert batch.valid.all()
    assert (batch.raw_length > 2).all()
    assert not batch.long_length.any()
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    assert prepare(recipe, quiet).recipe_hash == paired.recipe_hash
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == written


def test_sets_that_do_not_suit_a_method_are_skipped_if_it_is_said(recipe, pairs_folder, monkeypatch):
    monkeypatch.setattr(LotlipConfig, "implementation", "cornerstone.models.method:Method")
    asked = recipe.with_evaluation(sets=(pairs_folder,), skip_unsuited=True)
    assert prepare(asked, quiet).sets == ()
    assert prepare(asked, quiet).recipe_hash == prepare(recipe, quiet).recipe_hash
    with pytest.raises(CornerstoneError, match=r"chosen by 'eval/pairs/i2t_r1', which no evaluation set gives"):
        prepare(asked.with_evaluation(best="eval/pairs/i2t_r1"), quiet)


@pytest.fixture
def stored(recipe):
    """A recipe that wants the features of a locked tower."""
    return recipe.with_image(locked=True).with_data(features="stored", crop_scale=(1.0, 1.0))


def test_a_dry_run_computes_no_features(stored, tmp_path, monkeypatch):
    monkeypatch.setenv("CORNERSTONE_HOME", str(tmp_path))
    prepared = offline(stored)
    assert not prepared.stored_features
    assert list(tmp_path.iterdir()) == []


def write_store(recipe, data, folder=None):
    """Ones as the features of a data set, at `folder` or where a run looks for them."""
    data = DataSet.open(data)
    width, tower_hash = describe_tower(recipe.method.image)
    keys = FeatureKeys(data.manifest.content_hash, tower_hash, "centre-32-bicubic", "float16")
    folder, schema = folder or home().join("features", keys.digest()), feature_schema(width, "float16")
    folder.make()

    def group(rows):
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(rows * width, np.float16)), width)
        return pa.Table.from_arrays([vectors, pa.array([""] * rows)], schema=schema)

    shards = [write_row_groups(folder, s.file, map(group, s.row_groups)) for s in data.manifest.shards]
    Manifest("features", "pairs", tuple(shards), source={"width": width}, keys=asdict(keys)).write(folder)
    return folder


def test_a_store_that_fits_is_used_and_one_of_another_tower_is_not(stored, pairs_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("CORNERSTONE_HOME", str(tmp_path))
    folder = write_store(stored, pairs_folder)
    prepared = offline(stored.with_evaluation(sets=(pairs_folder,)))
    assert prepared.train.images.stores == (folder.uri,)
    assert {source.images.stores for source in prepared.evaluations} == {(folder.uri,)}
    batch = Stream.local(Layout(prepared.stream(), 1), 0, 0).batch(0)
    assert torch.equal(batch.image, torch.ones(8, WIDTH))
    assert not offline(stored.with_image(size=64)).stored_features
    assert not offline(stored.with_data(feature_dtype="float32")).stored_features


def test_stores_that_are_named_are_used_or_refused(stored, pairs_folder, tmp_path, monkeypatch, small_data):
    monkeypatch.setenv("CORNERSTONE_HOME", str(tmp_path / "home"))
    named = write_store(stored, pairs_folder, Location.of(tmp_path / "mine"))
    prepared = offline(stored.with_data(feature_stores=(named.uri,)))
    assert prepared.train.images.stores == (named.uri,)
    assert prepared.recipe_hash == replace(prepared, recipe=stored).recipe_hash
    with pytest.raises(CornerstoneError, match=r"do not fit this run.* the transform: stored 'centre-32-bicubic'"):
        prepare(stored.with_image(size=64).with_data(feature_stores=(named.uri,)), quiet)
    other = small_data.write(tmp_path / "other", map(small_data.pair, range(20)))
    elsewhere = stored.with_data(train=other, tokenizer=pairs_folder, feature_stores=(named.uri,))
    with pytest.raises(CornerstoneError, match="are of none of this run's data sets"):
        prepare(elsewhere, quiet)
    with pytest.raises(CornerstoneError, match="holds pairs, but stored features are needed"):
        prepare(stored.with_data(feature_stores=(pairs_folder,)), quiet)


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """Everything that takes time, as it is done."""
    done: list[str] = []

    def noted(module, name):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: done.append(name) or real(*a, **k))

    noted(shared_module, "describe_tower")
    for name in ("open_sets", "load_tokenizer"):
        noted(prepare_module, name)
    real = prepare_module.Mixture.open
    monkeypatch.setattr(prepare_module.Mixture, "open", lambda *a: done.append("open") or real(*a))
    return done


def test_the_points_of_a_sweep_share_what_they_have_in_common(recipe, opened):
    preparer = Preparer(quiet)
    points = [
        recipe,
        recipe.with_seed(3),
        recipe.with_text(corner_tokens=0, token_limit=16),
        recipe.with_loss(long_weight=3.0),
        with_sub_captions(recipe, 0),
        recipe.with_data(captioners=("b",)),
        recipe.with_optimization(learning_rate=1e-2),
        recipe.with_data(limit_rows=20),
    ]
    found = [preparer.prepare(point) for point in points]
    assert sorted(opened) == ["describe_tower", "open", "open_sets"]
    assert all(p.data is found[0].data and p.tokenizer is found[0].tokenizer for p in found)
    assert found[1].recipe_hash == found[0].recipe_hash  # the seed is no part of it
    assert found[1].train.draws.seed == 3
    assert len({p.recipe_hash for p in found}) == len(points) - 1
    assert found[2].train.texts.max_tokens == 16
    assert found[5].train.draws.captioners == ("b",)
    assert found[7].rows == 20
    with pytest.raises(CornerstoneError, match="No long caption by 'llava'"):
        preparer.prepare(recipe.with_data(captioners=("llava",)))
    with pytest.raises(CornerstoneError, match="batch of 51 is larger than the 50 rows"):
        preparer.prepare(recipe.with_optimization(batch_size=51))


def test_what_a_point_has_of_its_own_is_prepared_for_it(recipe, pairs_folder, opened):
    """In any order: nothing depends on which point came first."""
    points = [
        recipe,
        recipe.with_image(size=64),
        recipe.with_evaluation(sets=(pairs_folder,)),
        recipe.with_image(size=64),
    ]
    for order in (points, points[::-1]):
        opened.clear()
        preparer = Preparer(quiet)
        found = [preparer.prepare(point) for point in order]
        assert sorted(opened) == ["describe_tower", "describe_tower", "open", "open_sets", "open_sets"]
        assert [p.recipe_hash for p in found] == [prepare(point, quiet).recipe_hash for point in order]


def test_a_tower_in_a_relative_folder_is_found_from_anywhere(recipe, tiny_tower, monkeypatch):
    monkeypatch.chdir(Path(tiny_tower).parent)
    prepared = prepare(recipe.with_image(name=Path(tiny_tower).name), quiet)
    assert prepared.recipe.method.image.name == tiny_tower
