from __future__ import annotations

import pytest

from cornerstone.errors import CornerstoneError
from cornerstone.recipes import Placement, preset
from cornerstone.training.deepspeed_engine import REDUCE_BUCKET
from cornerstone.training.dry_run import dry_run
from cornerstone.training.prepare import prepare


@pytest.fixture
def recipe(pairs_folder, tmp_path, monkeypatch):
    """A little recipe on the small pairs, in a home of its own."""
    monkeypatch.setenv("CORNERSTONE_HOME", str(tmp_path))
    recipe = preset("photos").with_image(size=32).with_text(width=16, layers=1, heads=2, token_limit=32)
    recipe = recipe.with_optimization(batch_size=10, steps=15, warmup_steps=0).with_evaluation(sets=(pairs_folder,))
    return recipe.with_data(train=pairs_folder, tokenizer="")


def said(recipe, placement=None, trials=1):
    placement = placement or Placement(threads_per_worker=1)
    lines = list(dry_run(recipe, placement, trials=trials, experiment="ablate"))
    return {line.partition(" ")[0]: line for line in lines}, lines


def test_everything_is_resolved_and_nothing_left(recipe, pairs_folder, tmp_path):
    found, lines = said(recipe, Placement(workers=2, threads_per_worker=1), trials=21)
    prepared = prepare(recipe, print)
    assert f"hash {prepared.recipe_hash}, evaluation {prepared.eval_hash}, seed 0" in found["recipe"]
    assert f"50 pairs of pairs ({pairs_folder}), 3 epochs" in found["data"]
    assert found["data"].endswith("3 epochs")
    odd = said(recipe.with_optimization(steps=16))[0]["data"]
    assert odd.endswith("3 epochs, and 10 rows of the next one's 50")
    assert said(recipe.with_optimization(steps=4))[0]["data"].endswith("0 epochs, and 40 rows of the first one's 50")
    assert "pairs (retrieval, 50), pairs-short (retrieval, 50)" in found["evaluation"]
    assert "at the end" in found["evaluation"]
    assert "10 pairs = 2 workers × 5" in found["batch"]
    assert "samples/s" in found["speed"]
    assert "2 workers × 0.5" in found["placement"]
    assert found["trials"].split()[1] == "21:"
    assert found["trials"].endswith("min of computing, one after another")
    assert "MLflow experiment ablate" in found["records"]
    assert lines[-1].endswith("nothing was started and nothing recorded")
    assert list(tmp_path.iterdir()) == []


def test_one_step_is_really_taken(recipe):
    """A loss of ln 5 for each of raw, CLS and two corners is what features without meaning give for 5 pairs."""
    found, _ = said(recipe.with_loss(initial_scale=1e-6), Placement(workers=2, threads_per_worker=1))
    assert "loss 6.438" in found["speed"]


def test_memory_of_weights_is_that_of_the_zero_stage(recipe):
    recipe = recipe.with_text(width=256, heads=4, layers=2)
    sizes = {}
    for stage in (0, 3):
        found, _ = said(recipe, Placement(workers=4, zero_stage=stage, threads_per_worker=1))
        words = found["memory"].split("AdamW ")[1].split()
        assert words[1] == "MiB"
        sizes[stage] = int(words[0])
    sharded = sizes[3] - 4 * REDUCE_BUCKET / 2**20
    assert sharded == pytest.approx(sizes[0] / 16 * 24 / 4, abs=1.5)


def test_features_that_are_not_stored_yet_are_said(recipe):
    found, _ = said(recipe.with_image(locked=True).with_data(features="stored", crop_scale=(1.0, 1.0)))
    assert "none stored yet" in found["features"]
    assert " 0 locked" not in found["model"]


def test_dropout_is_said(recipe):
    found, _ = said(recipe.with_text(dropout=0.1))
    assert "depend on how many workers" in found["dropout"]
    assert "dropout" not in said(recipe)[0]


def test_what_cannot_run_is_refused(recipe):
    with pytest.raises(CornerstoneError, match="larger than the 50 rows"):
        said(recipe.with_optimization(batch_size=51))


def test_evaluation_images_that_are_trained_on_are_warned_about(recipe, small_data, tmp_path_factory):
    (said_once,) = [line for line in said(recipe)[1] if line.startswith("Overlap")]
    assert "50 of 50 images of pairs are in the training data" in said_once
    assert "Evaluate on another set, or train without these rows." in said_once
    folder = tmp_path_factory.mktemp("sets") / "own"
    own = small_data.write(folder, map(small_data.pair, range(60, 70)))
    assert "Overlap" not in "".join(said(recipe.with_evaluation(sets=(own,)))[1])
    assert prepare(recipe, print).overlaps == (said_once,)
