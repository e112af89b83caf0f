"""The experiment files: their points, and the commands that their docstrings and the README promise. Nothing is run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cornerstone.recipes import ImageTower, preset
from cornerstone.recipes.transfers import TRANSFER_TASKS
from cornerstone.sweeps.transfers import CEILING, FLOOR

from .conftest import DEFINE, REPOSITORY, defined, documents, experiment, usual_preset


def test_every_experiment_is_known_here_and_names_its_commands():
    files = {path.stem for path in (REPOSITORY / "experiments").glob("*.py")}
    assert files == set(DEFINE)
    assert {command[0] for _, command in documents()} == {f"{name}.py" for name in files}
    assert len(documents()) >= 7


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


@pytest.mark.parametrize("name", DEFINE)
def test_the_points_differ_in_what_is_ablated_alone(name):
    recipe = preset(usual_preset(f"{name}.py"))
    points = [p for p in getattr(experiment(name), DEFINE[name])(recipe).points if not p.row]  # no transfers
    assert len({(p.recipe.hash({}), p.recipe.data) for p in points}) == len(points)
    evaluation = points[0].recipe.evaluation
    assert replace(evaluation, skip_unsuited=False, built_in=recipe.evaluation.built_in) == recipe.evaluation
    points = [replace(p, recipe=p.recipe.with_evaluation(token_limits=()), variants=()) for p in points]
    for point in points:
        images = recipe.optimization  # as many images a step, if a point reads the same documents otherwise
        if point.recipe.data.kind != recipe.data.kind:
            images = replace(images, batch_size=round(images.batch_size * recipe.data.images_per_sequence))
        if name == "compare_pretraining_data":
            images = replace(images, batch_size=point.recipe.optimization.batch_size)
        assert (point.recipe.optimization, point.recipe.evaluation) == (images, evaluation)
        new_towers = name in ("ablate_initialisation", "compare_methods")
        assert point.recipe.method.image == recipe.method.image or new_towers
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
        aligned = point.name.endswith("dialogue")  # the first stage, which never trains the tower
        assert image.locked == (aligned or point.row.endswith("frozen") or point.row == FLOOR)
        if point.row.startswith("mine"):
            assert image.name == tiny_tower
        if point.row in (FLOOR, CEILING):
            assert (image.name, image.pretrained, image.width, image.patch) == ("vit_tiny_patch16_224", False, 32, 8)


def test_table_4_has_two_stages_the_second_on_the_model_of_the_first():
    given = ["--tasks", "dialogue", "--models", "random:vit_tiny_patch16_224"]
    own = ["--dialogue.train", "talks", "--dialogue.alignment", "pairs", "--dialogue.eval", "gqa", "pope"]
    *_, sweep = defined(
        "transfer", [*given, *own, "--dialogue.language-model", "vicuna", "--dialogue.alignment-steps", "9"]
    )
    found = {}
    for point in sweep.points:
        first, (after,) = point.recipe, point.follow_ups
        second = after.recipe("/runs/one/model")
        assert (first.method.stage, first.data.style, first.data.train) == ("projector", "plain", "pairs")
        assert (second.method.stage, second.data.style, second.data.train) == ("instructions", "vicuna", "talks")
        assert (second.method.projector, second.method.image.name) == ("/runs/one/model",) * 2
        assert (first.evaluation.sets, second.evaluation.sets) == ((), ("gqa", "pope"))
        assert {one.method.language_model for one in (first, second)} == {one.data.tokenizer for one in (first, second)}
        steps = [(one.optimization.steps, one.optimization.batch_size) for one in (first, second)]
        assert steps == [(9, 512), (5_198, 128)]
        assert [one.optimization.learning_rate for one in (first, second)] == [1e-3, 2e-5]
        assert point.rows == {point.name: point.row, f"{point.name} → dialogue": point.row}
        found[point.row] = (second.method.frozen, second.method.tower_lr_factor)
    name = "random:vit_tiny_patch16_224"
    assert found == {
        f"{name}, frozen": (True, 0.1),
        f"{name}, full": (False, 1.0),
        FLOOR: (True, 0.1),
        CEILING: (False, 1.0),
    }
    assert sweep.paper.column("eval/conversations/accuracy") == sweep.paper.column("eval/gqa/accuracy") == "GQA"
    assert sweep.paper.value("OpenCLIP, full", "GQA") == 58.6


def test_a_pretraining_is_followed_by_both_stages():
    *_, sweep = defined("transfer", ["--tasks", "dialogue", "--modes", "full"])
    here = "LCL pre-trained here"
    rows = (f"{here} → dialogue, full", f"{here} → dialogue, full → dialogue")
    assert sweep.points[0].rows == {here: here, **dict.fromkeys(rows, f"{here}, full")}
    (first,) = sweep.points[0].follow_ups
    assert first.recipe("/runs/one/model").method.image.name == "/runs/one/model"
    second = first.follow_ups[0].recipe("/runs/two/model").method
    assert (second.image.name, second.projector, second.frozen, second.tower_lr_factor) == (
        *["/runs/two/model"] * 2,
        False,
        0.1,
    )


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
