"""The points of LoTLIP's tables and figures. Nothing is run."""

from __future__ import annotations

import re
import shlex

import pytest

from cornerstone.recipes import preset
from cornerstone.recipes.lotlip import LotlipConfig
from cornerstone.recipes.siglip import SiglipConfig
from cornerstone.sweeps.papers.lotlip import TABLE_2, TABLE_7, TABLE_8, TABLE_9
from cornerstone.sweeps.papers.lotlip_zero_shot import TABLES_10_11

from .conftest import REPOSITORY, defined, experiment


def test_table_3_varies_the_corners_the_mask_and_the_weight_of_long_texts():
    recipe = preset("scenes")
    sweep = experiment("ablate_corner_tokens").corner_tokens(recipe)
    found = {p.name: (p.recipe.method.text.corner_tokens, p.recipe.method.text.corner_mask) for p in sweep.points}
    controls = {f"0, long loss × {m + 1}": m + 1.0 for m in (1, 2, 3, 4)}
    equal = {f"{m}, balance equal": m for m in (1, 2, 3, 4)}
    assert found == {
        **{f"{m}": (m, True) for m in range(5)},
        "2, no mask": (2, False),
        **dict.fromkeys(controls, (0, True)),
        **{name: (m, True) for name, m in equal.items()},
    }
    loss = {p.name: p.recipe.method.loss for p in sweep.points}
    assert {name: one.long_weight for name, one in loss.items()} == {name: controls.get(name, 1.0) for name in found}
    assert {name for name, one in loss.items() if one.balance == "equal"} == set(equal)
    assert sweep.baseline == "0"
    places = {(place.curve, place.x) for point in sweep.points for place in point.places}
    assert {x for curve, x in places if curve == "weight alone"} == {0, 1, 2, 3, 4}
    # Raw and long texts have the same share of the loss with m corners as in their control, by the loss at chance.
    for m, control in zip((1, 2, 3, 4), controls, strict=True):
        chance = {p.name: p.recipe.method.chance_loss(128) for p in sweep.points}
        assert chance[f"{m}"] == pytest.approx(chance[control])
        assert chance[f"{m}, balance equal"] == pytest.approx(chance["0"])


def test_the_demo_runs_points_that_there_are():
    script = (REPOSITORY / "ray_jobs" / "demo.sh").read_text()
    names = shlex.split(re.search(r"=\(--only (.*)\)", script)[1])
    sweep = experiment("ablate_corner_tokens").corner_tokens(preset("scenes"))
    assert [point.name for point in sweep.only(names)] == names == ["0", "2", "0, long loss × 3"]
    assert f"3 of the table's {len(sweep.points)} points" in script


def test_the_losses_are_compared_with_the_same_towers_data_and_steps():
    recipe = preset("scenes")
    sweep = experiment("compare_losses").losses(recipe)
    softmax, sigmoid = (point.recipe for point in sweep.points)
    assert [point.name for point in sweep.points] == ["LiT", "SigLIP"]
    assert [type(recipe.method) for recipe in (softmax, sigmoid)] == [LotlipConfig, SiglipConfig]
    assert softmax.method.image == sigmoid.method.image
    for name in ("width", "layers", "heads", "token_limit", "dropout"):
        assert getattr(softmax.method.text, name) == getattr(sigmoid.method.text, name)
    assert softmax.method.text.corner_tokens == 0
    assert (softmax.data, softmax.optimization, softmax.evaluation) == (
        sigmoid.data,
        sigmoid.optimization,
        sigmoid.evaluation,
    )
    assert all(point.chosen_by == recipe.evaluation.best and len(point.candidates) == 3 for point in sweep.points)


def test_figure_4_varies_the_token_limit():
    define = experiment("ablate_token_limit").token_limit
    scenes, paper = define(preset("scenes")), define(preset("lotlip-3m").with_data(train="s3://bucket/cc3m"))
    assert [p.recipe.method.text.token_limit for p in scenes.points] == [16, 32, 40, 48, 64, 96, 128, 256]
    assert [p.recipe.method.text.token_limit for p in paper.points] == [32, 64, 77, 96, 128, 192, 256, 512]
    for sweep, preset_name in ((scenes, "scenes"), (paper, "lotlip-3m")):
        assert all(p.name == str(p.recipe.method.text.token_limit) for p in sweep.points)
        assert sweep.baseline == str(preset(preset_name).method.text.token_limit)
        limits = [p.recipe.method.text.token_limit for p in sweep.points]
        (usual,) = (p for p in sweep.points if p.variants)
        assert usual.name == sweep.baseline
        assert list(usual.recipe.evaluation.token_limits) == [v.token_limit for v in usual.variants]
        assert [v.token_limit for v in usual.variants] == [limit for limit in limits if f"{limit}" != usual.name]
        curves = {curve: set() for curve, _ in usual.places}
        for row in (*sweep.points, *usual.variants):
            for curve, x in row.places:
                curves[curve].add(x)
        assert [sorted(xs) for xs in curves.values()] == [limits, limits]


def test_figures_2_and_5_vary_the_sentences_without_and_with_corners_and_0_are_raw_texts_alone():
    recipe = preset("scenes")
    sweep = experiment("ablate_sub_captions").sub_captions(recipe)
    sentences = [0, 1, 2, 3, 4, 6]
    assert [p.name for p in sweep.points] == [f"{name}, {k}" for name in ("LiT", "LoTLIP") for k in sentences]
    assert [p.places for p in sweep.points] == [((name, k),) for name in ("LiT", "LoTLIP") for k in sentences]
    assert [p.recipe.data.sub_captions for p in sweep.points] == sentences * 2
    assert [p.recipe.method.loss.long_weight for p in sweep.points] == [0.0, *[1.0] * 5] * 2
    assert [p.recipe.method.text.corner_tokens for p in sweep.points] == [0] * 6 + [2] * 6
    assert next(p.recipe for p in sweep.points if p.name == "LoTLIP, 3") == recipe
    assert sweep.baseline == "LiT, 3"
    assert [p.compared_with for p in sweep.points] == [""] * 6 + [f"LiT, {k}" for k in sentences]
    with pytest.raises(SystemExit, match="needs corner tokens"):
        experiment("ablate_sub_captions").sub_captions(recipe.with_text(corner_tokens=0))


def test_table_9_trains_on_one_captioner_at_a_time_and_on_all():
    *_, scenes = defined("ablate_captioners", [])
    assert {p.name: p.recipe.data.captioners for p in scenes.points} == {
        "A": ("A",),
        "B": ("B",),
        "C": ("C",),
        "All": (),
    }
    own = ["--preset", "lotlip-3m", "--train", "s3://bucket/cc3m"]
    *_, paper = defined("ablate_captioners", own)
    assert [p.name for p in paper.points] == list(TABLE_9.rows)
    assert paper.points[0].recipe.data.captioners == ("longIB",)
    *_, named = defined("ablate_captioners", [*own, "--captioners", "mine=a", "b"])
    assert {p.name: p.recipe.data.captioners for p in named.points} == {"mine": ("a",), "b": ("b",), "All": ("a", "b")}
    with pytest.raises(SystemExit, match="needs long captions"):
        experiment("ablate_captioners").captioners(preset("scenes-lcl"))


def test_tables_10_and_11_train_lit_and_lotlip_at_every_scale():
    *_, scenes = defined("scale_data", [])
    assert {p.name: p.recipe.data.limit_rows for p in scenes.points} == {
        f"{method}, {pairs} pairs": pairs for pairs in (480, 1920, 4800, 16000) for method in ("LiT", "LoTLIP")
    }
    assert len({p.recipe.data.scenes for p in scenes.points}) == 1  # one world, made once
    folders = {scale: f"s3://bucket/{scale}" for scale in ("3M", "12M", "30M", "100M")}
    own = ["--preset", "lotlip-3m", "--scales", *(f"{scale}={folder}" for scale, folder in folders.items())]
    *_, paper = defined("scale_data", own)
    assert {p.name for p in paper.points} == set(TABLES_10_11.rows) - set(TABLES_10_11.released)
    for point in paper.points:
        method, tower, scale = point.name.split(", ")
        recipe, usual = point.recipe, preset(f"lotlip-{scale.lower()}").optimization
        assert recipe.data.train == folders[scale]
        assert recipe.method.image.name == f"vit_base_patch{tower[2:]}_224.augreg_in21k"
        assert recipe.optimization == usual
        assert (recipe.method.text.corner_tokens, recipe.method.loss.long_weight) == (
            (0, 0) if method == "LiT" else (2, 1)
        )
        assert point.places == ((f"{method}, {tower}", float(scale[:-1]) * 1e6),)
        assert point.compared_with == ("" if method == "LiT" else f"LiT, {tower}, {scale}")
    *_, equal = defined("scale_data", [*own, "--equal-steps", "--steps", "70"])
    assert {p.recipe.optimization.steps for p in equal.points} == {70}
    *_, other = defined("scale_data", [*own[:3], "500k=one", "--towers", "vit_tiny", "--steps", "70"])
    assert [(p.name, p.recipe.optimization.steps) for p in other.points] == [
        ("LiT, vit_tiny, 500k", 70),
        ("LoTLIP, vit_tiny, 500k", 70),
    ]
    for wrong in (["--train", "one"], ["--scales", "large=one"]):
        with pytest.raises(SystemExit, match="by its pairs"):
            defined("scale_data", ["--preset", "lotlip-3m", *wrong])


@pytest.mark.parametrize("name", ["scenes", "lotlip-3m"])
def test_tables_4_and_5_compare_methods_each_at_its_best_rate(name):
    recipe = preset(name)
    sweep = experiment("compare_methods").methods(recipe)
    points = {p.name: p.recipe for p in sweep.points}
    assert set(points) == set(sweep.paper.rows) - set(sweep.paper.released)
    assert [one.method.kind for one in points.values()] == ["lotlip", "filip", "lotlip", "siglip", "lotlip", "lotlip"]
    assert points["LoTLIP"] == recipe
    for row in ("CLIP", "FILIP", "LaCLIP", "SigLIP"):
        image, text = points[row].method.image, points[row].method.text
        assert (image.pretrained, image.locked, text.name) == (False, False, "")
        assert (points[row].data.sub_captions, points[row].data.features) == (0, "online")
    assert [one.data.rewrites for one in points.values()] == [False, False, True, False, False, False]
    assert points["LiT"].method.image == recipe.method.image
    candidates = 3 if recipe.evaluation.best else 0
    assert all(len(p.candidates) == candidates for p in sweep.points)
    *_, large = defined("compare_methods", ["--preset", "lotlip-100m", "--scale", "100M"])
    assert large.paper.value("LoTLIP", "IN-1k") == 72.16
    assert large.paper.value("FILIP", "IN-1k") is None
    assert large.paper.released == sweep.paper.released


def test_table_2_compares_ways_to_learn_from_long_texts_over_the_same_towers():
    recipe = preset("scenes")
    points = {p.name: p.recipe for p in experiment("compare_long_text_methods").long_text_methods(recipe).points}
    assert list(points) == list(TABLE_2.rows)
    assert {one.method.image for one in points.values()} == {recipe.method.image}
    assert points["LoTLIP"] == recipe
    assert [one.method.text_tower.reserved_tokens for one in points.values()] == [0, 0, 0, 2]
    short, long = points["LiT, short only"], points["LiT + long"]
    assert (short.method.loss.long_weight, short.data.sub_captions) == (0, 0)
    assert (long.method.loss, long.data) == (recipe.method.loss, recipe.data)
    matched = points["LiT + Long-CLIP"]
    assert matched.method.kind == "long-clip"
    assert (matched.data, matched.optimization) == (recipe.data, recipe.optimization)
    with pytest.raises(SystemExit, match="compares with LoTLIP"):
        experiment("compare_long_text_methods").long_text_methods(preset("scenes-t5"))


def test_table_7_varies_the_learnable_tokens_and_the_weight_of_long_texts():
    points = {p.name: p.recipe for p in experiment("ablate_learnable_tokens").learnable_tokens(preset("scenes")).points}
    assert set(points) - set(TABLE_7.rows) == {"none, weight of corners"}
    text = {name: one.method.text for name, one in points.items()}
    found = {name: (one.corner_tokens, one.corner_mask, one.registers) for name, one in text.items()}
    assert found == {
        "none": (0, True, False),
        "Register": (2, False, True),
        "Corner": (2, True, False),
        "none, weight of corners": (0, True, False),
    }
    assert [one.method.loss.long_weight for one in points.values()] == [1, 1, 1, 3]
    with pytest.raises(SystemExit, match="needs corner tokens"):
        experiment("ablate_learnable_tokens").learnable_tokens(preset("scenes").with_text(corner_tokens=0))


@pytest.mark.parametrize("name", ["scenes", "lotlip-3m"])
def test_table_8_trains_both_towers_from_scratch(name):
    recipe = preset(name)
    points = {p.name: p.recipe for p in experiment("ablate_initialisation").initialisation(recipe).points}
    assert list(points) == list(TABLE_8.rows)
    assert points.pop("LoTLIP, pretrained") == recipe
    for one in points.values():
        image = one.method.image
        assert (image.pretrained, image.locked, image.size) == (False, False, recipe.method.image.size)
        assert image.name
        assert (one.method.text.name, one.data.features) == ("", "online")
    assert [one.method.text.corner_tokens for one in points.values()] == [0, 0, 2]
    with pytest.raises(SystemExit, match="needs a locked tower"):
        experiment("ablate_initialisation").initialisation(preset("photos"))
