"""Transfer to dialogue: the whole path on coloured images, its refusals, and a pretrained language model of either task."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import BertConfig, BertForMaskedLM, OPTConfig, OPTForCausalLM, OPTModel

import cornerstone.models  # noqa: F401 - repairs torchvision before timm is imported
from cornerstone import cli
from cornerstone.data.conversations.chat import SYSTEM
from cornerstone.data.conversations.turns import Turn, segments_of
from cornerstone.data.records import Caption, Document
from cornerstone.data.scenes.tokenizer import train_wordpiece
from cornerstone.data.shards import ShardWriter
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.ptb import in_python
from cornerstone.transfer.captioning import caption_by_transfer
from cornerstone.transfer.dialogue import converse
from cornerstone.transfer.options import DialogueOptions, Options

COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}
QUESTION = "which colour?"
PAPER_SIZES = {"text_width": 32, "text_layers": 1, "token_limit": 120}


def coloured(colour, i) -> bytes:
    noise = np.random.default_rng(i).integers(-15, 15, (24, 24, 3))
    stream = io.BytesIO()
    Image.fromarray(np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write(folder, conversations) -> str:
    with ShardWriter(str(folder), name=folder.name, kind="documents", rows_per_group=8) as writer:
        for number, (turns, image) in enumerate(conversations):
            writer.add(Document(f"{number}", segments_of(turns, image)))
    return str(folder)


def asked(i, image=None):
    colour = list(COLOURS)[i % 3]
    turns = (Turn("human", QUESTION, True, "colour"), Turn("gpt", colour))
    return turns, coloured(colour, i) if image is None else image


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "tokenizer.json"
    path.write_text(train_wordpiece([f"{SYSTEM} USER: {QUESTION} ASSISTANT: red green blue hello"] * 9, vocab_size=400))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory, tokens):
    folder = tmp_path_factory.mktemp("talks")
    alone = ((Turn("human", "hello"), Turn("gpt", "hello")), None)
    train = write(folder / "train", [*map(asked, range(48)), alone, alone, asked(0, b"no picture")])
    test = write(folder / "test", map(asked, range(100, 109)))
    (folder / "train" / "tokenizer.json").write_text(tokens.read_text())
    return {"train": train, "test": test}


@pytest.fixture(scope="module")
def language(tmp_path_factory, tokens):
    """A causal language model in Hugging Face's layout, with random weights."""
    folder = tmp_path_factory.mktemp("language")
    words = Tokenizer.from_file(str(tokens)).get_vocab_size()
    config = OPTConfig(
        vocab_size=words,
        hidden_size=32,
        word_embed_proj_dim=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        ffn_dim=64,
        max_position_embeddings=160,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    torch.manual_seed(0)
    OPTForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokens.read_text())
    return folder


def options(data, *, said=None, dialogue=None, **changes) -> Options:
    usual = {"steps": 60, "batch_size": 24, "learning_rates": (3e-3,), "seeds": 1, **PAPER_SIZES}
    of_dialogue = {"alignment_steps": 10, "alignment_batch_size": 24, "longest_answer": 4, **(dialogue or {})}
    say = (lambda text: None) if said is None else said.append
    given = {"train": data["train"], "test": data["test"], **usual, **changes}
    return Options(**given, say=say, dialogue=DialogueOptions(**of_dialogue))


def test_a_frozen_tower_learns_to_answer(data, tiny_tower):
    said = []
    result = converse(tiny_tower, options(data, said=said))
    named = {row.name: row for row in result.rows}
    assert result.data == "test"
    assert set(named) == {f"{p}{name}" for p in ("", "floor_") for name in ("accuracy", "accuracy_colour")}
    assert named["accuracy"].value > 90  # one of three colours by chance
    assert named["accuracy"].score_SQ.shape == (1, 9)
    assert any("2 of 51 conversations have no image" in text for text in said)
    assert any(text.startswith("1 of 51 training rows could not be used (row 50") for text in result.notes)
    assert any("language model begins at random weights" in note for note in result.notes)


@pytest.mark.parametrize("patches", ["second-last", "last"])
def test_a_full_transfer_and_either_layer_run(data, tiny_tower, patches):
    few = {"steps": 2, "batch_size": 12, "full": True, "memory_gb": 0.0}
    result = converse(tiny_tower, options(data, **few, dialogue={"patches": patches, "alignment_steps": 1}))
    assert {row.mode for row in result.rows} == {"full", "frozen"}


def test_patches_held_in_memory_give_what_pixels_give(data, tiny_tower):
    few = {"steps": 6, "batch_size": 12}
    held, decoded = (converse(tiny_tower, options(data, **few, memory_gb=memory)) for memory in (8.0, 0.0))
    assert [row.value for row in held.rows] == [row.value for row in decoded.rows]


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"micro_batch": 5}])
def test_bf16_and_micro_batches_run(data, tiny_tower, changes):
    result = converse(tiny_tower, options(data, steps=3, batch_size=12, **changes))
    assert result.rows[0].score_SQ.shape == (1, 9)


def test_a_transfer_repeats_seed_by_seed(data, tiny_tower):
    few = {"steps": 3, "batch_size": 12, "seeds": 2}
    first, again = (converse(tiny_tower, options(data, **few)) for _ in range(2))
    for one, other in zip(first.rows, again.rows, strict=True):
        np.testing.assert_array_equal(one.score_SQ, other.score_SQ)


def test_pairs_align_and_a_pretrained_language_model_learns(data, tiny_tower, language, small_data, tmp_path):
    pairs = [
        small_data.pair(i, image=coloured(colour, i), captions=(Caption("web", "raw", f"{colour} hello"),))
        for i, colour in enumerate([*COLOURS] * 6)
    ]
    alignment = small_data.write(tmp_path / "pairs", pairs)
    asked_for = {"alignment": alignment, "alignment_batch_size": 9}
    result = converse(tiny_tower, options(data, language_model=str(language), dialogue=asked_for))
    assert result.rows[0].value > 90
    assert not any("random weights and" in note or "First stage" in note for note in result.notes)


def test_captions_by_a_pretrained_language_model(tiny_tower, language, small_data, tmp_path, monkeypatch):
    monkeypatch.setattr("cornerstone.transfer.captioning.tokenizer", lambda say: in_python)
    texts = ("red one two three four", "five red two one green", "blue three one five two")
    made = {}
    for split, count in (("train", 36), ("test", 6)):
        pairs = [
            small_data.pair(i, image=coloured(colour, i + count), captions=(Caption("web", "raw", text),))
            for i, (colour, text) in enumerate(zip([*COLOURS] * (count // 3), texts * (count // 3), strict=True))
        ]
        made[split] = small_data.write(tmp_path / split, pairs)
    own = {"token_limit": 40, "learning_rates": (3e-3,), "steps": 80, "batch_size": 18}
    result = caption_by_transfer(tiny_tower, options(made, language_model=str(language), **own))
    named = {row.name: row for row in result.rows}
    assert named["bleu4"].value > 90
    assert not any("random weights and" in note for note in result.notes)


def broken(language, tmp_path, **changes):
    """The language model with another configuration."""
    folder = tmp_path / "broken"
    folder.mkdir()
    for path in language.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def refused(data, tiny_tower, folder, match, **changes):
    with pytest.raises(CornerstoneError, match=match):
        converse(tiny_tower, options(data, language_model=str(folder), **changes))


def test_language_models_that_cannot_be_used_are_refused(data, tiny_tower, language, tmp_path):
    refused(data, tiny_tower, tmp_path / "nothing", "Cannot load the (tokenizer|language model)")
    refused(data, tiny_tower, language, "has 160 positions, but 500 are asked for.*--token-limit", token_limit=500)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    bert = tmp_path / "bert"
    BertForMaskedLM(BertConfig(vocab_size=400, **sizes)).save_pretrained(bert)
    (bert / "tokenizer.json").write_bytes((language / "tokenizer.json").read_bytes())
    refused(data, tiny_tower, bert, "no causal language model .its architecture is BertForMaskedLM")
    headless = tmp_path / "headless"
    OPTModel(OPTConfig.from_pretrained(language)).save_pretrained(headless)
    (headless / "tokenizer.json").write_bytes((language / "tokenizer.json").read_bytes())
    refused(data, tiny_tower, headless, "its architecture is OPTModel")
    refused(data, tiny_tower, broken(language, tmp_path, eos_token_id=None), "names no token that ends a text")


def test_tokenizers_that_do_not_fit_are_refused(data, tiny_tower, language, tmp_path, wordpiece):
    refused(data, tiny_tower, broken(language, tmp_path, eos_token_id=9999), "ends a text of .* is the token 9999")
    large = tmp_path / "large"
    large.mkdir()
    words = " ".join(f"w{i}{j}" for i in range(30) for j in range(30))
    (large / "tokenizer.json").write_text(train_wordpiece([words], vocab_size=2000))
    refused(data, tiny_tower, language, "tokens, the language model .* name the model's own", tokenizer=str(large))
    bare = tmp_path / "bare"
    bare.mkdir()
    described = json.loads(wordpiece.read_text())
    described["post_processor"] = None
    for token in described["added_tokens"]:
        token["content"] = token["content"].replace("[", "<<").replace("]", ">>")
    names = {
        name.replace("[", "<<").replace("]", ">>") if len(name) > 3 else name: i
        for name, i in described["model"]["vocab"].items()
    }
    described["model"] |= {"vocab": names, "unk_token": "<<UNK>>"}
    (bare / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(CornerstoneError, match="no tokens that begin and end a text"):
        converse(tiny_tower, options(data, tokenizer=str(bare)))


def test_documents_that_are_no_conversations_are_refused(data, tiny_tower, tmp_path, small_data):
    from cornerstone.data.records import Segment

    with ShardWriter(str(tmp_path / "documents"), name="documents", kind="documents") as writer:
        for i in range(4):
            writer.add(Document(f"{i}", (Segment(image=small_data.picture(i)), Segment(text="a text"))))
    with pytest.raises(CornerstoneError, match=r"None of the first 4 rows of .* can be learnt: no speaker"):
        converse(tiny_tower, options(data, train=str(tmp_path / "documents"), tokenizer=data["train"]))
    with pytest.raises(CornerstoneError, match="holds no conversations, as 0 shows: no speaker"):
        converse(tiny_tower, options(data, test=str(tmp_path / "documents")))


@pytest.fixture
def pope(tmp_path):
    """Questions about three images, of which one is missing."""
    folder, images = tmp_path / "pope", tmp_path / "images"
    folder.mkdir(), images.mkdir()
    for i, colour in enumerate(list(COLOURS)[:2]):
        (images / f"{i}.png").write_bytes(coloured(colour, i))
    rows = [{"question_id": i, "image": f"{i}.png", "text": "is it?", "label": "no"} for i in range(3)]
    for split in ("random", "popular", "adversarial"):
        (folder / f"coco_pope_{split}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"benchmarks": ("pope",), "questions": (str(folder),), "images": (str(images),)}


def test_a_missing_image_is_wrong_and_reported(data, tiny_tower, pope, tmp_path):
    few = {"steps": 2, "batch_size": 12}
    written = {"written": str(tmp_path / "answers.json"), **pope}
    result = converse(tiny_tower, options(data, **few, dialogue=written))
    assert result.data == "dialogue"
    named = {row.name: row for row in result.rows}
    assert {"pope", "pope_precision", "floor_pope", "test"} <= set(named)
    assert named["pope_accuracy"].value <= 200 / 3 + 1e-6
    assert any("the images of 3 of 9 questions could not be read (random/2: missing file" in n for n in result.notes)
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert len(answers["pope"]) == 9
    assert {"question_id": "random/2", "answer": ""} in answers["pope"]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"questions": ()}, "1 benchmarks, but 0 files of questions"),
        ({"images": ()}, "1 of the benchmarks have a folder of images .pope., but 0"),
        ({"images": ("nowhere",)}, "No image folder of POPE at .*nowhere"),
        ({"answers": ("a.json",)}, "0 of the benchmarks keep their answers apart .none., but 1"),
        ({"benchmarks": ("gqa",)}, "No file of questions"),
    ],
)
def test_what_is_judged_must_fit_together(data, tiny_tower, pope, changes, match):
    with pytest.raises(CornerstoneError, match=match):
        converse(tiny_tower, options(data, dialogue=pope | changes))


def test_nothing_to_judge_is_refused(data, tiny_tower):
    with pytest.raises(CornerstoneError, match="give --eval DIR, or --benchmark NAME"):
        converse(tiny_tower, options(data, test=""))
    with pytest.raises(CornerstoneError, match="no room beside 16 patches"):
        converse(tiny_tower, options(data, token_limit=16))


def test_the_command_transfers_to_dialogue(data, tiny_tower, tmp_path, capsys):
    path = tmp_path / "numbers.json"
    sizes = ("--text-width", "32", "--text-layers", "1", "--token-limit", "120", "--longest-answer", "4")
    short = ("--steps", "2", "--alignment-steps", "1", "--batch-size", "12", "--seeds", "2")
    given = ("transfer", tiny_tower, "--task", "dialogue", "--train", data["train"], "--eval", f"hues={data['test']}")
    cli.main([*given, *sizes, *short, "--json", str(path)])
    assert "conversations accuracy" in capsys.readouterr().out
    numbers = json.loads(path.read_text())
    assert len(numbers["details"]["eval/hues/accuracy"]["by_seed"]) == 2
    assert "eval/hues/floor_accuracy_colour" in numbers
