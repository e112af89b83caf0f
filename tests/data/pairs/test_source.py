from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats
from sources import LONG, RAW, pair_evaluation, pair_source
from tokenizers import Tokenizer

from cornerstone.data.images import Transform
from cornerstone.data.manifest import Manifest
from cornerstone.data.pairs.feature_store import feature_schema
from cornerstone.data.pairs.image_input import ImageInput, StoredFeatures
from cornerstone.data.pairs.views import Wanted
from cornerstone.data.records import Caption
from cornerstone.data.shards import write_row_groups
from cornerstone.data.source import MASKED
from cornerstone.data.storage import Location

SIZE = 16
WORDS = ("one", "two", "three", "four", "five")
CROP = Transform(SIZE, crop_scale=(0.5, 1.0))


LOOKALIKE = (Wanted("long", every=False), Wanted("raw", every=False), Wanted("long", every=False, sentences=1))


class Samples:
    """A folder's rows as a step and as an evaluation see them."""

    def __init__(self, folder: str, wordpiece, limit: int = 64, images: ImageInput | Transform = CROP) -> None:
        self.folder, self.tokenizer, self.limit, self.images = folder, wordpiece.read_text(), limit, images

    def training(self, rows, epochs, **drawn) -> pa.Table:
        drawn = {"seed": 0, "sub_captions": 3, **drawn}
        return (
            pair_source(self.folder, self.tokenizer, self.images, limit=self.limit, **drawn).open().take(rows, epochs)
        )

    def evaluation(self, rows, view=LONG) -> pa.Table:
        source = pair_evaluation(self.folder, self.tokenizer, self.images, view, limit=self.limit)
        return source.open().take(rows, np.zeros_like(rows))


def open_samples(folder, wordpiece, limit=64, images=CROP) -> Samples:
    return Samples(folder, wordpiece, limit, images)


def training(samples: Samples, rows, epochs=0, **drawn):
    rows = np.asarray(rows, dtype=np.int64)
    epochs = np.broadcast_to(np.asarray(epochs, dtype=np.int64), rows.shape).copy()
    return samples.training(rows, epochs, **drawn).to_pylist()


def reasons_of(samples):
    """Why rows are bad; "" for those that are not."""
    return [" ".join(bad["reason"] for bad in sample["bad"]) for sample in samples]


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
            sentences = read(sample["long"])
            captioner = sentences[0][0]
            numbers = [WORDS.index(sentence.split()[2].rstrip(".")) for sentence in sentences]
            assert [s.removesuffix(".") for s in sentences] == [f"{captioner} {row} {WORDS[n]}" for n in numbers]
            assert numbers == list(range(numbers[0], numbers[0] + min(k, 5)))
            starts[numbers[0]] += 1
    counts = [starts[first] for first in range(max(5 - k, 0) + 1)]
    assert sum(counts) == 600
    assert len(counts) == 1 or stats.chisquare(counts).pvalue > 1e-3


def test_every_captioner_is_drawn_equally_often(samples, read):
    drawn = Counter(read(sample["long"])[0][0] for epoch in range(12) for sample in training(samples, range(50), epoch))
    assert stats.chisquare([drawn[by] for by in "abc"]).pvalue > 1e-3


def test_only_the_chosen_captioners_are_drawn(samples, read):
    drawn = Counter(
        read(sample["long"])[0][0]
        for epoch in range(4)
        for sample in training(samples, range(50), epoch, captioners=("a", "c"))
    )
    assert set(drawn) == {"a", "c"}


def test_a_captioner_that_wrote_nothing_leaves_the_raw_text(samples):
    for sample in training(samples, range(4), captioners=("nobody",)):
        assert sample["raw"]
        assert sample["long"] == []
        assert sample["valid"]


def test_no_sub_captions_leave_the_raw_text(samples, read):
    for row, sample in enumerate(training(samples, range(8), sub_captions=0)):
        assert read(sample["raw"]) == [f"raw {row}"]
        assert sample["long"] == []
        assert sample["valid"]


def test_a_row_that_lacks_one_text_keeps_the_other(odd, read):
    no_long, no_raw = training(odd, [1, 2])
    assert [read(no_long["raw"]), read(no_long["long"])] == [["raw 9"], []]
    assert [read(no_raw["raw"]), read(no_raw["long"])] == [[], ["a 9 one", "a 9 two."]]
    assert no_long["valid"]
    assert no_raw["valid"]


def test_rows_that_cannot_be_used_say_why_and_keep_their_place(odd):
    found = training(odd, [0, 3, MASKED, 4, 5, 6, 0])
    assert [sample["row"] for sample in found] == [0, 3, MASKED, 4, 5, 6, 0]
    assert [sample["valid"] for sample in found] == [True, False, False, False, False, False, True]
    assert [reason.partition(":")[0] for reason in reasons_of(found)] == [
        *("", "no text", "", "no text", "truncated", "empty", "")
    ]
    assert found[0] == found[6]


def test_one_of_several_raw_texts_is_drawn(odd, read):
    drawn = Counter(read(sample["raw"])[0] for e in range(40) for sample in training(odd, [7], e))
    assert set(drawn) == {"raw 8", "raw 9"}


def test_a_sample_is_the_same_alone_and_in_any_block(samples):
    rows, epochs = [31, 4, 4, MASKED, 17], [0, 1, 2, 0, 1]
    block = training(samples, rows, epochs, seed=5)
    for sample, row, epoch in zip(block, rows, epochs, strict=True):
        assert training(samples, [row], epoch, seed=5) == [sample]
    assert block[1]["long"] != block[2]["long"]
    assert block[1]["image"] != block[2]["image"]


def test_another_seed_draws_otherwise(samples):
    first, second = (training(samples, range(50), seed=seed) for seed in (0, 1))
    assert [s["long"] for s in first] != [s["long"] for s in second]
    assert [s["image"] for s in first] != [s["image"] for s in second]
    assert [s["raw"] for s in first] == [s["raw"] for s in second]  # there is but one raw text


def test_the_crop_is_the_transforms_own_for_seed_epoch_and_row(samples, small_data):
    for sample in training(samples, [3, 41], [2, 7], seed=11):
        row, epoch = sample["row"], sample["epoch"]
        expected = CROP(small_data.picture(row), seed=11, epoch=epoch, row=row)
        assert sample["image"] == expected.reshape(-1).tolist()


def test_an_evaluation_sees_the_central_crop(samples, small_data):
    (sample,) = samples.evaluation(np.array([3])).to_pylist()
    expected = Transform(SIZE, train=False)(small_data.picture(3))
    assert sample["image"] == expected.reshape(-1).tolist()
    assert (sample["row"], sample["label"]) == (3, 3)


def test_each_view_has_its_texts(samples, read):
    def texts(view):
        (sample,) = samples.evaluation(np.array([6]), view).to_pylist()
        assert len(sample["keys"]) == len(sample["texts"])
        return [". ".join(read(ids)) for ids in sample["texts"]]

    whole = [". ".join(f"{by} 6 {word}" for word in WORDS) + "." for by in "abc"]
    assert texts(LONG) == whole
    assert texts(RAW) == ["raw 6"]
    assert texts(()) == []
    assert texts(LOOKALIKE) == [whole[0], "raw 6", "a 6 one"]


def test_identical_texts_have_one_key_even_where_the_limit_makes_others_equal(pairs_folder, wordpiece):
    short = open_samples(pairs_folder, wordpiece, limit=5)
    first, again = (short.evaluation(np.array([6, 7])).to_pylist() for _ in range(2))
    assert first == again
    keys = [key for sample in first for key in sample["keys"]]
    assert len(set(keys)) == 6
    assert len({str(ids) for sample in first for ids in sample["texts"]}) < 6


@pytest.mark.parametrize(("limit", "length"), [(12, 9), (13, 11), (14, 12), (24, 22), (40, 22)])
def test_the_limit_counts_corners_and_separators_in_training_and_evaluation(pairs_folder, wordpiece, limit, length):
    """A long text has [CLS], five times three words and [SEP], and a period: 22 tokens; with two corners 24."""
    cut = open_samples(pairs_folder, wordpiece, limit)
    judged = cut.evaluation(np.arange(8)).to_pylist()
    trained = training(cut, range(8), sub_captions=5)
    separator = Tokenizer.from_file(str(wordpiece)).token_to_id("[SEP]")
    for ids in [ids for sample in judged for ids in sample["texts"]] + [sample["long"] for sample in trained]:
        assert len(ids) == length  # one less than there is room for where the cut falls on a [SEP]
        assert ids[-1] == separator


def test_unusable_and_masked_rows_of_an_evaluation(odd):
    found = odd.evaluation(np.array([5, MASKED, 3, 0])).to_pylist()
    assert [s["valid"] for s in found] == [False, False, True, True]  # without a text it is still in the gallery
    assert [bool(reason) for reason in reasons_of(found)] == [True, False, False, False]
    assert [len(s["texts"]) for s in found] == [3, 0, 0, 3]


def test_a_block_without_any_row(samples):
    assert [s["row"] for s in training(samples, [MASKED] * 3)] == [MASKED] * 3
    found = samples.evaluation(np.array([MASKED, MASKED]))
    assert found.num_rows == 2
    assert not any(found["valid"].to_pylist())


def test_no_rows_are_an_empty_block(samples):
    none = np.zeros(0, dtype=np.int64)
    assert samples.training(none, none).num_rows == samples.evaluation(none).num_rows == 0
    assert samples.training(none, none).column_names[:4] == ["row", "epoch", "valid", "bad"]


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
        shards.append(write_row_groups(store, shard.file, groups))
    Manifest("features", "pairs", tuple(shards)).write(store)
    read, original = [], pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda *a, **k: read.extend(k["columns"] or ()) or original(*a, **k)
    )
    stored = open_samples(pairs_folder, wordpiece, images=StoredFeatures((store.uri,), 3))
    training(stored, [0])
    assert read == ["captions"]  # image bytes are not touched
    online = open_samples(pairs_folder, wordpiece)
    rows = [49, 7, MASKED, 0]
    for found, image in zip(training(stored, rows), training(online, rows), strict=True):
        assert (found["raw"], found["long"]) == (image["raw"], image["long"])
        expected = np.zeros(3) if found["row"] == MASKED else vectors[found["row"]]
        assert found["image"] == expected.astype(np.float32).tolist()
    found = training(stored, rows)
    assert list(zip([s["valid"] for s in found], reasons_of(found), strict=True)) == [
        (True, ""),
        (False, "truncated: bytes are missing"),
        (False, ""),
        (True, ""),
    ]
