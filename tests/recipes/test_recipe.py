from __future__ import annotations

import json
import math
from dataclasses import fields, replace

import pytest

from cornerstone.errors import CornerstoneError
from cornerstone.hashing import digest
from cornerstone.recipes import (
    CornerText,
    ImageTower,
    LotlipConfig,
    LotlipLoss,
    Optimization,
    PairData,
    Placement,
    Recipe,
    Scenes,
    preset,
)
from cornerstone.recipes.lotlip import with_sub_captions

RECIPE = Recipe(name="test", method=LotlipConfig())
CONTENT = {"data": "d", "tokenizer": "t", "image": "i", "text": "x"}


def hashed(recipe, **content):
    return recipe.hash(CONTENT | content)


COUNTS = {
    "global batch": RECIPE.with_optimization(batch_size=128),
    "steps": RECIPE.with_optimization(steps=5_000),
    "learning rate": RECIPE.with_optimization(learning_rate=1e-3),
    "warmup": RECIPE.with_optimization(warmup_steps=3),
    "weight decay": RECIPE.with_optimization(weight_decay=0.1),
    "betas": RECIPE.with_optimization(betas=(0.9, 0.999)),
    "eps": RECIPE.with_optimization(eps=1e-8),
    "clipping": RECIPE.with_optimization(clip_norm=0.5),
    "precision": replace(RECIPE, precision="bf16"),
    "corners": RECIPE.with_text(corner_tokens=3),
    "mask": RECIPE.with_text(corner_mask=False),
    "token limit": RECIPE.with_text(token_limit=64),
    "dropout": RECIPE.with_text(dropout=0.1),
    "text size": RECIPE.with_text(layers=2),
    "image size": RECIPE.with_image(size=160),
    "trained tower": RECIPE.with_image(locked=False),
    "pretraining": RECIPE.with_image(pretrained=False),
    "long weight": RECIPE.with_loss(long_weight=3),
    "raw weight": RECIPE.with_loss(raw_weight=2),
    "reduction": RECIPE.with_loss(reduction="mean"),
    "balance": RECIPE.with_loss(balance="equal"),
    "temperature": RECIPE.with_loss(initial_scale=10.0),
    "captioners": RECIPE.with_data(captioners=("llava",)),
    "sub-captions": with_sub_captions(RECIPE, 1),
    "raw alone": with_sub_captions(RECIPE, 0),
    "crop": RECIPE.with_data(crop_scale=(1.0, 1.0)),
    "stored features": RECIPE.with_data(crop_scale=(1.0, 1.0), features="stored"),
    "type of stored features": RECIPE.with_data(crop_scale=(1.0, 1.0), features="stored", feature_dtype="float32"),
    "rows": RECIPE.with_data(limit_rows=100),
}

DOES_NOT_COUNT = {
    "seed": RECIPE.with_seed(7),
    "name": replace(RECIPE, name="other"),
    "verdicts": replace(RECIPE, verdicts="scenes-long"),
    "folder of the data": RECIPE.with_data(train="/somewhere/else"),
    "name of the tokenizer": RECIPE.with_data(tokenizer="/a/folder"),
    "folders of features": RECIPE.with_data(feature_stores=("/a/folder",)),
    "type of features that are not stored": RECIPE.with_data(feature_dtype="float32"),
    "share of bad rows": RECIPE.with_data(bad_row_limit=0.5),
    "embedded data": RECIPE.with_data(scenes=Scenes(pairs=3)),
    "evaluation": RECIPE.with_evaluation(sets=("a=/b",), every=7, best="eval/a/i2t_r1"),
    "path of the image tower": RECIPE.with_image(name="/a/folder"),
    "path of the text tower": RECIPE.with_text(name="/a/folder"),
}


@pytest.mark.parametrize("changed", COUNTS.values(), ids=COUNTS)
def test_what_changes_the_numbers_changes_the_hash(changed):
    assert hashed(changed) != hashed(RECIPE)


@pytest.mark.parametrize("changed", DOES_NOT_COUNT.values(), ids=DOES_NOT_COUNT)
def test_what_changes_no_number_keeps_the_hash(changed):
    assert changed != RECIPE
    assert hashed(changed) == hashed(RECIPE)


@pytest.mark.parametrize("part", CONTENT)
def test_data_tokenizer_and_towers_count_by_their_content(part):
    assert hashed(RECIPE, **{part: "other"}) != hashed(RECIPE)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_tower_whose_weights_are_not_known_counts_by_its_name(tower):
    content = {name: value for name, value in CONTENT.items() if name != tower}
    change = RECIPE.with_image if tower == "image" else RECIPE.with_text
    assert change(name="other").hash(content) != RECIPE.hash(content)


def test_no_field_of_the_placement_is_in_the_recipe():
    def names(value):
        return {f.name for f in fields(value)}

    parts = (RECIPE, RECIPE.data, RECIPE.optimization, RECIPE.evaluation, RECIPE.method.text, RECIPE.method.loss)
    assert not names(Placement()) & set().union(*map(names, parts))


def test_whole_numbers_may_be_written_either_way():
    assert hashed(RECIPE.with_loss(long_weight=1)) == hashed(RECIPE.with_loss(long_weight=1.0))
    assert hashed(RECIPE.with_data(crop_scale=(1, 1))) == hashed(RECIPE.with_data(crop_scale=(1.0, 1.0)))
    assert digest({"a": 1.5, "b": 2}) == digest({"b": 2, "a": 1.5})


def test_a_number_that_is_none_has_no_hash():
    with pytest.raises(ValueError, match="JSON"):
        digest(float("nan"))


def test_a_recipe_as_json_says_everything():
    plain = json.loads(json.dumps(RECIPE.with_seed(3).as_dict()))
    assert plain["seed"] == 3
    assert plain["method"]["kind"] == "lotlip"
    assert plain["method"]["text"]["corner_tokens"] == 2
    assert plain["data"]["scenes"]["pairs"] == 16_000
    assert plain["optimization"]["betas"] == [0.9, 0.98]


IMPOSSIBLE = {
    "--recipe.data.sub-captions": lambda: PairData(sub_captions=-1),
    "--recipe.data.crop-scale": lambda: PairData(crop_scale=(0.5, 1.5)),
    "--recipe.data.crop-scale 1 1": lambda: PairData(features="stored"),
    "--steps": lambda: Optimization(steps=0),
    "--recipe.optimization.warmup-steps": lambda: Optimization(steps=10, warmup_steps=11),
    "--recipe.optimization.learning-rate": lambda: Optimization(learning_rate=0),
    "--recipe.optimization.batch-size": lambda: Optimization(batch_size=1),
    "--recipe.method.image.locked": lambda: preset("scenes").with_image(locked=False),
    "--recipe.method.loss.long-weight 0": lambda: RECIPE.with_data(sub_captions=0),
    "--recipe.method.loss.raw-weight": lambda: LotlipLoss(raw_weight=0, long_weight=0),
    "--recipe.method.image.size": lambda: ImageTower(size=4),
    "--recipe.method.text.corner-tokens": lambda: CornerText(corner_tokens=-1),
    "--recipe.method.text.token-limit to 7": lambda: CornerText(corner_tokens=4, token_limit=6),
    "--recipe.method.text.heads": lambda: CornerText(width=100, heads=3),
    "--recipe.method.text.dropout": lambda: CornerText(dropout=1.0),
}


@pytest.mark.parametrize("option", IMPOSSIBLE)
def test_what_cannot_work_is_refused_with_the_option_to_change(option):
    with pytest.raises(CornerstoneError) as refused:
        IMPOSSIBLE[option]()
    assert option in str(refused.value)


def test_no_sub_captions_train_on_raw_texts_alone():
    recipe = with_sub_captions(RECIPE, 0)
    assert (recipe.data.sub_captions, recipe.method.loss.long_weight) == (0, 0)
    assert with_sub_captions(RECIPE, 2).method.loss == RECIPE.method.loss


def test_warmup_follows_the_steps():
    assert RECIPE.optimization.warmup_steps == 500
    assert RECIPE.with_steps(1_000).optimization.warmup_steps == 50
    assert RECIPE.with_steps(1).optimization.warmup_steps == 0


def test_changing_a_copy_leaves_the_recipe():
    before = RECIPE.as_dict()
    RECIPE.with_text(corner_tokens=0).with_steps(3).with_seed(1)
    assert RECIPE.as_dict() == before


def test_the_loss_by_chance_counts_every_term():
    two, batch = preset("scenes"), 128
    assert two.method.chance_loss(batch) == pytest.approx(4 * math.log(batch))  # raw, [CLS] and two corners
    assert two.with_text(corner_tokens=0).method.chance_loss(batch) == pytest.approx(2 * math.log(batch))
    assert two.with_loss(balance="equal").method.chance_loss(batch) == pytest.approx(2 * math.log(batch))
    assert two.with_loss(reduction="mean").method.chance_loss(batch) == pytest.approx(math.log(batch))
    assert preset("scenes-siglip").method.chance_loss(batch) is None
