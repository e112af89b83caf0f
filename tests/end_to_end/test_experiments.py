"""The experiment files: their points, and the commands that their docstrings and the README promise. Nothing is run."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace

import pytest

from cornerstone.recipes import preset
from cornerstone.recipes.lotlip import LotlipConfig
from cornerstone.recipes.options import parse
from cornerstone.recipes.siglip import SiglipConfig
from cornerstone.sweeps.main import ExperimentOptions, _with_preset

from .conftest import REPOSITORY, experiment

DEFINE = {
    "ablate_contrastive_weight": "contrastive_weight",
    "ablate_loss": "losses",
    "ablate_corner_tokens": "corner_tokens",
    "ablate_sub_captions": "sub_captions",
    "ablate_token_limit": "token_limit",
    "compare_losses": "losses",
    "compare_pretraining": "pretraining",
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


@pytest.mark.parametrize("command", [command for _, command in documents()], ids=" ".join)
def test_the_command_in_the_docstring_means_something(command):
    file, *arguments = command
    options = parse(ExperimentOptions, _with_preset(usual_preset(file), arguments), file, "")
    name = file.removesuffix(".py")
    recipe, placement = options.resolved()
    sweep = getattr(experiment(name), DEFINE[name])(recipe)
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
    points = getattr(experiment(name), DEFINE[name])(recipe).points
    hashes = [p.recipe.hash({}) for p in points]
    assert len(set(hashes)) == len(points)
    evaluation = points[0].recipe.evaluation
    assert replace(evaluation, skip_unsuited=False) == recipe.evaluation
    for point in points:
        images = recipe.optimization  # as many images a step, if a point reads the same documents as pairs
        if point.recipe.data.kind != recipe.data.kind:
            images = replace(images, batch_size=round(images.batch_size * recipe.data.images_per_sequence))
        assert (point.recipe.optimization, point.recipe.evaluation) == (images, evaluation)
        assert (point.recipe.method.image, point.recipe.seed) == (recipe.method.image, recipe.seed)


@pytest.mark.parametrize(("name", "tokens"), [("scenes-lcl", 16), ("lcl-mmc4-b16", 196)])
def test_pretraining_methods_share_tower_language_model_data_and_packing(name, tokens):
    recipe = preset(name)
    sweep = experiment("compare_pretraining").pretraining(recipe)
    assert [point.name for point in sweep.points] == ["LCL", "Flamingo", "Emu", "CLIP", "CoCa"]
    for point in sweep.points[:3]:
        assert point.recipe.with_seed(0).data == recipe.data
        assert (point.recipe.method.image, point.recipe.method.language) == (
            recipe.method.image,
            recipe.method.language,
        )
    assert sweep.points[2].recipe.method.tokens == tokens
    clip, coca = (point.recipe for point in sweep.points[3:])
    assert clip.data == coca.data == recipe.data.as_pairs()
    assert (clip.method.loss.caption_weight, coca.method.loss.caption_weight) == (0, 2)
    assert (clip.method.text.pooling, coca.method.text.pooling) == ("end", "trailing")
    assert clip.method.text == replace(coca.method.text, pooling="end")
    own = recipe.with_data(train="s3://bucket/packed")
    without = experiment("compare_pretraining").pretraining(own)
    assert [point.name for point in without.points] == ["LCL", "Flamingo", "Emu"]
    assert "--recipe.data.pairs" in without.notes[0]
    named = experiment("compare_pretraining").pretraining(own.with_data(pairs="s3://bucket/pairs"))
    assert {point.recipe.data.train for point in named.points} == {"s3://bucket/packed", "s3://bucket/pairs"}
    with pytest.raises(SystemExit, match="compares with LCL"):
        experiment("compare_pretraining").pretraining(preset("scenes"))
