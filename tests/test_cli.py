from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cornerstone import cli
from cornerstone.data.manifest import Manifest
from cornerstone.data.shards import DataSet
from cornerstone.data.texts import SentenceFormat
from cornerstone.errors import CornerstoneError
from cornerstone.recipes.presets import PRESETS

COMMANDS = cli.command_names()


def run(capsys, *arguments) -> str:
    cli.main([str(a) for a in arguments])
    return " ".join(capsys.readouterr().out.split())


def exits(capsys, *arguments, status=1) -> str:
    with pytest.raises(SystemExit) as exit:
        cli.main([str(a) for a in arguments])
    assert exit.value.code == status
    output = capsys.readouterr()
    return " ".join((output.out + output.err).replace("│", " ").split())


@pytest.fixture
def no_ray(monkeypatch):
    """Commands that would start Ray run without it."""
    connected = []
    for module in ("cornerstone.runtime.cluster", "cornerstone.training.run"):
        monkeypatch.setattr(f"{module}.connect", lambda say: contextlib.nullcontext(connected.append(say)))
        monkeypatch.setattr(f"{module}.require", lambda placement, say: None)
    return connected


def test_the_commands_have_their_agreed_names():
    data = {f"data {name}" for name in ("scenes", "import", "derive", "mix", "pack", "questions", "stats", "verify")}
    models = {"train", "evaluate", "attention", "transfer", "embed", "convert", "export"}
    assert set(COMMANDS) == data | models | {"recaption", "features", "submit", "dashboards", "ui"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(capsys, command):
    text = exits(capsys, *command.split(), "--help", status=0)
    assert f"usage: cornerstone {command} [-h]" in text
    assert "show this help message" in text


@pytest.mark.parametrize("preset", PRESETS)
def test_the_help_of_train_shows_the_presets_and_the_values_of_the_chosen_one(capsys, preset):
    assert f"(default: {preset})" in exits(capsys, "train", "--help", "--preset", preset, status=0)
    text = exits(capsys, "train", "--help-all", "--preset", preset, status=0)
    assert f"--preset NAME {', '.join(PRESETS)}. (default: {preset})" in text
    assert f"--recipe.name STR (default: {preset})" in text


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("data",), ("data", "--help")])
def test_the_commands_are_listed(capsys, arguments):
    text = exits(capsys, *arguments, status=0)
    names = {command.split()[-1] for command in COMMANDS if command.startswith("data ") == ("data" in arguments)}
    assert all(f"• {name}" in text for name in names)


@pytest.mark.parametrize("arguments", [(), ("--help",), ("data", "--help"), ("data", "import", "--help"), ("trian",)])
def test_help_imports_neither_torch_nor_ray(arguments):
    """It answers in a fraction of a second."""
    program = (
        "import sys\nfrom cornerstone.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print('imported:', *{'torch', 'ray', 'transformers', 'mlflow', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == (1 if arguments == ("trian",) else 0), done.stderr
    assert done.stdout.splitlines()[-1] == "imported:"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trian",), "Unknown command 'trian'; did you mean 'train'?"),
        (("data", "import-pairs"), "Unknown command 'data import-pairs'; did you mean 'data import'?"),
        (("--preset", "smoke"), "Unknown command '--preset'"),
        (("data", "--out", "x"), "Unknown command 'data --out'"),
    ],
)
def test_an_unknown_command_is_an_error_with_the_nearest(capsys, arguments, message):
    assert f"Error: {message}" in exits(capsys, *arguments)


def test_a_missing_or_misspelt_option_ends_with_2(capsys, tmp_path):
    assert "--out" in exits(capsys, "data", "scenes", "--pairs", "4", status=2)
    assert "--image-size" in exits(
        capsys, "data", "scenes", "--out", tmp_path, "--pairs", "4", "--image-sise", "64", status=2
    )
    assert "--steps" in exits(capsys, "train", "--stpes", "4", status=2)
    assert "'many'" in exits(capsys, "train", "--steps", "many", status=2)


def test_an_interrupted_command_ends_with_130(capsys, monkeypatch, tmp_path):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.ScenesCommand, "run", interrupted)
    exits(capsys, "data", "scenes", "--out", tmp_path, "--pairs", "4", status=130)


def test_scenes_become_a_small_data_set_with_a_tokenizer(capsys, tmp_path):
    folder = tmp_path / "scenes"
    said = run(capsys, "data", "scenes", "--out", folder, "--pairs", 12, "--image-size", 32, "--seed", 3)
    manifest = Manifest.read(str(folder), "pairs")
    assert f"12 rows of scenes in {folder} (content {manifest.content_hash})" in said
    tokenizer = SentenceFormat((folder / "tokenizer.json").read_text(), max_tokens=62)
    assert tokenizer.encode_texts(["a red circle"])[0]
    again = tmp_path / "again"
    run(capsys, "data", "scenes", "--out", again, "--pairs", 12, "--image-size", 32, "--seed", 3)
    assert Manifest.read(str(again)).content_hash == manifest.content_hash
    assert (again / "tokenizer.json").read_text() == (folder / "tokenizer.json").read_text()
    assert "already holds a finished data set" in exits(capsys, "data", "scenes", "--out", folder, "--pairs", 12)


def test_an_evaluation_set_is_written_to_a_folder_of_its_name(capsys, tmp_path):
    arguments = ("data", "scenes", "--pairs", 8, "--image-size", 32, "--set", "lookalike")
    said = exits(capsys, *arguments, "--out", tmp_path / "other")
    assert f"--out {tmp_path}/other/lookalike" in said
    run(capsys, *arguments, "--out", tmp_path / "lookalike")
    assert DataSet.open(str(tmp_path / "lookalike")).manifest.tasks == ("lookalike",)


@pytest.mark.parametrize(
    ("options", "said"),
    [(("--pairs", "0"), "0"), (("--pairs", "4", "--image-size", "7"), "7"), (("--pairs", "-3"), "-3")],
)
def test_impossible_scenes_are_an_error(capsys, tmp_path, options, said):
    text = exits(capsys, "data", "scenes", "--out", tmp_path / "x", *options)
    assert text.startswith("Error:")
    assert said in text
    assert not (tmp_path / "x").exists()


def test_an_unknown_format_is_an_error_with_the_nearest(capsys, tmp_path, no_ray):
    said = exits(capsys, "data", "import", "pair-jsonl", tmp_path, "--out", tmp_path / "x")
    assert "Unknown format 'pair-jsonl'; did you mean 'pairs-jsonl'?" in said


def test_features_of_a_wrong_folder_are_refused_before_ray_starts(capsys, tmp_path, no_ray, pairs_folder):
    (tmp_path / "photo.jpg").touch()
    assert "is not a data set" in exits(capsys, "features", tmp_path, "--out", tmp_path / "x")
    assert "already holds a finished data set" in exits(capsys, "features", pairs_folder, "--out", pairs_folder)
    said = exits(capsys, "features", pairs_folder, "--out", tmp_path / "x", "--recipe", "scene")
    assert "Unknown preset 'scene'; did you mean 'scenes'?" in said
    assert no_ray == []


def test_training_on_a_wrong_folder_is_refused(capsys, no_ray, pairs_folder):
    assert "No data set at /nowhere" in exits(
        capsys, "train", "--preset", "photos", "--train", "/nowhere", "--tokenizer", pairs_folder
    )
    assert "Error: Unknown preset 'photo'; did you mean 'photos'?" in exits(capsys, "train", "--preset", "photo")
    assert "--workers" in exits(capsys, "train", "--preset", "photos", "--workers", "0")


@pytest.fixture
def small_recipe(pairs_folder):
    """Options of a small recipe on the small pairs."""
    text = ("--recipe.method.text.width", 16, "--recipe.method.text.layers", 1, "--recipe.method.text.heads", 2)
    sizes = ("--steps", 4, "--recipe.optimization.batch-size", 8, "--recipe.method.image.size", 32)
    return ("--preset", "photos", "--train", pairs_folder, "--tokenizer", pairs_folder, *sizes, *text)


def test_a_run_that_does_not_exist_cannot_be_resumed(capsys, no_ray, small_recipe):
    assert "No run 'lost' under" in exits(capsys, "train", *small_recipe, "--resume", "lost")


def test_a_dry_run_of_training(capsys, no_ray, small_recipe, pairs_folder):
    said = run(capsys, "train", *small_recipe, "--dry-run", "--workers", 2, "--placement.threads-per-worker", 1)
    assert f"50 pairs of pairs ({pairs_folder})" in said
    assert "8 pairs = 2 workers × 4" in said
    assert no_ray == []


@pytest.fixture(scope="module")
def model(tmp_path_factory, pairs_folder) -> Path:
    """A run's folder with a small untrained model."""
    import cornerstone.models  # noqa: F401 - repairs torchvision before timm is imported
    from cornerstone.inference.saved_model import save_model
    from cornerstone.models.image_tower import build_image_tower
    from cornerstone.models.lotlip import Lotlip
    from cornerstone.models.method import Inputs
    from cornerstone.recipes import CornerText, ImageTower, LotlipConfig

    config = LotlipConfig(
        image=ImageTower("test_vit.r160_in1k", pretrained=False, size=32),
        text=CornerText(name="", width=16, layers=1, heads=2, token_limit=32),
    )
    tokenizer = (Path(pairs_folder) / "tokenizer.json").read_text()
    tower = build_image_tower(config.image)
    inputs = Inputs(SentenceFormat(tokenizer, 30).vocab_size, tower.width, tower)
    method = Lotlip.build(config, inputs, seed=0)
    folder = tmp_path_factory.mktemp("run")
    save_model(str(folder / "model"), method, recipe={"name": "test"}, tokenizer_json=tokenizer)
    return folder


def test_a_model_is_evaluated_and_its_numbers_written(capsys, model, pairs_folder, tmp_path):
    path = tmp_path / "new" / "numbers.json"
    said = run(capsys, "evaluate", model, "--data", f"dci={pairs_folder}", "--json", path)
    numbers = json.loads(path.read_text())
    details = numbers.pop("details")
    names = [f"eval/{s}/{w}_r{k}" for s in ("dci", "dci-short") for w in ("i2t", "t2i") for k in (1, 5)]
    assert list(numbers) == list(details) == names
    assert all(0 <= value <= 100 for value in numbers.values())
    assert f"eval/dci/i2t_r5 {numbers['eval/dci/i2t_r5']:.2f} %" in said
    first = details["eval/dci/i2t_r1"]
    assert 0 <= first["low"] <= numbers["eval/dci/i2t_r1"] <= first["high"] < 100
    assert first["high"] > first["low"]  # also if no query was answered
    run(capsys, "evaluate", model / "model", "--task", "classification", "--data", pairs_folder, "--json", path)
    numbers = json.loads(path.read_text())
    assert set(numbers) == {"eval/pairs/top1", "eval/pairs/top5", "details"}
    assert numbers["details"]["eval/pairs/top1"]["queries"] == 50
    assert numbers["details"]["eval/pairs/top1"]["chance"] == pytest.approx(25)


def test_a_model_that_cannot_be_evaluated_is_an_error(capsys, model, pairs_folder, tmp_path):
    assert "No model at" in exits(capsys, "evaluate", tmp_path, "--data", pairs_folder)
    assert f"No data set at {tmp_path}/no" in exits(capsys, "evaluate", model, "--data", tmp_path / "no")
    assert "No set can be judged by lookalike" in exits(
        capsys, "evaluate", model, "--task", "lookalike", "--data", pairs_folder
    )
    assert "--task" in exits(capsys, "evaluate", model, "--task", "chess", "--data", pairs_folder, status=2)
    for device in ("cuda:99", "gpu"):
        assert "--device" in exits(capsys, "evaluate", model, "--data", pairs_folder, "--device", device)


def test_error_messages_may_contain_brackets(capsys):
    said = exits(capsys, "evaluate", "/runs/[/x]", "--data", "/data/[red]")
    assert "No data set at /data/[red]:" in said


def test_a_loaded_model_encodes(model):
    import cornerstone

    opened = cornerstone.load(str(model))
    assert opened.encode_text(["raw 3", "a 1 one. a 1 two."]).shape == (2, 64)
    features = opened.encode_text(["raw 3"], corners=True)
    assert features.shape == (1, 3, 64)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(1, 3))


def test_a_mixture_of_nothing_is_refused(capsys, tmp_path):
    assert "No data set is named: expected DIR=WEIGHT" in exits(capsys, "data", "mix", "--out", tmp_path / "x")


def test_transform_says_what_it_takes(model):
    import cornerstone

    with pytest.raises(CornerstoneError, match=r"transform got str \('bus.jpg'\): expected a PIL image, or the bytes"):
        cornerstone.load(str(model)).transform("bus.jpg")
