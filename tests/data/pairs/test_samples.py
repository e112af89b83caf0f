from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats
from tokenizers import Tokenizer

from cornerstone.data.images import Transform
from cornerstone.data.manifest import Manifest
from cornerstone.data.pairs.feature_store import feature_schema
from cornerstone.data.pairs.samples import Draws, Pictures, Samples, Texts
from cornerstone.data.pairs.views import Wanted
from cornerstone.data.plan import MASKED
from cornerstone.data.records import Caption
from cornerstone.data.shards import write_features_shard
from cornerstone.data.storage import Location

SIZE = 16
WORDS = ("one", "two", "three", "four", "five")
CROP = Transform(SIZE, crop_scale=(0.5, 1.0))


def open_samples(folder, wordpiece, limit=64, features=(), width=0) -> Samples:
    return Samples((folder,), Pictures(CROP, features, width), Texts(wordpiece.read_text(), limit, corners=2))


def training(samples: Samples, rows, epochs=0, **drawn):
    rows = np.asarray(rows, dtype=np.int64)
    epochs = np.broadcast_to(np.asarray(epochs, dtype=np.int64), rows.shape).copy()
    drawn = Draws(**{"seed": 0, "sub_captions": 3, **drawn})
    return samples.training(np.zeros_like(rows), rows, epochs, drawn).to_pylist()


@pytest.fixture(scope="module")
def read(wordpiece):
    """The sentences behind token ids, as they were written."""
    tokenizer = Tokenizer.from_file(str(wordpiece))

    def sentences(ids):
        text = tokenizer.decode(ids, skip_special_tokens=False).removeprefix("[CLS]")
        return [part.strip() for part in text.split("[SEP]")[:-1]]

    return sentences


@pytest.fixture(scope="module")
def samples(pairs_folder, wordpiece) -> Samples:
    return open_samples(pairs_folder, wordpiece)


@pytest.fixture(scope="module")
def odd(tmp_path_factory, small_data, wordpiece) -> Samples:
    """0 whole, 1 no long, 2 no raw, 3 no caption, 4 empty texts, 5 a corrupt image, 6 no image, 7 two raw texts."""
    raw, long = Caption("web", "raw", "raw 9"), Caption("a", "long", "a 9 one. a 9 two.")
    changes = [
        {},
        {"captions": (raw,)},
        {"captions": (long,)},
        {"captions": ()},
        {"captions": (Caption("web", "raw", " "), Caption("a", "long", ""))},
        {"image": small_data.picture(0)[:100]},
        {"image": b""},
        {"captions": (raw, Caption("web", "raw", "raw 8"), long)},
    ]
    folder = tmp_path_factory.mktemp("odd")
    return open_samples(small_data.write(folder, (small_data.pair(i, **c) for i, c in enumerate(changes))), wordpiece)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 9])
def test_a_long_text_is_k_consecutive_sentences_of_one_captioner(samples, read, k):
    starts = Counter()
    for epoch in range(12):
        for row, sample in enumerate(training(samples, range(50), epoch, sub_captions=k)):
            sentences = read(sample["texts"][1])
            captioner = sentences[0][0]
            numbers = [WORDS.index(sentence.split()[2].rstrip(".")) for sentence in sentences]
            assert [s.removesuffix(".") for s in sentences] == [f"{captioner} {row} {WORDS[n]}" for n in numbers]
            assert numbers == list(range(numbers[0], numbers[0] + min(k, 5)))
            starts[numbers[0]] += 1
    counts = [starts[first] for first in range(max(5 - k, 0) + 1)]
    assert sum(counts) == 600
    assert len(counts) == 1 or stats.chisquare(counts).pvalue > 1e-3


def test_every_captioner_is_drawn_equally_often(samples, read):
    drawn = Counter(
        read(sample["texts"][1])[0][0] for epoch in range(12) for sample in training(samples, range(50), epoch)
    )
    assert stats.chisquare([drawn[by] for by in "abc"]).pvalue > 1e-3


def test_only_the_chosen_captioners_are_drawn(samples, read):
    drawn = Counter(
        read(sample["texts"][1])[0][0]
        for epoch in range(4)
        for sample in training(samples, range(50), epoch, captioners=("a", "c"))
    )
    assert set(drawn) == {"a", "c"}


def test_a_captioner_that_wrote_nothing_leaves_the_raw_text(samples):
    for sample in training(samples, range(4), captioners=("nobody",)):
        assert sample["texts"][0]
        assert sample["texts"][1] == []
        assert sample["valid"]


def test_no_sub_captions_leave_the_raw_text(samples, read):
    for row, sample in enumerate(training(samples, range(8), sub_captions=0)):
        assert read(sample["texts"][0]) == [f"raw {row}"]
        assert sample["texts"][1] == []
        assert sample["valid"]


def test_a_row_that_lacks_one_text_keeps_the_other(odd, read):
    no_long, no_raw = training(odd, [1, 2])
    assert [read(ids) for ids in no_long["texts"]] == [["raw 9"], []]
    assert [read(ids) for ids in no_raw["texts"]] == [[], ["a 9 one", "a 9 two."]]
    assert no_long["valid"]
    assert no_raw["valid"]


def test_rows_that_cannot_be_used_say_why_and_keep_their_place(odd):
    found = training(odd, [0, 3, MASKED, 4, 5, 6, 0])
    assert [sample["row"] for sample in found] == [0, 3, MASKED, 4, 5, 6, 0]
    assert [sample["valid"] for sample in found] == [True, False, False, False, False, False, True]
    assert [sample["reason"].partition(":")[0] for sample in found] == [
        *("", "no text", "", "no text", "truncated", "empty", "")
    ]
    assert found[0] == found[6]


def test_one_of_several_raw_texts_is_drawn(odd, read):
    drawn = Counter(read(sample["texts"][0])[0] for e in range(40) for sample in training(odd, [7], e))
    assert set(drawn) == {"raw 8", "raw 9"}


def test_a_sample_is_the_same_alone_and_in_any_block(samples):
    rows, epochs = [31, 4, 4, MASKED, 17], [0, 1, 2, 0, 1]
    block = training(samples, rows, epochs, seed=5)
    for sample, row, epoch in zip(block, rows, epochs, strict=True):
        assert training(samples, [row], epoch, seed=5) == [sample]
    assert block[1]["texts"] != block[2]["texts"]
    assert block[1]["image"] != block[2]["image"]


def test_another_seed_draws_otherwise(samples):
    first, second = (training(samples, range(50), seed=seed) for seed in (0, 1))
    assert [s["texts"][1] for s in first] != [s["texts"][1] for s in second]
    assert [s["image"] for s in first] != [s["image"] for s in second]
    assert [s["texts"][0] for s in first] == [s["texts"][0] for s in second]  # there is but one raw text


def test_the_crop_is_the_transforms_own_for_seed_epoch_and_row(samples, small_data):
    for sample in training(samples, [3, 41], [2, 7], seed=11):
        row, epoch = sample["row"], sample["epoch"]
        expected = CROP(small_data.picture(row), seed=11, epoch=epoch, row=row)
        assert sample["image"] == expected.reshape(-1).tolist()


def test_an_evaluation_sees_the_central_crop(samples, small_data):
    (sample,) = samples.evaluation(9, 2, np.array([3]), (Wanted("long"),)).to_pylist()
    expected = Transform(SIZE, train=False)(small_data.picture(3))
    assert sample["image"] == expected.reshape(-1).tolist()
    assert (sample["step"], sample["set"], sample["row"], sample["label"]) == (9, 2, 3, 3)


def test_each_view_has_its_texts(samples, read):
    def texts(view):
        (sample,) = samples.evaluation(0, 0, np.array([6]), view).to_pylist()
        assert len(sample["keys"]) == len(sample["texts"])
        return [". ".join(read(ids)) for ids in sample["texts"]]

    whole = [". ".join(f"{by} 6 {word}" for word in WORDS) + "." for by in "abc"]
    first = [Wanted(role, every=False) for role in ("long", "raw", "foil")]
    assert texts((Wanted("long"),)) == whole
    assert texts((Wanted("raw"),)) == ["raw 6"]
    assert texts(()) == []
    assert texts((Wanted("foil"),)) == []
    assert texts((*first, replace(first[0], sentences=1))) == [whole[0], "raw 6", "", "a 6 one"]
    assert texts((Wanted("long", sentences=2),)) == [f"{by} 6 one. {by} 6 two" for by in "abc"]


def test_identical_texts_have_one_key_even_where_the_limit_makes_others_equal(pairs_folder, wordpiece):
    short = open_samples(pairs_folder, wordpiece, limit=5)
    first, again = (short.evaluation(0, 0, np.array([6, 7]), (Wanted("long"),)).to_pylist() for _ in range(2))
    assert first == again
    keys = [key for sample in first for key in sample["keys"]]
    assert len(set(keys)) == 6
    assert len({str(ids) for sample in first for ids in sample["texts"]}) < 6


@pytest.mark.parametrize(("limit", "length"), [(12, 9), (13, 11), (14, 12), (24, 22), (40, 22)])
def test_the_limit_counts_corners_and_separators_in_training_and_evaluation(pairs_folder, wordpiece, limit, length):
    """A long text has [CLS], five times three words and [SEP], and a period: 22 tokens; with two corners 24."""
    cut = open_samples(pairs_folder, wordpiece, limit)
    judged = cut.evaluation(0, 0, np.arange(8), (Wanted("long"),)).to_pylist()
    trained = training(cut, range(8), sub_captions=5)
    separator = Tokenizer.from_file(str(wordpiece)).token_to_id("[SEP]")
    for ids in [ids for sample in judged for ids in sample["texts"]] + [sample["texts"][1] for sample in trained]:
        assert len(ids) == length  # one less than there is room for where the cut falls on a [SEP]
        assert ids[-1] == separator


def test_unusable_and_masked_rows_of_an_evaluation(odd):
    found = odd.evaluation(0, 0, np.array([5, MASKED, 3, 0]), (Wanted("long"),)).to_pylist()
    assert [s["valid"] for s in found] == [False, False, True, True]  # without a text it is still in the gallery
    assert [bool(s["reason"]) for s in found] == [True, False, False, False]
    assert [len(s["texts"]) for s in found] == [3, 0, 0, 3]


def test_a_block_without_any_row(samples):
    assert [s["row"] for s in training(samples, [MASKED] * 3)] == [MASKED] * 3
    found = samples.evaluation(0, 0, np.array([MASKED, MASKED]), (Wanted("long"),))
    assert found.num_rows == 2
    assert not any(found["valid"].to_pylist())


def test_training_and_evaluation_have_one_schema(samples):
    zero = np.zeros(1, dtype=np.int64)
    drawn = samples.training(zero, zero, zero, Draws(0, 3))
    assert drawn.schema == samples.evaluation(0, 0, zero, ()).schema == samples.schema


def test_stored_features_stand_for_images(pairs_folder, wordpiece, tmp_path, monkeypatch):
    store, schema = Location.of(tmp_path), feature_schema(3, "float16")
    pairs = Manifest.read(pairs_folder)
    vectors, reasons = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float16), [""] * 50
    reasons[7] = "truncated: bytes are missing"
    shards, row = [], 0
    for shard in pairs.shards:
        groups = []
        for size in shard.row_groups:
            flat, why = pa.array(vectors[row : row + size].reshape(-1)), pa.array(reasons[row : row + size])
            groups.append(pa.Table.from_arrays([pa.FixedSizeListArray.from_arrays(flat, 3), why], schema=schema))
            row += size
        shards.append(write_features_shard(store, shard.file, groups))
    Manifest("features", "pairs", tuple(shards)).write(store)
    read, original = [], pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda *a, **k: read.extend(k["columns"] or ()) or original(*a, **k)
    )
    stored = open_samples(pairs_folder, wordpiece, features=(store.uri,), width=3)
    training(stored, [0])
    assert read == ["captions", "label", "group"]  # image bytes are not touched
    online = open_samples(pairs_folder, wordpiece)
    rows = [49, 7, MASKED, 0]
    for found, image in zip(training(stored, rows), training(online, rows), strict=True):
        assert found["texts"] == image["texts"]
        assert "image" not in found
        expected = np.zeros(3) if found["row"] == MASKED else vectors[found["row"]]
        assert found["feature"] == expected.astype(np.float32).tolist()
    assert [(s["valid"], s["reason"]) for s in training(stored, rows)] == [
        (True, ""),
        (False, "truncated: bytes are missing"),
        (False, ""),
        (True, ""),
    ]
