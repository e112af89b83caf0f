from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer

from cornerstone.data.scenes.sets import pair
from cornerstone.data.scenes.texts import JUNK, TAGS
from cornerstone.data.scenes.tokenizer import SPECIAL, texts_of, train_wordpiece
from cornerstone.data.scenes.world import NOUNS, ScenesSpec
from cornerstone.data.scenes.write import write_scenes
from cornerstone.data.shards import DataSet
from cornerstone.errors import CornerstoneError

TEXTS = ["A small dabu is Red.", "a large vigu; a dabu", "über dabu 4821"] * 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("scenes") / "train"
    write_scenes(folder, pairs=600, workers=1)
    return train_wordpiece(texts_of(DataSet.open(folder)))


def lengths(tokenizer: Tokenizer, spec: ScenesSpec, source: str, rows: int = 200) -> list[int]:
    texts = [c.text for i in range(rows) for c in pair(spec, i).captions if c.source == source]
    return [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)]


def test_texts_are_all_captions_then_the_filled_prompts(tmp_path):
    manifest = write_scenes(tmp_path / "scenes", pairs=70, rows_per_shard=40, workers=1)
    texts = list(texts_of(DataSet.open(tmp_path / "scenes")))
    spec = ScenesSpec(rows=70, rows_per_shard=40)
    captions = [c.text for i in range(70) for c in pair(spec, i).captions]
    assert texts[: len(captions)] == captions
    assert texts[len(captions) :] == [prompt.format(noun) for prompt in manifest.prompts for noun in NOUNS]


def test_words_of_the_world_are_whole_and_special_tokens_come_first(trained):
    tokenizer = Tokenizer.from_str(trained)
    assert (
        [tokenizer.id_to_token(i) for i in range(5)] == list(SPECIAL) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    )
    words = [*NOUNS, *TAGS, *JUNK, "hourglass", "background", "rightmost"[:5]]
    assert all(tokenizer.encode(word, add_special_tokens=False).tokens == [word] for word in words)
    assert tokenizer.get_vocab_size() <= 1024
    assert tokenizer.encode("a Dabu").tokens == ["[CLS]", "a", "dabu", "[SEP]"]
    assert tokenizer.encode("a [SEP] b").tokens == ["[CLS]", "a", "[SEP]", "b", "[SEP]"]


def test_unseen_forms_are_never_unknown(trained):
    tokenizer = Tokenizer.from_str(trained)
    spec = ScenesSpec(set="long-human", cells=4, max_objects=10)
    texts = [c.text for i in range(100) for c in pair(spec, i).captions]
    assert not any("[UNK]" in tokenizer.encode(text).tokens for text in [*texts, "The quick (brown) fox's 4821 jumps!"])


def test_texts_are_as_long_as_the_paper_s_halved(trained):
    tokenizer = Tokenizer.from_str(trained)
    train = ScenesSpec()
    assert 8 <= np.mean(lengths(tokenizer, train, "alt")) <= 10
    assert 62 <= np.mean([np.mean(lengths(tokenizer, train, captioner)) for captioner in "ABC"]) <= 70
    assert 90 <= np.mean(lengths(tokenizer, ScenesSpec(set="long-human"), "human")) <= 118
    assert 90 <= np.mean(lengths(tokenizer, ScenesSpec(set="lookalike"), "long")) <= 115
    assert 9 <= np.mean(lengths(tokenizer, ScenesSpec(set="short"), "short")) <= 13


def test_texts_beyond_256_tokens_are_possible(trained):
    tokenizer = Tokenizer.from_str(trained)
    for name, source in (("long-human", "human"), ("long-captioner", "C")):
        spec = ScenesSpec(set=name, image_size=224, cells=4, min_objects=6, max_objects=10, sentences=(24, 26))
        assert min(lengths(tokenizer, spec, source, rows=20)) > 256


def test_the_same_texts_give_the_same_file_in_every_process():
    code = (
        "import sys, hashlib; from cornerstone.data.scenes.tokenizer import train_wordpiece; "
        f"print(hashlib.sha256(train_wordpiece({TEXTS!r} + list(map(str, range(3000)))).encode()).hexdigest())"
    )
    here = hashlib.sha256(train_wordpiece(TEXTS + list(map(str, range(3000)))).encode()).hexdigest()
    for _ in range(2):
        there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        assert there == here


def test_the_size_bounds_the_vocabulary_and_has_room_for_the_characters():
    assert Tokenizer.from_str(train_wordpiece(TEXTS, 160)).get_vocab_size() <= 160
    with pytest.raises(CornerstoneError, match="characters"):
        train_wordpiece(TEXTS, 50)


def test_characters_of_the_texts_beyond_ascii_are_known():
    tokenizer = Tokenizer.from_str(train_wordpiece(["日本 straße", "日本"]))
    assert "[UNK]" not in tokenizer.encode("本日 ß").tokens
