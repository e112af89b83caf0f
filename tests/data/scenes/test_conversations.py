"""Questions about scenes: deterministic, true of the image, and not to be answered from their words."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from cornerstone import cli
from cornerstone.data.conversations.chat import SYSTEM
from cornerstone.data.conversations.turns import turns_of
from cornerstone.data.scenes.conversations import QUESTIONS, ConversationsSpec, conversation
from cornerstone.data.scenes.texts import NUMBERS
from cornerstone.data.scenes.world import BACKGROUND_NAMES, COLOUR_NAMES, NOUNS, SHAPES
from cornerstone.data.shards import DataSet
from cornerstone.data.texts import plain_tokenizer
from cornerstone.errors import CornerstoneError


def told(document):
    turns, image = turns_of([segment.as_row() for segment in document.segments])
    return [(one.kind, one.text, two.text) for one, two in zip(turns[::2], turns[1::2], strict=True)], image


def answers_by_hand(scene):
    """From the scene as it is stored: [species, cell, dx, dy] of each object, the large one first."""
    (species, cell, *_), count = scene["things"][0], len(scene["things"])
    rows, columns = ("top", "middle", "bottom"), ("left", "center", "right")
    return {
        "colour": COLOUR_NAMES[species // len(SHAPES)],
        "shape": SHAPES[species % len(SHAPES)],
        "name": NOUNS[species],
        "place": f"{rows[cell // 3]} {columns[cell % 3]}",
        "background": BACKGROUND_NAMES[scene["background"]],
        "count": NUMBERS[count],
    }


def test_answers_are_true_and_questions_name_no_species():
    spec, presence = ConversationsSpec(rows=200, questions=len(QUESTIONS)), Counter()
    for index in range(200):
        document = conversation(spec, index)
        scene = json.loads(document.extra)["scene"]
        found, image = told(document)
        assert image == document.segments[0].image
        expected = answers_by_hand(scene)
        colours = {COLOUR_NAMES[species // len(SHAPES)] for species, *_ in scene["things"]}
        for kind, question, answer in found:
            assert not set(question.lower().replace("?", " ").split()) & set(NOUNS)
            if kind == "presence":
                presence[answer] += 1
                assert answer == ("yes" if question.split()[3] in colours else "no")
            else:
                assert answer == expected[kind]
        assert {kind for kind, *_ in found} == set(QUESTIONS)
    assert 60 < presence["yes"] < 140


def test_sets_share_no_images_and_repeat():
    train, other = (ConversationsSpec(set=name, rows=4) for name in ("conversations", "conversations-validation"))
    assert conversation(train, 1) == conversation(train, 1)
    assert conversation(train, 1).segments[0].image != conversation(other, 1).segments[0].image
    with pytest.raises(CornerstoneError, match="not a set of conversations"):
        ConversationsSpec(set="documents")
    with pytest.raises(CornerstoneError, match="questions is 9"):
        ConversationsSpec(questions=9)


def test_the_command_writes_both_sets_and_a_tokenizer_that_knows_the_prompt(tmp_path, capsys):
    cli.main(["data", "scenes", "--conversations", "40", "--out", str(tmp_path / "talks"), "--image-size", "32"])
    cli.main(["data", "scenes", "--conversations", "4", "--set", "validation", "--out", str(tmp_path / "asked")])
    assert DataSet.open(str(tmp_path / "talks"), "documents").name == "conversations"
    assert DataSet.open(str(tmp_path / "asked")).name == "conversations-validation"
    tokenizer = plain_tokenizer((tmp_path / "talks" / "tokenizer.json").read_text())
    assert len(tokenizer.encode(SYSTEM, add_special_tokens=False).ids) < 30  # a word a token
    with pytest.raises(SystemExit):
        cli.main(["data", "scenes", "--conversations", "4", "--redundancy", "0.1", "--out", str(tmp_path / "no")])
    with pytest.raises(SystemExit):
        cli.main(["data", "scenes", "--conversations", "4", "--set", "short", "--out", str(tmp_path / "no")])
