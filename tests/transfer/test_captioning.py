"""Transfer to captioning: the loss is the text's alone, greedy captions are the model's own, and it learns to tell colours."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

import cornerstone.models  # noqa: F401 - repairs torchvision before timm is imported
from cornerstone import cli
from cornerstone.data.pairs.batch import PairBatch
from cornerstone.data.records import Caption
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.ptb import in_python
from cornerstone.inference.saved_model import load, save_model
from cornerstone.models.caption_transfer import CaptionTransfer
from cornerstone.models.method import Inputs
from cornerstone.recipes.caption_transfer import CaptionTransferConfig
from cornerstone.recipes.language import CausalText
from cornerstone.transfer.captioning import caption_by_transfer
from cornerstone.transfer.options import Options
from cornerstone.transfer.towers import open_tower

TEXTS = ("picture by one two three four", "raw two four five by one", "three five raw picture two four")
COLOURS = ((220, 30, 30), (30, 220, 30), (30, 30, 220))
LANGUAGE = CausalText(32, 1, 2, positions=40)


@pytest.fixture(autouse=True)
def without_java(monkeypatch):
    """Starting Java would take most of the time."""
    monkeypatch.setattr("cornerstone.transfer.captioning.tokenizer", lambda say: in_python)


@pytest.fixture(scope="module")
def told_colours(tmp_path_factory, small_data, wordpiece):
    folder = tmp_path_factory.mktemp("told")
    made = {}
    for split, images in (("train", 36), ("test", 6)):
        pairs = []
        for i in range(images):
            noise = np.random.default_rng(i + images).integers(-15, 15, (24, 24, 3))
            stream = io.BytesIO()
            Image.fromarray(np.clip(np.array(COLOURS[i % 3]) + noise, 0, 255).astype(np.uint8)).save(stream, "PNG")
            pairs.append(small_data.pair(i, image=stream.getvalue(), captions=(Caption("web", "raw", TEXTS[i % 3]),)))
        made[split] = small_data.write(folder / split, pairs)
    (folder / "train" / "tokenizer.json").write_text(wordpiece.read_text())
    return made


def options(told, **changes) -> Options:
    usual = {"steps": 80, "batch_size": 18, "learning_rates": (3e-3,), "seeds": 1, "say": lambda text: None}
    sizes = {"text_width": 32, "text_layers": 1, "token_limit": 16}
    return Options(**{"train": told["train"], "test": told["test"], **usual, **sizes, **changes})


def built(tiny_tower, *, frozen=True) -> CaptionTransfer:
    tower = open_tower(tiny_tower)
    return CaptionTransfer.build(CaptionTransferConfig(LANGUAGE, frozen), Inputs(64, tower.width, tower), 0)


def batch(image, ids, lengths, valid=(True, True)) -> PairBatch:
    none, rows = torch.zeros(2, 8, dtype=torch.int64), torch.arange(2)
    ids, lengths, valid = torch.tensor(ids), torch.tensor(lengths), torch.tensor(valid)
    return PairBatch(0, rows, valid, (), rows, ids, lengths, none, rows * 0, image)


def test_a_frozen_tower_learns_to_caption(told_colours, tiny_tower):
    result = caption_by_transfer(tiny_tower, options(told_colours))
    named = {row.name: row for row in result.rows}
    assert set(named) == {f"{prefix}{name}" for prefix in ("", "floor_") for name in ("cider", "bleu4", "rouge_l")}
    assert named["bleu4"].value > 90  # the three texts share no 4-gram
    assert named["rouge_l"].value > 90
    assert named["cider"].score_SQ.shape == (1, 6)
    assert np.isnan(named["bleu4"].over_images()).all()
    assert any("the paper's is a pretrained one" in note for note in result.notes)


def test_the_loss_is_the_mean_over_the_words_and_the_end(tiny_tower):
    """Against the logits of each token on its own, in a loop; padding and invalid rows change nothing."""
    model = built(tiny_tower).eval()
    image = torch.rand(2, 3, 32, 32)
    ids = [[2, 11, 12, 3], [2, 13, 3, 0]]
    one = batch(image, ids, [4, 3])
    found = model.losses(model(one), one).parts["generation"]
    tokens, losses = model.image_tokens(image), []
    for row, length in enumerate((4, 3)):
        for place in range(1, length):
            given = torch.tensor([ids[row][:place]])
            logits = model.head(model._read(tokens[row : row + 1], given)[:, -1])
            losses.append(functional.cross_entropy(logits, torch.tensor([ids[row][place]])))
    assert len(losses) == 5
    torch.testing.assert_close(found, torch.stack(losses).mean())
    padded = batch(image, [[*row, 7, 7] for row in ids], [4, 3])
    torch.testing.assert_close(model.losses(model(padded), padded).parts["generation"], found)
    alone = batch(image, ids, [4, 3], valid=(True, False))
    torch.testing.assert_close(model.losses(model(alone), alone).parts["generation"], torch.stack(losses[:3]).mean())


def test_greedy_captions_are_the_most_likely_tokens_and_stop_at_the_end(tiny_tower):
    model = built(tiny_tower).eval()
    image = torch.rand(3, 3, 32, 32)
    found = model.generate(image, first=2, last=3, longest=5)
    tokens = model.image_tokens(image)
    for row, caption in enumerate(found):
        given = [2]
        for _ in range(5):
            given.append(int(model.head(model._read(tokens[row : row + 1], torch.tensor([given]))[:, -1]).argmax()))
        expected = given[1 : given.index(3)] if 3 in given else given[1:]
        assert caption == expected
    ends = found[0][2] if len(set(found[0][:3])) == 3 else found[0][0]
    stopped = model.generate(image, first=2, last=ends, longest=5)[0]
    assert stopped == found[0][: found[0].index(ends)]


def test_a_tower_stays_or_learns_at_its_own_rate(tiny_tower):
    assert {group.lr_scale for group in built(tiny_tower).parameter_groups()} == {1.0}
    config = CaptionTransferConfig(LANGUAGE, False, 0.1)
    tower = open_tower(tiny_tower)
    model = CaptionTransfer.build(config, Inputs(64, tower.width, tower), 0)
    assert [group.lr_scale for group in model.parameter_groups()] == [1.0, 1.0, 0.1, 0.1]
    assert not built(tiny_tower).image_tower.model.pos_embed.requires_grad
    one = batch(torch.rand(2, 3, 32, 32), [[2, 11, 3], [2, 13, 3]], [3, 3])
    model.losses(model(one), one).parts["generation"].backward()
    assert model.visual.model.pos_embed.grad is not None


def test_a_saved_model_captions_as_before(tmp_path, tiny_tower, wordpiece):
    model = built(tiny_tower).eval()
    save_model(str(tmp_path / "model"), model, recipe={}, tokenizer_json=wordpiece.read_text())
    image = torch.rand(2, 3, 32, 32)
    again = load(str(tmp_path / "model")).module
    assert again.generate(image, 2, 3, 6) == model.generate(image, 2, 3, 6)


def test_data_without_captions_or_tokenizer_is_refused(told_colours, tmp_path, small_data, tiny_tower):
    with pytest.raises(CornerstoneError, match="leave out --captions"):
        caption_by_transfer(tiny_tower, options(told_colours, captions="long"))
    untold = small_data.write(tmp_path / "untold", [small_data.pair(i, captions=()) for i in range(8)])
    with pytest.raises(CornerstoneError, match=r"No image of .*untold has a raw caption"):
        caption_by_transfer(tiny_tower, options({**told_colours, "test": untold}))
    bare = small_data.write(tmp_path / "bare", [small_data.pair(i) for i in range(8)])
    with pytest.raises(CornerstoneError, match=r"No tokenizer: .*--tokenizer"):
        caption_by_transfer(tiny_tower, options({**told_colours, "train": bare}))


def test_the_command_transfers_to_captioning(told_colours, tiny_tower, tmp_path, capsys):
    path = tmp_path / "numbers.json"
    given = ("transfer", tiny_tower, "--task", "caption", "--train", told_colours["train"], "--seeds", "2")
    sizes = ("--text-width", "32", "--text-layers", "1", "--token-limit", "16", "--steps", "2", "--batch-size", "16")
    cli.main(
        [*given, "--eval", f"hues={told_colours['test']}", *sizes, "--learning-rates", "1e-3", "--json", str(path)]
    )
    assert "BLEU@4" in capsys.readouterr().out
    numbers = json.loads(path.read_text())
    assert numbers["details"]["eval/hues/bleu4"]["low"] is None
    assert len(numbers["details"]["eval/hues/cider"]["by_seed"]) == 2
