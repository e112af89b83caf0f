from __future__ import annotations

import shlex
import sys

import pytest

from cornerstone.errors import CornerstoneError
from cornerstone.recipes import Placement, preset
from cornerstone.recipes.options import RunOptions, again_with, parse


def given(*arguments):
    return parse(RunOptions, arguments, "run", "A run.")


def test_without_options_the_recipe_is_the_preset():
    assert given().resolved() == (preset("scenes"), Placement())
    assert given("--preset", "photos").resolved() == (preset("photos"), Placement())
    assert given("--preset=lotlip-3m").resolved() == (preset("lotlip-3m"), Placement())


def test_shortcuts():
    recipe, placement = given(
        *("--preset", "photos", "--train", "s3://b/train", "--eval", "/data/a", "dci=/data/b", "--steps", "30"),
        *("--workers", "4", "--zero-stage", "3", "--tokenizer", "t5", "--image-tower", "vit", "--limit-rows", "99"),
    ).resolved()
    expected = preset("photos").with_data(train="s3://b/train", tokenizer="t5", limit_rows=99)
    expected = expected.with_evaluation(sets=("/data/a", "dci=/data/b")).with_image(name="vit").with_steps(30)
    assert recipe == expected
    assert placement == Placement(workers=4, zero_stage=3)


def test_named_feature_stores_are_stored_features():
    recipe = given("--preset", "lotlip-100m", "--features", "/a", "s3://b").resolved()[0]
    assert (recipe.data.features, recipe.data.feature_stores) == ("stored", ("/a", "s3://b"))
    assert recipe.data.crop_scale == (1.0, 1.0)  # what is stored has seen one crop
    with pytest.raises(CornerstoneError, match=r"Stored features \(--features\) need a locked image tower"):
        given("--preset", "photos", "--features", "/a").resolved()


def test_a_shortcut_wins_over_the_field():
    recipe, placement = given(
        "--steps", "30", "--recipe.optimization.steps", "500", "--workers", "2", "--placement.workers", "5"
    ).resolved()
    assert recipe.optimization.steps == 30
    assert placement.workers == 2


def test_every_field_can_be_set():
    recipe, placement = given(
        *("--recipe.method.text.corner-tokens", "0", "--recipe.method.text.no-corner-mask", "--recipe.seed", "3"),
        *("--recipe.optimization.betas", "0.9", "0.95", "--recipe.data.captioners", "a", "b"),
        *("--placement.gpus-per-worker", "1"),
    ).resolved()
    expected = preset("scenes").with_text(corner_tokens=0, corner_mask=False).with_seed(3)
    assert recipe == expected.with_optimization(betas=(0.9, 0.95)).with_data(captioners=("a", "b"))
    assert placement.gpus_per_worker == 1


@pytest.mark.parametrize("option", ["--train", "--eval"])
def test_user_data_does_not_use_the_validation_set_of_scenes(option):
    assert preset("scenes").evaluation.best == "eval/validation/i2t_r1"
    assert given(option, "/data").resolved()[0].evaluation.best == ""
    chosen = given(option, "/data", "--recipe.evaluation.best", "eval/dci/i2t_r1").resolved()[0]
    assert chosen.evaluation.best == "eval/dci/i2t_r1"


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as exit:
        given(*arguments)
    assert exit.value.code == 2
    output = capsys.readouterr()
    return " ".join((output.out + output.err).replace("│", " ").split())


def test_a_misspelt_option_is_an_error_with_the_nearest(capsys):
    said = refused(capsys, "--recipe.method.text.corner-token", "2")
    assert "--recipe.method.text.corner-token" in said
    assert "--recipe.method.text.corner-tokens" in said


@pytest.mark.parametrize(
    ("option", "value"),
    [("--steps", "many"), ("--zero-stage", "1.5"), ("--recipe.data.features", "sometimes"), ("--recipe.seed", "x")],
)
def test_a_wrong_type_is_an_error(capsys, option, value):
    said = refused(capsys, option, value)
    assert option in said
    assert value in said


def test_an_unknown_preset_is_an_error_with_the_nearest():
    with pytest.raises(CornerstoneError, match="Unknown preset 'scene'; did you mean 'scenes'"):
        given("--preset", "scene")


def test_impossible_values_are_errors_as_in_python():
    with pytest.raises(CornerstoneError, match="--workers"):
        given("--workers", "0").resolved()
    with pytest.raises(CornerstoneError, match="--steps"):
        given("--steps", "0").resolved()


def test_help_shows_the_presets_own_defaults(capsys):
    with pytest.raises(SystemExit) as exit:
        given("--preset", "lotlip-3m", "--help-all")
    assert exit.value.code == 0
    assert "bert-base-uncased" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["/bin/cornerstone", "train", "--steps", "3"], "train --steps 3 --resume R"),
        (["/bin/cornerstone", "train", "--resume", "old", "--steps", "3"], "train --steps 3 --resume R"),
        (["/bin/cornerstone", "train", "--resume=old", "--steps", "3"], "train --steps 3 --resume R"),
        (["/bin/cornerstone", "train", "--eval", "a b=/c d"], "train --eval 'a b=/c d' --resume R"),
    ],
)
def test_the_command_that_continues(before, after):
    assert again_with(before, "--resume", "R") == f"/bin/cornerstone {after}"


def test_a_package_that_python_runs_is_run_so_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = again_with(["/opt/site/cornerstone/__main__.py", "train", "--resume", "x"], "--resume", "y")
    assert shlex.split(command) == [sys.executable, "-m", "cornerstone", "train", "--resume", "y"]


def test_the_command_of_an_experiment_is_started_by_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "experiments" / "ablate.py"
    script.parent.mkdir()
    script.touch()
    command = again_with([str(script), "--only", "2, no mask"], "--continue", "s")
    assert shlex.split(command) == [sys.executable, "experiments/ablate.py", "--only", "2, no mask", "--continue", "s"]


def test_the_aliases_that_everybody_types(tmp_path):
    recipe, _ = given("--lr", "5e-4", "--batch-size", "32", "--steps", "30").resolved()
    assert (recipe.optimization.learning_rate, recipe.optimization.batch_size) == (5e-4, 32)
    assert recipe.optimization.warmup_steps == 10  # and not 3: the loss would jump
    assert preset("scenes").with_steps(8).optimization.warmup_steps == 4


def test_the_short_help_lists_no_field_of_the_recipe(capsys):
    with pytest.raises(SystemExit):
        given("--preset", "photos", "--help")
    text = capsys.readouterr().out
    unwrapped = " ".join(text.replace("│", " ").split())
    assert all(part in unwrapped for part in ("--lr", "--help-all", "(default: photos)"))
    assert "--recipe." not in text
    assert len(text.splitlines()) < 80


def test_a_command_that_is_printed_names_a_python_that_is_there(tmp_path, monkeypatch):
    """Where the virtual environment lies in the folder by its relative path; in a job on a cluster as `python`."""
    script = tmp_path / "x.py"
    script.touch()
    monkeypatch.setattr("sys.executable", str(tmp_path / ".venv/bin/python"))
    monkeypatch.chdir(tmp_path)
    assert again_with([str(script)], "--continue", "s") == ".venv/bin/python x.py --continue s"
    monkeypatch.setattr("sys.executable", "/opt/python/bin/python")
    assert again_with([str(script)], "--continue", "s") == "/opt/python/bin/python x.py --continue s"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert again_with([str(script)], "--continue", "s") == "python x.py --continue s"
