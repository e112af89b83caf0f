from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch

from cornerstone import cli
from cornerstone.data.manifest import Manifest
from cornerstone.data.shards import DataSet
from cornerstone.data.texts import TextTokenizer

COMMANDS = [" ".join(words) for words in cli.COMMANDS]


def run(capsys, *arguments) -> str:
    cli.main([str(a) for a in arguments])
    return " ".join(capsys.readouterr().out.split())


def failed(capsys, *arguments, status=1) -> str:
    with pytest.raises(SystemExit) as exit:
        cli.main([str(a) for a in arguments])
    assert exit.value.code == status
    output = capsys.readouterr()
    return " ".join((output.out + output.err).replace("│", " ").split())


@pytest.fixture
def no_ray(monkeypatch):
    """Commands that would start Ray go on without it."""
    connected = []
    for module in ("cornerstone.runtime.cluster", "cornerstone.training.run"):
        monkeypatch.setattr(f"{module}.connect", lambda say: contextlib.nullcontext(connected.append(say)))
        monkeypatch.setattr(f"{module}.require", lambda placement, say: None)
    return connected


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(capsys, command):
    text = failed(capsys, *command.split(), "--help", status=0)
    assert f"usage: cornerstone {command}" in text
    assert cli.COMMANDS[tuple(command.split())][0].__doc__.split(".")[0] in text


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("data",), ("data", "--help")])
def test_the_commands_are_listed(capsys, arguments):
    text = run(capsys, *arguments)
    assert all(f"cornerstone {command}" in text for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("trian",), "Unknown command 'trian'; did you mean 'train'?"),
        (("data", "import-pairs"), "Unknown command 'data import-pairs'; did you mean 'data import'?"),
        (("--preset", "smoke"), "Unknown command '--preset'"),
    ],
)
def test_an_unknown_command_is_met_with_the_nearest(capsys, arguments, said):
    assert f"Error: {said}" in failed(capsys, *arguments)


def test_a_missing_or_misspelt_option_ends_with_2(capsys, tmp_path):
    assert "--pairs" in failed(capsys, "data", "scenes", "--out", tmp_path, status=2)
    assert "--image-size" in failed(
        capsys, "data", "scenes", "--out", tmp_path, "--pairs", "4", "--image-sise", "64", status=2
    )


def test_an_interrupted_command_ends_with_130(capsys, monkeypatch, tmp_path):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.ScenesCommand, "run", interrupted)
    failed(capsys, "data", "scenes", "--out", tmp_path, "--pairs", "4", status=130)


def test_scenes_become_a_small_data_set_with_a_tokenizer(capsys, tmp_path):
    folder = tmp_path / "scenes"
    said = run(capsys, "data", "scenes", "--out", folder, "--pairs", 12, "--image-size", 32, "--seed", 3)
    manifest = Manifest.read(str(folder), "pairs")
    assert f"12 rows of scenes in {folder} (content {manifest.content_hash})" in said
    tokenizer = TextTokenizer((folder / "tokenizer.json").read_text(), limit=64, corners=2)
    assert tokenizer.encode(["a red circle"])[0]
    again = tmp_path / "again"
    run(capsys, "data", "scenes", "--out", again, "--pairs", 12, "--image-size", 32, "--seed", 3)
    assert Manifest.read(str(again)).content_hash == manifest.content_hash
    assert (again / "tokenizer.json").read_text() == (folder / "tokenizer.json").read_text()
    assert "already holds a finished data set" in failed(capsys, "data", "scenes", "--out", folder, "--pairs", 12)


def test_an_evaluation_set_lies_in_a_folder_of_its_name(capsys, tmp_path):
    arguments = ("data", "scenes", "--pairs", 8, "--image-size", 32, "--set", "lookalike")
    said = failed(capsys, *arguments, "--out", tmp_path / "other")
    assert f"--out {tmp_path}/other/lookalike" in said
    run(capsys, *arguments, "--out", tmp_path / "lookalike")
    assert DataSet.open(str(tmp_path / "lookalike")).manifest.tasks == ("lookalike",)


@pytest.mark.parametrize(
    ("options", "said"),
    [(("--pairs", "0"), "0"), (("--pairs", "4", "--image-size", "7"), "7"), (("--pairs", "-3"), "-3")],
)
def test_scenes_that_cannot_be_are_refused(capsys, tmp_path, options, said):
    text = failed(capsys, "data", "scenes", "--out", tmp_path / "x", *options)
    assert text.startswith("Error:")
    assert said in text
    assert not (tmp_path / "x").exists()


def test_an_import_of_an_unknown_format_is_met_with_the_nearest(capsys, tmp_path, no_ray):
    said = failed(capsys, "data", "import", "pair-jsonl", tmp_path, "--out", tmp_path / "x")
    assert "Unknown format 'pair-jsonl'; did you mean 'pairs-jsonl'?" in said


def test_features_of_a_wrong_folder_are_refused_before_ray_starts(capsys, tmp_path, no_ray, pairs_folder):
    (tmp_path / "photo.jpg").touch()
    assert "is not a data set" in failed(capsys, "features", tmp_path, "--out", tmp_path / "x")
    assert "already holds a finished data set" in failed(capsys, "features", pairs_folder, "--out", pairs_folder)
    said = failed(capsys, "features", pairs_folder, "--out", tmp_path / "x", "--recipe", "scene")
    assert "Unknown preset 'scene'; did you mean 'scenes'?" in said
    assert no_ray == []


def test_training_on_a_wrong_folder_is_refused(capsys, no_ray, pairs_folder):
    assert "No data set at /nowhere" in failed(
        capsys, "train", "--preset", "photos", "--train", "/nowhere", "--tokenizer", pairs_folder
    )
    assert "Error: Unknown preset 'photo'; did you mean 'photos'?" in failed(capsys, "train", "--preset", "photo")
    assert "--workers" in failed(capsys, "train", "--preset", "photos", "--workers", "0")


@pytest.fixture
def little(pairs_folder):
    """Options of a little recipe on the small pairs."""
    text = ("--recipe.method.text.width", 16, "--recipe.method.text.layers", 1, "--recipe.method.text.heads", 2)
    sizes = ("--steps", 4, "--recipe.optimization.batch-size", 8, "--recipe.method.image.size", 32)
    return ("--preset", "photos", "--train", pairs_folder, "--tokenizer", pairs_folder, *sizes, *text)


def test_a_run_that_never_was_cannot_go_on(capsys, no_ray, little):
    assert "No run 'lost' under" in failed(capsys, "train", *little, "--resume", "lost")


def test_a_dry_run_of_training(capsys, no_ray, little, pairs_folder):
    said = run(capsys, "train", *little, "--dry-run", "--workers", 2, "--placement.threads-per-worker", 1)
    assert f"50 pairs of pairs ({pairs_folder})" in said
    assert "8 pairs = 2 workers × 4" in said
    assert no_ray == []


@pytest.fixture(scope="module")
def model(tmp_path_factory, pairs_folder) -> Path:
    """A run's folder with an untrained little model."""
    import cornerstone.models  # noqa: F401 - mends torchvision, which timm imports
    from cornerstone.inference.saved_model import save_model
    from cornerstone.models.image_tower import build_image_tower
    from cornerstone.models.lotlip import Lotlip
    from cornerstone.recipes import CornerText, ImageTower, LotlipConfig

    config = LotlipConfig(
        image=ImageTower("test_vit.r160_in1k", pretrained=False, size=32),
        text=CornerText(name="", width=16, layers=1, heads=2, token_limit=32),
    )
    tokenizer = (Path(pairs_folder) / "tokenizer.json").read_text()
    vocabulary = TextTokenizer(tokenizer, 32, 2).vocab_size
    tower = build_image_tower(config.image)
    method = Lotlip(config, vocab_size=vocabulary, image_width=tower.width, image_tower=tower)
    folder = tmp_path_factory.mktemp("run")
    recipe = {"method": {"text": {"token_limit": 32, "corner_tokens": 2}, "image": {"size": 32}}}
    save_model(str(folder / "model"), method, config=config, recipe=recipe, tokenizer_json=tokenizer)
    return folder


def test_a_model_is_judged_and_its_numbers_written(capsys, model, pairs_folder, tmp_path):
    path = tmp_path / "new" / "numbers.json"
    said = run(capsys, "evaluate", model, "--data", f"dci={pairs_folder}", "--json", path)
    numbers = json.loads(path.read_text())
    assert list(numbers) == [f"eval/{s}/{w}_r{k}" for s in ("dci", "dci-short") for w in ("i2t", "t2i") for k in (1, 5)]
    assert all(0 <= value <= 100 for value in numbers.values())
    assert f"eval/dci/i2t_r5 {numbers['eval/dci/i2t_r5']:.2f} %" in said
    run(capsys, "evaluate", model / "model", "--task", "classification", "--data", pairs_folder, "--json", path)
    assert set(json.loads(path.read_text())) == {"eval/pairs/top1", "eval/pairs/top5"}


def test_what_cannot_be_judged_is_said(capsys, model, pairs_folder, tmp_path):
    assert "No model at" in failed(capsys, "evaluate", tmp_path, "--data", pairs_folder)
    assert f"No data set at {tmp_path}/no" in failed(capsys, "evaluate", model, "--data", tmp_path / "no")
    assert "No set can be judged by lookalike" in failed(
        capsys, "evaluate", model, "--task", "lookalike", "--data", pairs_folder
    )
    assert "--task" in failed(capsys, "evaluate", model, "--task", "chess", "--data", pairs_folder, status=2)


def test_errors_are_shown_whole_even_with_brackets(capsys):
    said = failed(capsys, "evaluate", "/runs/[/x]", "--data", "/data/[red]")
    assert "No data set at /data/[red]:" in said


def test_a_loaded_model_encodes(model):
    import cornerstone

    opened = cornerstone.load(str(model))
    assert opened.encode_text(["raw 3", "a 1 one. a 1 two."]).shape == (2, 64)
    features = opened.encode_text(["raw 3"], corners=True)
    assert features.shape == (1, 3, 64)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(1, 3))
