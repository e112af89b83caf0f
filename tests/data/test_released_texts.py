"""Each family's cleaning and token ids, against strings and ids that the families' own code made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from cornerstone.data.released_texts import CLEANING, ReleasedFormat, ReleasedTexts, lotlip
from cornerstone.data.texts import clean
from cornerstone.errors import CornerstoneError
from cornerstone.runtime.tokenizer import clip_tokenizer, load_tokenizer

FIXTURES = Path(__file__).parents[1] / "fixtures"
FAMILIES = {
    "clip": "clip",
    "canonicalize": "siglip_open_clip",
    "siglip": "siglip_transformers",
    "lotlip": "lotlip_input_0_corners",
}


def rows():
    with safe_open(FIXTURES / "text_cleaning.safetensors", "pt") as file:
        return json.loads(file.metadata()["rows"])


@pytest.mark.parametrize("name", FAMILIES)
def test_cleaning_is_the_families_own(name):
    for row in rows():
        assert CLEANING[name](row["text"]) == row[FAMILIES[name]]


@pytest.mark.parametrize(("name", "theirs"), [("clip", "lower"), ("whitespace",) * 2, ("canonicalize",) * 2])
def test_cleaning_is_open_clips(name, theirs):
    from open_clip.tokenizer import get_clean_fn

    for text in ("a <b> &amp;amp;  c", "It\u2019s_OK â€” \n x", "", " . ", "ÀB\u00a0c"):
        assert CLEANING[name](text) == get_clean_fn(theirs)(text)


def test_long_texts_of_lotlip_are_cleaned_before_their_sentences_are_parted():
    for row in rows():
        assert clean(row["text"]) == row["lotlip_long_eval"]
        assert "[Corner0] [Corner1]" + lotlip(clean(row["text"])) == row["lotlip_input_2_corners"]


def test_clips_tokens_are_long_clips_own():
    with safe_open(FIXTURES / "longclip_tokens.safetensors", "pt") as file:
        expected, texts = file.get_tensor("ids"), json.loads(file.metadata()["texts"])
    form = ReleasedTexts(ReleasedFormat.name, clip_tokenizer(), 248, "clip").open()
    for text, ids, wanted in zip(texts, form.encode_texts(texts), expected.tolist(), strict=True):
        padded = (ids or form.empty) + [0] * 248
        assert padded[:248] == wanted, text
    assert form.encode([["a photo of a cat."]]) == form.encode_texts(["a photo of a cat."])


def test_a_text_of_lotlip_that_ends_in_a_period_and_a_space_has_two_separators():
    form = ReleasedTexts(ReleasedFormat.name, load_tokenizer("bert-base-uncased"), 8, "lotlip").open()
    (ids,) = form.encode_texts(["a bus. a cat. "])
    separator = form.last
    assert [i == separator for i in ids] == [False, False, False, True, False, False, True, True]
    (cut,) = form.encode_texts(["a bus. a cat. a red bus"])
    assert len(cut) == 8
    assert cut[-2:] == [separator, separator]  # the last place always ends the text


def test_an_unknown_cleaning_and_a_vocabulary_without_an_end_are_refused(wordpiece):
    with pytest.raises(CornerstoneError, match="did you mean 'clip'"):
        ReleasedTexts(ReleasedFormat.name, "", 77, "clp")
    with pytest.raises(CornerstoneError, match="no token that ends a text"):
        ReleasedTexts(ReleasedFormat.name, wordpiece.read_text(), 64, "siglip", begins=False).open()
