"""Transfer to a classification: what it refuses, what it trains, and that its numbers mean something."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import cornerstone.models  # noqa: F401 - repairs torchvision before timm is imported
from cornerstone import cli
from cornerstone.data.images import Transform
from cornerstone.data.pairs.image_input import DecodedImages
from cornerstone.data.pairs.labelled import LabelledImages
from cornerstone.data.plan import Plan
from cornerstone.data.shards import DataSet
from cornerstone.errors import CornerstoneError
from cornerstone.models.classifier import Classifier
from cornerstone.models.method import Inputs
from cornerstone.recipes.classifier import ClassifierConfig
from cornerstone.recipes.recipe import Optimization
from cornerstone.transfer.classification import LabelledData, classify
from cornerstone.transfer.fitting import Fitting, fit, held_out, right
from cornerstone.transfer.images import Held, Split, read
from cornerstone.transfer.options import Options
from cornerstone.transfer.towers import open_tower, random_like

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}
CPU = torch.device("cpu")


def coloured(i: int, name: str) -> bytes:
    noise = np.random.default_rng(i).integers(-40, 40, (24, 24, 3))
    stream = io.BytesIO()
    Image.fromarray(np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def colours(tmp_path_factory, small_data):
    """A training and a test folder of coloured noise; they count their classes in other orders."""
    folder = tmp_path_factory.mktemp("colours")
    made = {}
    for split, classes, images in (("train", ("red", "green", "blue"), 45), ("test", ("blue", "red", "green"), 21)):
        pairs = [
            small_data.pair(i, image=coloured(i + len(classes[0]), classes[i % 3]), label=i % 3) for i in range(images)
        ]
        made[split] = small_data.write(folder / split, pairs, classes=classes)
    return made


def options(colours, **changes) -> Options:
    usual = {"steps": 30, "batch_size": 15, "learning_rates": (3e-3,), "say": lambda text: None}
    return Options(**{"train": colours["train"], "test": f"hues={colours['test']}", **usual, **changes})


def test_a_tower_is_measured_beside_a_floor_and_a_ceiling(colours, tiny_tower):
    result = classify(tiny_tower, options(colours, ceiling="scratch", seeds=2))
    named = {row.name: row for row in result.rows}
    assert set(named) == {
        *("top1", "linear_top1", "knn_top1", "floor_top1", "floor_linear_top1", "floor_knn_top1", "ceiling_top1")
    }
    assert result.data == "hues"
    assert named["linear_top1"].value > 90  # colours are in any tower's mean patch; classes are matched by their names
    assert named["top1"].value > 90
    assert named["top1"].score_SQ.shape == (2, 21)
    assert (named["top1"].mode, named["ceiling_top1"].mode) == ("frozen", "full")
    assert any("2 seeds" in note for note in result.notes)
    low, high = named["top1"].over_images()
    assert low <= named["top1"].value <= high


def test_patches_that_memory_does_not_hold_are_computed_anew(colours, tiny_tower):
    held, online = (classify(tiny_tower, options(colours, seeds=1, steps=4, memory_gb=gb)) for gb in (8.0, 0.0))
    for one, other in zip(held.rows, online.rows, strict=True):
        np.testing.assert_array_equal(one.score_SQ, other.score_SQ)


def test_a_frozen_tower_stays_and_a_trained_one_learns_at_its_own_rate(colours, tiny_tower):
    tower = open_tower(tiny_tower)
    source, _ = LabelledData.open(colours["train"], colours["test"]).sources(tower.size, (1.0, 1.0))
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    split = read(source, None, CPU, memory=2**30)
    for frozen in (True, False):
        config = ClassifierConfig(3, frozen=frozen, tower_lr_factor=0.01)
        model = Classifier.build(config, Inputs(0, 32, random_copy(tower)), 0)
        scales = {group.lr_scale for group in model.parameter_groups() if group.parameters}
        assert scales == ({1.0} if frozen else {1.0, 0.01})
        assert ("visual.model.pos_embed" in dict(model.named_parameters())) is not frozen
        fitting = Fitting(Optimization(2, 15, 1e-2, 0), Plan(source.parts, 15, 0))
        trained = fit(lambda seed, model=model: model, split, split.usable, fitting, 0)
        moved = [n for n, v in trained.image_tower.state_dict().items() if not torch.equal(v, before[n])]
        assert bool(moved) is not frozen


def random_copy(tower):
    copy = random_like(tower, 0)
    copy.load_state_dict(tower.state_dict())
    return copy.requires_grad_(True)


def test_a_random_tower_has_the_same_shapes_and_its_seed_draws_it(tiny_tower):
    tower = open_tower(tiny_tower)
    one, again, other = (random_like(tower, seed).state_dict() for seed in (0, 0, 1))
    assert {n: v.shape for n, v in one.items()} == {n: v.shape for n, v in tower.state_dict().items()}
    assert torch.equal(one["model.pos_embed"], again["model.pos_embed"])
    assert not torch.equal(one["model.pos_embed"], other["model.pos_embed"])


def test_the_learning_rate_is_chosen_on_held_out_training_images(colours, tiny_tower, monkeypatch):
    """Heads that are compared never see the held-out rows, nor does the choice see a test row; the final heads see all."""
    fitted, judged, said = [], [], []

    def fit_watched(build, split, rows, fitting, seed):
        fitted.append((fitting.optimization.learning_rate, set(rows.tolist())))
        return fit(build, split, rows, fitting, seed)

    def right_watched(model, split, rows):
        judged.append((len(split.label_N), set(rows.tolist())))
        return right(model, split, rows)

    monkeypatch.setattr("cornerstone.transfer.classification.fit", fit_watched)
    monkeypatch.setattr("cornerstone.transfer.classification.right", right_watched)
    result = classify(tiny_tower, options(colours, learning_rates=(1e-9, 3e-3), seeds=2, say=said.append))
    held = set(held_out(np.arange(45), 0.2).tolist())
    assert len(held) == 9
    assert fitted == 2 * [*((rate, set(range(45)) - held) for rate in (1e-9, 3e-3)), *2 * [(3e-3, set(range(45)))]]
    assert judged == 2 * [
        *2 * [(45, held)],
        *2 * [(21, set(range(21)))],
    ]  # the tower, then the floor: equally many trials
    assert [row.learning_rate for row in result.rows if row.name.endswith("top1") and row.drawn] == [3e-3, 3e-3]
    assert any("9 held-out training images" in line for line in said)
    assert any("largest one tried" in line for line in said)


def test_a_tie_is_wrong():
    images = Held(torch.zeros(4, 2, 8), torch.tensor([0, 1, 2, 0]), torch.ones(4, dtype=torch.bool))
    split = Split(images, lambda seed: images, images.label_N, images.valid_N, torch.zeros(4, 0))
    model = Classifier.build(ClassifierConfig(3), Inputs(0, 8), 0)
    for parameter in model.head.parameters():
        torch.nn.init.zeros_(parameter)
    assert right(model, split, np.arange(4)).tolist() == [False] * 4
    model.head[1].bias.data[0] = 1
    assert right(model, split, np.arange(4)).tolist() == [True, False, False, True]
    model.head[1].bias.data[0] = float("nan")
    assert right(model, split, np.arange(4)).tolist() == [False] * 4


def test_rows_without_label_or_image_are_left_out(tmp_path, small_data, tiny_tower):
    pairs = [small_data.pair(i) for i in range(8)]
    pairs[2] = replace(pairs[2], label=None)
    pairs[5] = replace(pairs[5], image=b"broken")
    folder = small_data.write(tmp_path / "some", pairs, classes=("a", "b", "c", "d"))
    source = LabelledImages.of(DataSet.open(folder), DecodedImages(Transform(32, (1.0, 1.0))), (0, 1, 2, 3))
    split = read(source, open_tower(tiny_tower), CPU, memory=0)
    assert split.usable.tolist() == [0, 1, 3, 4, 6, 7]
    assert split.label_N.tolist() == [0, 1, -1, 3, 0, -1, 2, 3]
    batch = source.batch(0, source.open().take(np.array([5, -1, 2]), np.zeros(3, dtype=np.int64)))
    assert [one.reason for one in batch.bad][1] == "no label"
    assert not batch.valid.any()


def test_what_cannot_be_transferred_is_refused(colours, tmp_path, small_data, tiny_tower):
    unlabelled = small_data.write(tmp_path / "plain", [small_data.pair(i, label=None) for i in range(8)])
    with pytest.raises(CornerstoneError, match=r"has no classes \(--train\)"):
        classify(tiny_tower, options({**colours, "train": unlabelled}))
    empty = small_data.write(tmp_path / "null", [small_data.pair(i, label=None) for i in range(8)], classes=("red",))
    with pytest.raises(CornerstoneError, match=r"None of the 8 rows of .*null has a label"):
        classify(tiny_tower, options({**colours, "test": empty}))
    pairs = [small_data.pair(i) for i in range(8)]
    more = small_data.write(tmp_path / "more", pairs, classes=("red", "mauve", "pink", "blue"))
    with pytest.raises(CornerstoneError, match=r"2 classes of .*more are not in .*'mauve' among them"):
        classify(tiny_tower, options({**colours, "test": more}))
    with pytest.raises(CornerstoneError, match=r"sees 32 pixels, but --image-size 64"):
        open_tower(saved(tmp_path, tiny_tower), 64)
    with pytest.raises(CornerstoneError, match=r"patches of 16 .*--image-size 96"):
        open_tower("random:vit_tiny_patch16_224", 100)
    with pytest.raises(CornerstoneError, match="No model at"):
        open_tower(str(tmp_path))
    with pytest.raises(CornerstoneError, match="--batch-size 45 or less"):
        classify(tiny_tower, options(colours, batch_size=64))
    with pytest.raises(CornerstoneError, match="--seeds"):
        options(colours, seeds=0)


def saved(tmp_path, tiny_tower) -> str:
    """A model of 32 pixels."""
    from cornerstone.inference.saved_model import save_model
    from cornerstone.models.image_tower import build_image_tower
    from cornerstone.recipes import ImageTower

    tower = build_image_tower(ImageTower(tiny_tower, size=32, locked=False))
    model = Classifier.build(ClassifierConfig(3, frozen=False), Inputs(0, tower.width, tower), 0)
    save_model(str(tmp_path / "saved"), model, recipe={}, tokenizer_json="{}")
    assert open_tower(str(tmp_path / "saved")).size == 32
    return str(tmp_path / "saved")


def test_a_tower_trained_with_an_uncovered_edge_is_used_as_it_was_trained(tmp_path):
    """The built-in scenes' own tower has patches of 21 pixels on images of 64."""
    import timm
    from timm.models import save_for_hf

    sizes = {"img_size": 32, "patch_size": 10, "embed_dim": 16, "depth": 1, "num_heads": 1}
    tower = timm.create_model("vit_tiny_patch16_224", num_classes=0, **sizes)
    seen = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    save_for_hf(
        tower, str(tmp_path), model_config={"model_args": sizes, "pretrained_cfg": seen}, safe_serialization=True
    )
    opened = open_tower(str(tmp_path))
    assert opened(torch.zeros(1, 3, 32, 32)).patches.shape == (1, 9, 16)
    with pytest.raises(CornerstoneError, match="--image-size 48 was given"):
        open_tower(saved(tmp_path, str(tmp_path)), 48)


def test_the_command_prints_a_table_and_writes_its_numbers(colours, tiny_tower, tmp_path, capsys):
    path = tmp_path / "numbers.json"
    given = ("transfer", tiny_tower, "--train", colours["train"], "--eval", f"hues={colours['test']}", "--steps", "4")
    cli.main([*given, "--batch-size", "15", "--learning-rates", "1e-3", "--json", str(path)])
    said = capsys.readouterr().out
    assert "Transfer to hues" in said
    assert "random weights (floor)" in said
    numbers = json.loads(path.read_text())
    details = numbers["details"]["eval/hues/top1"]
    assert len(details["by_seed"]) == 3
    assert details["low"] <= numbers["eval/hues/top1"] <= details["high"]
    assert numbers["eval/hues/top1"] == pytest.approx(sum(details["by_seed"]) / 3)
