"""Packed sequences as they are read: token ids, attention ids, targets and pictures."""

from __future__ import annotations

import numpy as np
import pytest

from cornerstone.data.documents import PackedSequences, PackingConfig, SpecialIds, targets
from cornerstone.data.images import Transform
from cornerstone.data.texts import plain_tokenizer
from cornerstone.errors import CornerstoneError

CONFIG = PackingConfig(token_budget=32, image_tokens=3)
SEED = 7


def numpy(table, name):
    return np.stack(table[name].to_numpy(zero_copy_only=False)) if table.num_rows else np.zeros((0, 0))


def read(words, data, index, config=CONFIG, rows=None, epoch=0, **options):
    opened = PackedSequences([data], [index], words.tokenizer, config, **{"seed": SEED, **options})
    rows = np.arange(opened._ends[-1]) if rows is None else np.asarray(rows)
    return opened.take(rows, np.full(len(rows), epoch))


class Spelled:
    """Token ids by their words, so that a sequence reads like one: `ids("<bos> one <image>")`."""

    def __init__(self, tokenizer):
        self.tokenizer, self.special = plain_tokenizer(tokenizer), SpecialIds.of(tokenizer)

    def __call__(self, text):
        special, ids = self.special, []
        named = {"<bos>": [special.bos], "<eos>": [special.eos]}
        named["<image>"] = [special.boi, special.image, special.image, special.image, special.eoi]
        for word in text.split():
            ids += named.get(word) or self.tokenizer.encode(word, add_special_tokens=False).ids
        return ids


@pytest.fixture
def ids(words):
    return Spelled(words.tokenizer)


def documents_of(table):
    """Each document's own token ids, in the order of the sequences."""
    found = []
    for tokens, document in zip(numpy(table, "token_ids"), numpy(table, "document"), strict=True):
        found += [tokens[document == number].tolist() for number in range(document.max() + 1)]
    return found


@pytest.mark.parametrize(
    ("rule", "parts", "layouts"),
    [
        ("mmc4", ["one", 0, "two", "three"],
         ["<bos> one <image> two three <eos>", "<bos> one two <image> three <eos>"]),
        ("mmc4", ["one", 0, 1], ["<bos> one <image> <image> <eos>"]),
        ("mmc4", [0, 1, "two"], ["<bos> <image> <image> two <eos>", "<bos> <image> two <image> <eos>",
                                 "<bos> two <image> <image> <eos>"]),
        ("obelics", ["one", 0, "two"], ["<bos> one <image> two <eos>"]),
        ("laion", [0, "one two"], ["<image> one two <eos>", "<bos> one two <image>"]),
        ("laion", ["one two", 0], ["<image> one two <eos>", "<bos> one two <image>"]),
    ],
)  # fmt: skip
def test_an_image_stands_before_or_after_its_sentence(words, ids, rule, parts, layouts):
    config = PackingConfig(token_budget=32, image_tokens=3, rule=rule)
    data = words.write("data", [parts])
    index, _ = words.pack(data, config)
    seen = [documents_of(read(words, data, index, config, epoch=epoch))[0] for epoch in range(30)]
    assert {tuple(one) for one in seen} == {tuple(ids(layout)) for layout in layouts}


def test_sides_are_half_and_half_and_keep_the_length(words):
    data = words.write("data", [["one", 0, "two"]] * 200)
    index, manifest = words.pack(data, CONFIG)
    assert manifest.rows == 75  # of 8 documents of 9 tokens that are packed together, three a sequence
    first = [one[2] != SpecialIds.of(words.tokenizer).boi for one in documents_of(read(words, data, index))]
    assert 70 <= sum(first) <= 130
    assert {len(one) for one in documents_of(read(words, data, index, epoch=1))} == {9}


def test_what_is_drawn_belongs_to_the_document_however_it_is_packed(words):
    data = words.write("data", [["one", n, "two", n + 20, "three five"] for n in range(12)])
    transform = Transform(8, crop_scale=(0.3, 0.6))
    tables = []
    for config in (CONFIG, PackingConfig(token_budget=64, image_tokens=3), PackingConfig(48, 3, one_document=True)):
        index, _ = words.pack(data, config)
        pieces = [p for row in read_index(index) for p in row]
        table = read(words, data, index, config, epoch=3, transform=transform)
        pictures = iter(p for row in table["images"].to_pylist() for p in row)
        by_row = {}
        for piece, tokens in zip(pieces, documents_of(table), strict=True):
            by_row[piece["row"]] = tokens, [next(pictures) for _ in range(2)]
        tables.append(by_row)
    assert tables[0] == tables[1] == tables[2]
    index, _ = words.pack(data, CONFIG)
    whole = read(words, data, index, rows=None, epoch=3, transform=transform)
    order = [4, 0, 2]
    assert (
        read(words, data, index, rows=order, epoch=3, transform=transform).to_pylist() == whole.take(order).to_pylist()
    )
    other = read(words, data, index, epoch=4, transform=transform)
    assert other["images"].to_pylist() != whole["images"].to_pylist()
    assert sorted(map(len, documents_of(other))) == sorted(map(len, documents_of(whole)))


def read_index(folder):
    from cornerstone.data.shards import DataSet, Reader

    data = DataSet.open(folder, "packing")
    return Reader(data).take(np.arange(len(data)))["pieces"].to_pylist()


def test_text_goes_on_in_the_next_sequence(words, ids):
    text = " ".join(["one two three four five"] * 7)
    config = PackingConfig(token_budget=16, image_tokens=3, rule="obelics")
    data = words.write("data", [[text, 0, "one", 1]])
    index, _ = words.pack(data, config)
    table = read(words, data, index, config)
    assert [token for one in documents_of(table) for token in one] == ids(f"<bos> {text} <image> one <image> <eos>")
    assert [len(one) for one in documents_of(table)][:2] == [16, 16]
    places = [(tokens[at], before) for tokens, ats, befores in zip(
        numpy(table, "token_ids"), table["image_at"].to_pylist(), table["text_before"].to_pylist(), strict=True
    ) for at, before in zip(ats, befores, strict=True)]  # fmt: skip
    assert places == [(ids.special.boi, True)] * 2


def test_an_image_has_text_before_it_in_its_own_document_alone(words):
    data = words.write("data", [["one", 0, "two"], [1, "three"]])
    index, _ = words.pack(data, CONFIG)
    for epoch in range(12):
        table = read(words, data, index, epoch=epoch)
        (at,), (before,), (document,) = (table[n].to_pylist() for n in ("image_at", "text_before", "document"))
        assert document[at[1]] == 1
        tokens = table["token_ids"].to_pylist()[0]
        assert before == [True, tokens[document.index(1) + 1] != SpecialIds.of(words.tokenizer).boi]


def test_padding_masked_places_and_pictures_that_cannot_be_read(words):
    data = words.write("data", [["one", b"torn", "two", 3, "two"]])
    index, _ = words.pack(data, CONFIG)
    table = read(words, data, index, rows=[-1, 0], transform=Transform(8, train=False))
    assert table["valid"].to_pylist() == [False, True]
    tokens, document, target = (numpy(table, name) for name in ("token_ids", "document", "target"))
    assert (tokens[0] == 0).all()
    assert (document[0] == -1).all()
    assert not target[0].any()
    length = 1 + 1 + 5 + 1 + 5 + 1 + 1
    assert np.array_equal(document[1], [0] * length + [-1] * (32 - length))
    assert (tokens[1, length:] == 0).all()
    assert not target[1, length:].any()
    usable, bad = table["image_valid"].to_pylist(), table["bad"].to_pylist()
    assert (usable[0], bad[0]) == ([], [])
    pictures = table["images"].to_pylist()[1]
    for picture, valid in zip(pictures, usable[1], strict=True):
        if valid:
            assert picture == Transform(8, train=False)(words.picture(3)).reshape(-1).tolist()
        else:
            assert set(picture) == {0}
    assert sorted(usable[1]) == [False, True]
    assert [one["what"] for one in bad[1]] == [f"image {usable[1].index(False)}"]
    assert bad[1][0]["reason"].startswith("not readable")
    stored = read(words, data, index)["images"].to_pylist()[0]
    assert sorted(stored, key=len) == [b"torn", words.picture(3)]


def test_rows_of_several_sets_are_counted_one_after_another(words):
    sets = [words.write(name, [["one", n, "two"] for n in range(at, at + 9)]) for name, at in (("a", 0), ("b", 30))]
    indexes = [words.pack(data, CONFIG)[0] for data in sets]
    both = PackedSequences(sets, indexes, words.tokenizer, CONFIG)
    alone = [PackedSequences([d], [i], words.tokenizer, CONFIG) for d, i in zip(sets, indexes, strict=True)]
    count = len(read_index(indexes[0]))
    rows = np.array([count + 1, 0, count, count - 1])
    found = both.take(rows, np.zeros(4, np.int64))
    first, second = (one.take(np.arange(count), np.zeros(count, np.int64))["images"].to_pylist() for one in alone)
    assert found["images"].to_pylist() == [second[1], first[0], second[0], first[count - 1]]
    other = alone[1].take(np.arange(count), np.zeros(count, np.int64))["token_ids"].to_pylist()
    mixed = both.take(count + np.arange(count), np.zeros(count, np.int64))["token_ids"].to_pylist()
    assert mixed != other  # the draws are those of rows 9 to 17


def test_targets_are_the_labels_of_the_authors_code():
    ids = SpecialIds(bos=997, eos=998, pad=0, image=999, boi=1000, eoi=1001)
    image = [1000, 999, 999, 999, 999, 1001]
    rows = [
        [997, 274, 720, 575, 512, 318, *image, 787, 58, 937, 54, *image, 666, 105, 369, 998],
        [*image, 373, 518, 52, 219, 489, 656, 954, 998],
        [997, 8, 695, 300, 870, 531, 821, 955, 382, 50, *image],
        [997, *image, 525, 801, 498, 879, 829, 864, 998],
    ]
    labels = [
        274, 720, 575, 512, 318, 1000, 787, 58, 937, 54, 1000, 666, 105, 369, 998, 373, 518, 52, 219, 489, 656, 954, 998,
        8, 695, 300, 870, 531, 821, 955, 382, 50, 1000, 1000, 525, 801, 498, 879, 829, 864, 998,
    ]  # fmt: skip
    token_ids = np.array([row + [0] * (40 - len(row)) for row in rows])
    document = np.array([[0] * len(row) + [-1] * (40 - len(row)) for row in rows])
    assert token_ids[targets(token_ids, document, ids)].tolist() == labels
    packed, own = (
        np.array([[token for row in rows for token in row]]),
        np.array([np.repeat(np.arange(4), list(map(len, rows)))]),
    )
    assert packed[targets(packed, own, ids)].tolist() == labels


def test_another_tokenizer_than_at_packing_time_is_noticed(words):
    data = words.write("data", [["one two", 0, "two"]])
    index, _ = words.pack(data, CONFIG)
    opened = PackedSequences([data], [index], words.tokenizer, CONFIG)
    opened._tokenizer.enable_truncation(1)
    with pytest.raises(CornerstoneError, match=r"Document 0 has 9 tokens here and had 10 when it was packed"):
        opened.take(np.array([0]), np.array([0]))
