"""Transfer to retrieval: it learns, the tower stays or learns slowly, and patches in memory are the images'."""

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
from cornerstone.data.pairs.source import PairEvaluation
from cornerstone.data.records import Caption
from cornerstone.data.shards import DataSet
from cornerstone.errors import CornerstoneError
from cornerstone.inference.saved_model import load, save_model
from cornerstone.models.method import Inputs
from cornerstone.models.retrieval_transfer import RetrievalTransfer
from cornerstone.recipes import BertText, ImageTower, PairData, preset
from cornerstone.recipes.retrieval_transfer import RetrievalTransferConfig
from cornerstone.transfer.options import Options
from cornerstone.transfer.patches import held_patches
from cornerstone.transfer.retrieval import retrieve_by_transfer
from cornerstone.transfer.towers import open_tower

WORDS = ("one", "two", "three", "four", "five", "by", "picture", "raw")
LEVELS = (30, 210)
TEXT = {"text_width": 32, "text_layers": 1, "token_limit": 16}


def coloured(colour, i) -> bytes:
    noise = np.random.default_rng(i).integers(-15, 15, (24, 24, 3))
    stream = io.BytesIO()
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def named_colours(tmp_path_factory, small_data, wordpiece):
    """Eight colours, each with a word of its own: 48 pairs to train on, 8 to test."""
    folder = tmp_path_factory.mktemp("named")
    colours = [(r, g, b) for r in LEVELS for g in LEVELS for b in LEVELS]
    made = {}
    for split, images in (("train", 48), ("test", 8)):
        pairs = [
            small_data.pair(
                i, image=coloured(colours[i % 8], i + images), captions=(Caption("web", "raw", WORDS[i % 8]),)
            )
            for i in range(images)
        ]
        made[split] = small_data.write(folder / split, pairs)
    (folder / "train" / "tokenizer.json").write_text(wordpiece.read_text())
    return made


def options(named_colours, **changes) -> Options:
    usual = {"steps": 120, "batch_size": 24, "learning_rates": (3e-3,), "seeds": 1, "say": lambda text: None, **TEXT}
    return Options(**{"train": named_colours["train"], "test": named_colours["test"], **usual, **changes})


def test_a_frozen_tower_learns_to_retrieve(named_colours, tiny_tower):
    result = retrieve_by_transfer(tiny_tower, options(named_colours))
    named = {row.name: row for row in result.rows}
    assert set(named) == {"i2t_r1", "t2i_r1", "floor_i2t_r1", "floor_t2i_r1"}
    assert named["i2t_r1"].value > 60  # by chance 12.5
    assert named["t2i_r1"].value > 60
    assert named["i2t_r1"].metric == "R@1"


def test_patches_in_memory_give_what_images_give(named_colours, tiny_tower):
    held, online = (
        retrieve_by_transfer(tiny_tower, options(named_colours, steps=3, memory_gb=gb)) for gb in (8.0, 0.0)
    )
    for one, other in zip(held.rows, online.rows, strict=True):
        np.testing.assert_array_equal(one.score_SQ, other.score_SQ)


def test_patches_stand_at_their_rows_and_broken_images_have_a_reason(tmp_path, small_data, tiny_tower, wordpiece):
    from cornerstone.data.texts import TextInput

    pairs = [small_data.pair(i) for i in range(5)]
    pairs[1] = replace(pairs[1], image=b"broken")
    data = DataSet.open(small_data.write(tmp_path / "some", pairs))
    tower, texts = open_tower(tiny_tower), TextInput("plain", wordpiece.read_text(), 8)

    def track(steps, what):
        return steps

    fixed = DecodedImages(Transform(tower.size, (1.0, 1.0), train=False))
    source = PairEvaluation(data.location.uri, len(data), fixed, texts, ())
    held = held_patches(source, tower, torch.device("cpu"), 2**30, track, "images")
    assert [bool(reason) for reason in held.reasons] == [False, True, False, False, False]
    assert not held.patches_NPV[1].any()
    out = np.zeros((2, *held.shape), dtype=np.float32)
    assert held.read(out, np.array([1, 0]), None, np.array([1, 4]), np.zeros(2), None)[1] == ""
    np.testing.assert_array_equal(out[0], held.patches_NPV[4])
    size = held.patches_NPV.nbytes
    assert held_patches(source, tower, torch.device("cpu"), size - 1, track, "images") is None


def built(tiny_tower, *, locked: bool) -> RetrievalTransfer:
    image = ImageTower(tiny_tower, size=32, locked=locked, pooling="none")
    config = RetrievalTransferConfig(image=image, text=BertText("", 32, 1, 2, 16))
    tower = open_tower(tiny_tower)
    return RetrievalTransfer.build(config, Inputs(256, tower.width, tower), 0)


def test_the_tower_has_a_learning_rate_of_its_own(tiny_tower):
    frozen, full = (built(tiny_tower, locked=locked) for locked in (True, False))
    assert {group.lr_scale for group in frozen.parameter_groups() if group.parameters} == {1.0}
    counts = dict.fromkeys((1.0, 0.01), 0)
    for group in full.parameter_groups():
        counts[group.lr_scale] += len(group.parameters)
    assert counts == {1.0: len(list(frozen.parameters())), 0.01: len(list(full.visual.parameters()))}
    full.train()
    full.encode_image(torch.zeros(2, 3, 32, 32)).sum().backward()
    assert full.visual.model.pos_embed.grad is not None
    assert built(tiny_tower, locked=True).encode_image(torch.zeros(2, 3, 32, 32)).requires_grad  # the pooling learns


def test_a_saved_model_encodes_as_before(tmp_path, tiny_tower, wordpiece):
    model = built(tiny_tower, locked=True).eval()
    save_model(str(tmp_path / "model"), model, recipe={}, tokenizer_json=wordpiece.read_text())
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(load(str(tmp_path / "model")).encode_image(images), model.encode_image(images))


def test_what_cannot_be_transferred_is_refused(named_colours, tmp_path, small_data, tiny_tower):
    with pytest.raises(CornerstoneError, match="has no long captions, only raw ones: set --captions raw"):
        retrieve_by_transfer(tiny_tower, options(named_colours, captions="long"))
    untold = small_data.write(
        tmp_path / "untold", [small_data.pair(i, captions=()) for i in range(8)], classes=("a",) * 4
    )
    with pytest.raises(CornerstoneError, match="No set can be judged by retrieval"):
        retrieve_by_transfer(tiny_tower, options({**named_colours, "test": untold}))
    with pytest.raises(CornerstoneError, match="trains its own pooling"):
        preset("lcl-retrieval").with_data(features="stored", crop_scale=(1.0, 1.0))
    with pytest.raises(CornerstoneError, match="pools patches itself"):
        built(tiny_tower, locked=True).encode_image(torch.zeros(2, 32))
    with pytest.raises(CornerstoneError, match="--tower-lr-factor"):
        RetrievalTransferConfig(tower_lr_factor=-1.0).check(PairData())


def test_the_command_transfers_to_retrieval(named_colours, tiny_tower, tmp_path, capsys):
    path = tmp_path / "numbers.json"
    given = ("transfer", tiny_tower, "--task", "retrieval", "--train", named_colours["train"], "--full", "--seeds", "2")
    sizes = ("--text-width", "32", "--text-layers", "1", "--token-limit", "16", "--steps", "2", "--batch-size", "16")
    cli.main(
        [*given, "--eval", f"hues={named_colours['test']}", *sizes, "--learning-rates", "1e-3", "--json", str(path)]
    )
    said = capsys.readouterr().out
    assert "image → text" in said
    details = json.loads(path.read_text())["details"]
    assert details["eval/hues/i2t_r1"]["mode"] == "full"
    assert details["eval/hues/floor_i2t_r1"]["mode"] == "frozen"
