"""Vicuna's format: exactly the answers and what ends them are learnt, and a question alone is how its conversation begins."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from cornerstone.data.conversations.chat import NO_IMAGE, SYSTEM, Chat
from cornerstone.data.conversations.turns import BadConversation, Turn, parsed, segments_of, turns_of

TEXTS = (SYSTEM, "USER: what is this? ASSISTANT: a red one.", "three four five, two")
TALK = (
    Turn("human", "what is this?", image=True),
    Turn("gpt", "a red one."),
    Turn("human", "three?"),
    Turn("gpt", "four"),
)


def byte_level() -> str:
    """As GPT-2's and OPT's: a space belongs to the word behind it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer.to_str()


@pytest.fixture(params=["wordpiece", "byte-level"])
def form(request, wordpiece):
    text = wordpiece.read_text() if request.param == "wordpiece" else byte_level()
    return Chat(text, first=2, last=1, max_tokens=400).open()


def encode(form, text):
    return form.tokenizer.encode(text, add_special_tokens=False).ids


def test_the_parts_are_vicunas(form):
    found = form.encode(TALK)
    before = [2, *encode(form, f"{SYSTEM} USER: ")]
    first = encode(form, "\nwhat is this? ASSISTANT: a red one.")
    second = encode(form, "USER: three? ASSISTANT: four")
    assert found.ids == [*before, *first, 1, *second, 1]
    assert found.image_place == len(before)


def test_only_answers_and_their_ends_are_learnt(form):
    found = form.encode(TALK)
    runs, run = [], []
    for token, learnt in zip(found.ids, found.target, strict=True):
        if learnt:
            run.append(token)
        elif run:
            runs.append(run)
            run = []
    runs.append(run)
    assert [form.decode(one[:-1]).replace(" .", ".") for one in runs] == ["a red one.", "four"]
    assert [one[-1] for one in runs] == [1, 1]


def test_a_question_alone_is_how_its_conversation_begins(form):
    whole = form.encode(TALK[:2])
    ids, place = form.prompt("what is this?")
    assert ids == whole.ids[: whole.target.index(True)]
    assert place == whole.image_place
    assert form.prompt("three?", image=False)[1] == NO_IMAGE


def test_a_question_too_long_keeps_the_end_of_the_prompt(wordpiece):
    form = Chat(wordpiece.read_text(), None, 3, max_tokens=600).open()
    ids, _ = form.prompt("one two " * 400)
    assert len(ids) == 600
    assert ids[-len(encode(form, "ASSISTANT:")) :] == encode(form, "ASSISTANT:")


def test_a_plain_caption_is_learnt_whole_and_the_request_left_out(wordpiece):
    text = wordpiece.read_text()
    found = Chat(text, 2, 3, 40, style="plain").open().encode(TALK[:2])
    form = Chat(text, 2, 3, 40).open()
    assert found.ids == [2, *encode(form, "a red one.\n")]
    assert found.target == [False] + [True] * (len(found.ids) - 1)
    assert found.image_place == 1
    assert Chat(text, None, 3, 40, style="plain").open().encode(TALK[:2]).image_place == 0


def test_what_is_behind_the_limit_is_cut_and_nothing_learnt_refused(wordpiece):
    text = wordpiece.read_text()
    whole = Chat(text, 2, 3, 4000).open().encode(TALK)
    first = whole.target.index(True)
    cut = Chat(text, 2, 3, first + 2).open().encode(TALK)
    assert cut.ids == whole.ids[: first + 2]
    assert sum(cut.target) == 2
    with pytest.raises(BadConversation, match=f"no answer within {first} tokens"):
        Chat(text, 2, 3, first).open().encode(TALK)
    with pytest.raises(BadConversation, match="before the image"):
        Chat(text, 2, 3, whole.image_place - 1).open().encode(TALK)


def test_the_image_moves_to_the_beginning_of_the_turn_that_names_it():
    said = [{"from": "human", "value": "one\n<image>"}, {"from": "gpt", "value": "two"}]
    assert parsed(said, True) == (Turn("human", "one", image=True), Turn("gpt", "two"))
    later = [*said[1:], {"from": "human", "value": "<image>\nthree"}, *said[1:]]
    assert [turn.image for turn in parsed(later, True)] == [False, True, False]
    unnamed = [{"from": "human", "value": "one"}, *said[1:]]
    assert [turn.image for turn in parsed(unnamed, True)] == [True, False]
    assert [turn.image for turn in parsed(unnamed, False)] == [False, False]


@pytest.mark.parametrize(
    ("turns", "image", "reason"),
    [
        ([{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "two"}], False, "no image"),
        ([{"from": "system", "value": "one"}], False, "wrong turn"),
        ([{"from": "human", "value": None}], False, "wrong turn"),
        (["one"], False, "wrong turn"),
        ([{"from": "human", "value": "one"}], False, "no answer"),
    ],
)
def test_other_lists_have_a_reason(turns, image, reason):
    with pytest.raises(BadConversation, match=reason):
        parsed(turns, image)


def test_segments_give_the_turns_back():
    turns = (Turn("human", "one", True, "colour"), Turn("gpt", "two"))
    rows = [segment.as_row() for segment in segments_of(turns, b"picture")]
    assert turns_of(rows) == (turns, b"picture")
    with pytest.raises(BadConversation, match="more than one image"):
        turns_of([rows[0], *rows])
    with pytest.raises(BadConversation, match="no speaker"):
        turns_of([{"kind": "text", "text": "a", "image": None, "extra": None}])
