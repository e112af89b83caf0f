"""The experiment files: their points, and the commands that their docstrings and the README promise. Nothing is run."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace

import pytest

from cornerstone.recipes import ImageTower, preset
from cornerstone.recipes.lotlip import LotlipConfig
from cornerstone.recipes.options import parse
from cornerstone.recipes.siglip import SiglipConfig
from cornerstone.recipes.transfers import TRANSFER_TASKS
from cornerstone.sweeps.main import _with_preset, options_with
from cornerstone.sweeps.papers.lotlip import TABLE_2, TABLE_7, TABLE_8
from cornerstone.sweeps.transfers import CEILING, FLOOR

from .conftest import REPOSITORY, experiment

DEFINE = {
    "ablate_contrastive_weight": "contrastive_weight",
    "ablate_initialisation": "initialisation",
    "ablate_learnable_tokens": "learnable_tokens",
    "ablate_loss": "losses",
    "ablate_corner_tokens": "corner_tokens",
    "ablate_sub_captions": "sub_captions",
    "ablate_token_limit": "token_limit",
    "compare_long_text_methods": "long_text_methods",
    "compare_losses": "losses",
    "compare_pretraining": "pretraining",
    "compare_pretraining_data": "pretraining_data",
    "probe_overshadowing": "overshadowing",
    "transfer": "transfer",
}


def commands(text: str) -> list[list[str]]:
    """What is typed after `python`, of every command that runs an experiment; notes stand two spaces or a # behind."""
    joined = re.sub(r"\\+\n\s*", "", text)
    found = [line.partition("python experiments/")[2] for line in joined.splitlines() if "python experiments/" in line]
    return [shlex.split(re.split(r"\s{2,}|\s#|`", command)[0]) for command in found]


def documents() -> list[tuple[str, list[str]]]:
    files = [*sorted((REPOSITORY / "experiments").glob("*.py")), REPOSITORY / "README.md"]
    found = [(path.name, command) for path in files for command in commands(path.read_text())]
    return [(name, command) for name, command in found if "..." not in command]


def test_every_experiment_is_known_here_and_names_its_commands():
    files = {path.stem for path in (REPOSITORY / "experiments").glob("*.py")}
    assert files == set(DEFINE)
    assert {command[0] for _, command in documents()} == {f"{name}.py" for name in files}
    assert len(documents()) >= 7


def usual_preset(file: str) -> str:
    """The preset that an experiment uses if none is given."""
    named = re.search(r'main\(.*preset="(.*?)"', (REPOSITORY / "experiments" / file).read_text())
    return named[1] if named else "scenes"


def options_of(name: str) -> type | None:
    """The class of an experiment's own options, if it has some."""
    named = re.search(r"main\(.*options=(\w+)", (REPOSITORY / "experiments" / f"{name}.py").read_text())
    return getattr(experiment(name), named[1]) if named else None


def defined(name: str, arguments: list[str]):
    """Recipe, placement and sweep of a command, as `main` makes them."""
    own = options_of(name)
    options = parse(options_with(own)[0], _with_preset(usual_preset(f"{name}.py"), arguments), name, "")
    recipe, placement = options.resolved()
    define = getattr(experiment(name), DEFINE[name])
    return options, recipe, placement, define(recipe) if own is None else define(recipe, options)


@pytest.mark.parametrize("command", [command for _, command in documents()], ids=" ".join)
def test_the_command_in_the_docstring_means_something(command, monkeypatch):
    file, *arguments = command
    name = file.removesuffix(".py")
    named = ImageTower("vit_tiny_patch16_224", size=224, pooling="none")  # no store and no hub is asked
    monkeypatch.setattr("cornerstone.transfer.towers.tower_recipe", lambda model, size: named)
    options, recipe, placement, sweep = defined(name, arguments)
    assert sweep.only(options.only)
    assert (sweep.paper is None) == (name == "compare_losses")  # compares with a figure of another data set
    assert placement.trial_cpus > 0
    assert recipe.data.train == (arguments[arguments.index("--train") + 1] if "--train" in arguments else "")
    if recipe.verdicts:
        assert preset(recipe.verdicts).verdicts == ""


def test_table_3_varies_the_corners_the_mask_and_the_weight_of_long_texts():
    recipe = preset("scenes")
    sweep = experiment("ablate_corner_tokens").corner_tokens(recipe)
    found = {p.name: (p.recipe.method.text.corner_tokens, p.recipe.method.text.corner_mask) for p in sweep.points}
    control = "0, long loss × 3"
    assert found == {**{f"{m}": (m, True) for m in range(5)}, "2, no mask": (2, False), control: (0, True)}
    weights = {p.name: p.recipe.method.loss.long_weight for p in sweep.points}
    assert weights == {name: 3.0 if name == control else 1.0 for name in found}
    assert sweep.baseline == "0"


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


def test_figures_2_and_5_vary_the_sentences_and_0_are_raw_texts_alone():
    recipe = preset("scenes")
    sweep = experiment("ablate_sub_captions").sub_captions(recipe)
    assert [p.recipe.data.sub_captions for p in sweep.points] == [0, 1, 2, 3, 4, 6]
    assert [p.recipe.method.loss.long_weight for p in sweep.points] == [0.0, *[1.0] * 5]
    assert sweep.baseline == str(recipe.data.sub_captions)


@pytest.mark.parametrize("name", DEFINE)
def test_the_points_differ_in_what_is_ablated_alone(name):
    recipe = preset(usual_preset(f"{name}.py"))
    points = [p for p in getattr(experiment(name), DEFINE[name])(recipe).points if not p.row]  # no transfers
    assert len({(p.recipe.hash({}), p.recipe.data) for p in points}) == len(points)
    evaluation = points[0].recipe.evaluation
    assert replace(evaluation, skip_unsuited=False, built_in=recipe.evaluation.built_in) == recipe.evaluation
    for point in points:
        images = recipe.optimization  # as many images a step, if a point reads the same documents otherwise
        if point.recipe.data.kind != recipe.data.kind:
            images = replace(images, batch_size=round(images.batch_size * recipe.data.images_per_sequence))
        if name == "compare_pretraining_data":
            images = replace(images, batch_size=point.recipe.optimization.batch_size)
        assert (point.recipe.optimization, point.recipe.evaluation) == (images, evaluation)
        assert point.recipe.method.image == recipe.method.image or name == "ablate_initialisation"
        assert point.recipe.seed == recipe.seed


@pytest.mark.parametrize(("name", "tokens"), [("scenes-lcl", 16), ("lcl-mmc4-b16", 196)])
def test_pretraining_methods_share_tower_language_model_data_and_packing(name, tokens):
    recipe = preset(name)
    sweep = experiment("compare_pretraining").pretraining(recipe)
    assert [point.name for point in sweep.points] == ["LCL", "Flamingo", "Emu", "BEiT3", "CLIP", "CoCa", "BLIP2"]
    assert {point.name for point in sweep.points} == set(sweep.paper.rows)
    for point in sweep.points[:4]:
        assert point.recipe.with_seed(0).data == recipe.data
        assert point.recipe.method.image == recipe.method.image
        assert getattr(point.recipe.method, "language", recipe.method.language) == recipe.method.language
    assert sweep.points[2].recipe.method.tokens == tokens
    assert sweep.points[3].recipe.method.min_block == {16: 2, 196: 16}[tokens]
    clip, coca, blip2 = (point.recipe for point in sweep.points[4:])
    assert clip.data == coca.data == blip2.data == recipe.data.as_pairs()
    sizes = ("width", "layers", "heads")
    assert all(getattr(blip2.method.text, size) == getattr(recipe.method.language, size) for size in sizes)
    assert (clip.method.loss.caption_weight, coca.method.loss.caption_weight) == (0, 2)
    assert (clip.method.text.pooling, coca.method.text.pooling) == ("end", "trailing")
    assert clip.method.text == replace(coca.method.text, pooling="end")
    own = recipe.with_data(train="s3://bucket/packed")
    without = experiment("compare_pretraining").pretraining(own)
    assert [point.name for point in without.points] == ["LCL", "Flamingo", "Emu", "BEiT3"]
    assert "--recipe.data.pairs" in without.notes[1]
    named = experiment("compare_pretraining").pretraining(own.with_data(pairs="s3://bucket/pairs"))
    assert {point.recipe.data.train for point in named.points} == {"s3://bucket/packed", "s3://bucket/pairs"}
    with pytest.raises(SystemExit, match="compares with LCL"):
        experiment("compare_pretraining").pretraining(preset("scenes"))


LCL = ("ablate_contrastive_weight", "ablate_loss", "compare_pretraining", "compare_pretraining_data")


@pytest.mark.parametrize("name", LCL)
def test_every_pretraining_may_be_followed_by_transfer_of_its_tower(name):
    *_, without = defined(name, [])
    given = ["--transfer", "classification", "caption", "--caption.steps", "7", "--classification.train", "in1k"]
    *_, sweep = defined(name, given)
    own = [point for point in sweep.points if not point.row]
    assert [point.name for point in own] == [point.name for point in without.points]
    for point in own:
        assert list(point.rows) == [point.name, f"{point.name} → classification", f"{point.name} → caption"]
        assert set(point.rows.values()) == {point.name}
        tower = point.recipe.method.image_tower
        classification, caption = (follow_up.recipe("/runs/one/model") for follow_up in point.follow_ups)
        for recipe in (classification, caption):
            image = recipe.method.image_tower
            assert (image.name, image.size, image.locked) == ("/runs/one/model", tower.size, True)
        assert (classification.data.train, classification.optimization.steps) == ("in1k", 14_000)
        assert caption.optimization.steps == 7
    others = {point.name: point.recipe.method.image_tower for point in sweep.points if point.row}
    assert {name: (image.locked, image.pretrained) for name, image in others.items()} == {
        f"{row}: {task}": (row == FLOOR, False) for row in (FLOOR, CEILING) for task in ("classification", "caption")
    }
    assert len({(image.name, image.width, image.layers, image.patch) for image in others.values()}) == 1
    assert sweep.baseline == without.baseline


def test_table_5_trains_on_one_data_set_a_row():
    define = experiment("compare_pretraining_data").pretraining_data
    recipe = preset("scenes-lcl")
    forms = {p.name: (p.recipe.data.scenes.form, p.recipe.optimization.batch_size) for p in define(recipe).points}
    assert forms == {
        "LAION": ("laion-random", 8),
        "MMC4": ("mmc4", 16),
        "OBELICS": ("obelics", 16),
        "LAION + MMC4": ("laion-random + mmc4", 12),
    }
    named = ["--preset", "lcl-mmc4-b16", "--data", "a=one", "b=two", "--sequences", "900", "2048"]
    *_, sweep = defined("compare_pretraining_data", named)
    found = [(p.name, p.recipe.data.train, p.recipe.optimization.batch_size) for p in sweep.points]
    assert found == [("a", "one", 900), ("b", "two", 2048)]
    with pytest.raises(SystemExit, match="in place of --train"):
        define(recipe.with_data(train="one"))
    with pytest.raises(SystemExit, match="for none of them or for each"):
        defined("compare_pretraining_data", [*named, "600"])
    with pytest.raises(SystemExit, match="trains on packed documents"):
        define(preset("scenes"))


def test_table_3_has_a_row_for_each_tower_and_mode(tiny_tower):
    *_, sweep = defined("transfer", ["--models", f"mine={tiny_tower}", "random:vit_tiny_patch16_224"])
    rows = {point.name: point.row for point in sweep.points}
    expected = [f"{name}, {mode}" for mode in ("frozen", "full") for name in ("mine", "random:vit_tiny_patch16_224")]
    assert list(dict.fromkeys(rows.values())) == [*expected, FLOOR, CEILING]
    assert all(rows[f"{row}: {task}"] == row for row in (*expected, FLOOR, CEILING) for task in TRANSFER_TASKS)
    for point in sweep.points:
        image = point.recipe.method.image_tower
        assert image.locked == (point.row.endswith("frozen") or point.row == FLOOR)
        if point.row.startswith("mine"):
            assert image.name == tiny_tower
        if point.row in (FLOOR, CEILING):
            assert (image.name, image.pretrained, image.width, image.patch) == ("vit_tiny_patch16_224", False, 32, 8)


def test_without_models_a_tower_is_pretrained_first():
    options, _, _, sweep = defined("transfer", ["--tasks", "retrieval"])
    first = sweep.points[0]
    here = "LCL pre-trained here"
    assert first.rows == {
        here: here,
        f"{here} → retrieval, frozen": f"{here}, frozen",
        f"{here} → retrieval, full": f"{here}, full",
    }
    assert [f.recipe("m").method.image_tower.locked for f in first.follow_ups] == [True, False]
    assert first.recipe == preset("scenes-lcl")
    assert options.tasks == ("retrieval",)
    assert "seeds=3" in (REPOSITORY / "experiments" / "transfer.py").read_text()


def test_figure_1_asks_for_the_set_that_shows_it():
    recipe = preset("scenes")
    points = {p.name: p.recipe for p in experiment("probe_overshadowing").overshadowing(recipe).points}
    assert list(points) == ["LiT, short only", "LiT + long", "LoTLIP"]
    assert all("sentence-swap" in one.evaluation.built_in for one in points.values())
    assert all(one.evaluation.best.split("/")[1] in one.evaluation.built_in for one in points.values())
    assert [one.data.sub_captions for one in points.values()] == [0, 3, 3]
    assert [one.method.text_tower.reserved_tokens for one in points.values()] == [0, 0, 2]


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
