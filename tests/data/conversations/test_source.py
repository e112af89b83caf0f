"""Conversations as a source: with and without images, of documents and of pairs, and rows that cannot be used."""

from __future__ import annotations

import numpy as np
import pytest

from cornerstone.data.conversations.chat import NO_IMAGE, Chat
from cornerstone.data.conversations.source import ConversationSource
from cornerstone.data.conversations.turns import Turn, segments_of
from cornerstone.data.images import Transform
from cornerstone.data.pairs.image_input import DecodedImages
from cornerstone.data.records import Caption, Document, Segment
from cornerstone.data.shards import DataSet, ShardWriter
from cornerstone.data.source import MASKED


def images():
    return DecodedImages(Transform(16, (1.0, 1.0)))


def chat(wordpiece, **changes):
    return Chat(wordpiece.read_text(), 2, 3, 500, **changes)


def written(folder, rows):
    with ShardWriter(str(folder), name="talks", kind="documents", rows_per_group=2) as writer:
        for number, segments in enumerate(rows):
            writer.add(Document(f"{number}", tuple(segments)))
    return DataSet.open(str(folder))


@pytest.fixture
def talks(tmp_path, small_data):
    asked = (Turn("human", "one?", image=True), Turn("gpt", "two"))
    alone = (Turn("human", "one?"), Turn("gpt", "three"))
    return written(
        tmp_path / "talks",
        [
            segments_of(asked, small_data.picture(0)),
            segments_of(alone, None),
            segments_of(asked, b"no picture"),
            [Segment(text="a document")],
        ],
    )


def taken(source, rows, epochs=None):
    rows = np.array(rows)
    epochs = np.zeros_like(rows) if epochs is None else np.array(epochs)
    return source.batch(0, source.open().take(rows, epochs))


def test_rows_keep_their_places_with_and_without_an_image(talks, wordpiece, small_data):
    source = ConversationSource.of(talks, images(), chat(wordpiece))
    batch = taken(source, [1, 0, MASKED, 3, 2])
    assert batch.valid.tolist() == [True, True, False, False, False]
    assert [(one.row, one.reason.partition(":")[0]) for one in batch.bad] == [
        (3, "no speaker"),
        (2, "not readable as an image"),
    ]
    assert batch.image_place[0] == NO_IMAGE
    assert batch.image_place[1] > 0
    assert not batch.image[0].any()
    np.testing.assert_array_equal(batch.image[1].numpy(), images().transform(small_data.picture(0)))
    form = source.chat.open()
    for place, answer in ((0, "three"), (1, "two")):
        ids = batch.ids[place][batch.target[place]]
        assert form.decode(ids[:-1].tolist()) == answer
        assert ids[-1] == 3
        assert batch.length[place] == int((batch.ids[place] != 0).sum())


def test_a_pair_is_a_caption_to_no_question_drawn_anew_in_each_epoch(tmp_path, small_data, wordpiece):
    captions = (*(Caption("web", "raw", text) for text in ("one", "two")), Caption("a", "long", "three"))
    folder = small_data.write(
        tmp_path / "pairs",
        [small_data.pair(0, captions=captions), small_data.pair(1, captions=(captions[2], Caption("x", "foil", "no")))],
    )
    source = ConversationSource.of(DataSet.open(folder), images(), chat(wordpiece, style="plain"))
    form = source.chat.open()

    def told(row, epoch):
        batch = taken(source, [row], [epoch])
        return form.decode(batch.ids[0][batch.target[0]].tolist())

    assert {told(0, epoch) for epoch in range(12)} == {"one", "two"}
    assert told(0, 5) == told(0, 5)
    assert {told(1, epoch) for epoch in range(4)} == {"three"}


def test_no_rows_are_an_empty_block(talks, wordpiece):
    source = ConversationSource.of(talks, images(), chat(wordpiece))
    assert len(taken(source, np.zeros(0, dtype=np.int64))) == 0
