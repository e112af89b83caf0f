from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from sources import LONG, pair_evaluation, pair_source

from cornerstone.data.batch import Bad, pad, pad_lists
from cornerstone.data.images import Transform
from cornerstone.data.source import MASKED

SIZE = 8


@pytest.fixture(scope="module")
def samples(tmp_path_factory, small_data, wordpiece) -> SimpleNamespace:
    """8 rows; row 2 has a corrupt image, row 5 no caption."""
    changes = {2: {"image": b"broken"}, 5: {"captions": ()}}
    folder = str(tmp_path_factory.mktemp("batches"))
    small_data.write(folder, (small_data.pair(i, group=f"g{i % 2}", **changes.get(i, {})) for i in range(8)))
    tokenizer = wordpiece.read_text()
    return SimpleNamespace(
        train=pair_source(folder, tokenizer, Transform(SIZE), limit=64),
        judged=pair_evaluation(folder, tokenizer, Transform(SIZE), LONG, limit=64),
    )


def block(samples, rows):
    rows = np.array(rows)
    return samples.train.open().take(rows, np.full_like(rows, 1))


def judged(samples, rows):
    rows = np.array(rows)
    return samples.judged.batch(4, samples.judged.open().take(rows, np.zeros_like(rows)))


@pytest.mark.parametrize(("longest", "width"), [(0, 8), (1, 8), (8, 8), (9, 16), (40, 40), (41, 48)])
def test_ids_are_padded_to_the_longest_rounded_up(longest, width):
    lists = [[], [7, 8], list(range(1, longest + 1))]
    lists = [ids for ids in lists if len(ids) <= longest]
    ids, lengths = pad_lists(lists)
    assert ids.shape == (len(lists), width)
    assert lengths.tolist() == [len(given) for given in lists]
    for row, given in zip(ids.tolist(), lists, strict=True):
        assert row == given + [0] * (width - len(given))


def test_lists_that_are_a_slice_or_null():
    column = pa.array([[9, 9], [1], None, [2, 3], [9]], pa.list_(pa.int32()))
    ids, lengths = pad(column[1:4])
    assert lengths.tolist() == [1, 0, 2]
    assert ids[:, :3].tolist() == [[1, 0, 0], [0, 0, 0], [2, 3, 0]]


def test_a_step_has_its_rows_texts_and_pixels_in_place(samples):
    rows = [6, 0, 2, MASKED, 5, 1]
    table = block(samples, rows)
    batch = samples.train.batch(4, table)
    expected = table.to_pylist()
    assert batch.step == 4
    assert len(batch) == 6
    assert batch.row.tolist() == rows
    assert batch.epoch.tolist() == [1] * 6
    assert batch.valid.tolist() == [True, True, False, False, False, True]
    for place, sample in enumerate(expected):
        raw, long = sample["raw"], sample["long"]
        assert batch.raw_ids[place, : batch.raw_length[place]].tolist() == raw
        assert batch.long_ids[place, : batch.long_length[place]].tolist() == long
        assert batch.image[place].flatten().tolist() == sample["image"]
    assert batch.image.shape == (6, 3, SIZE, SIZE)
    assert batch.image.dtype == torch.uint8
    assert batch.long_ids.shape[1] > batch.raw_ids.shape[1]  # raw texts are not padded to the length of long ones


def test_a_part_of_a_block_is_a_batch_of_its_own(samples):
    table = block(samples, [6, 0, 2, MASKED, 5, 1])
    whole, part = samples.train.batch(4, table), samples.train.batch(4, table.slice(2, 3))
    assert part.row.tolist() == whole.row[2:5].tolist()
    assert torch.equal(part.image, whole.image[2:5])
    assert part.bad == (Bad(2, "row", part.bad[0].reason), Bad(5, "row", "no text"))


def test_bad_rows_are_named_and_masked_places_are_not(samples):
    batch = samples.train.batch(4, block(samples, [MASKED, 2, 0, 5]))
    assert [bad.row for bad in batch.bad] == [2, 5]
    assert all(bad.reason for bad in batch.bad)
    assert batch.counted() == {"row": 3}  # a masked place is no row


def test_moving_a_batch_moves_its_tensors(samples):
    batch = samples.train.batch(4, block(samples, [0, 1]))
    moved = batch.to("meta")
    assert moved.image.device.type == moved.long_ids.device.type == moved.valid.device.type == "meta"
    assert (moved.step, moved.bad) == (batch.step, batch.bad)


def test_an_evaluation_holds_usable_rows_with_their_texts(samples):
    batch = judged(samples, [7, 2, 5, MASKED, 0])
    assert batch.step == 4
    assert batch.row.tolist() == [7, 5, 0]
    assert batch.label.tolist() == [3, 1, 0]
    assert batch.group == ("g1", "g1", "g0")
    assert batch.text_row.tolist() == [7, 7, 7, 0, 0, 0]
    assert batch.text_place.tolist() == [0, 1, 2, 0, 1, 2]
    assert len(set(batch.text_key.tolist())) == 6
    assert batch.text_length.tolist() == [22] * 6
    assert len(batch.image) == 3
    assert [bad.row for bad in batch.bad] == [2]


def test_an_evaluation_without_a_usable_row_is_empty(samples):
    for rows in ([MASKED, MASKED], [2]):
        batch = judged(samples, rows)
        assert len(batch.row) == len(batch.text_row) == len(batch.text_place) == len(batch.group) == 0
        assert batch.image.shape == (0, 3, SIZE, SIZE)
        assert len(batch.text_ids) == 0


def test_micro_batches_are_the_rows_in_their_order(samples):
    batch = samples.train.batch(4, block(samples, [6, 0, 2, MASKED, 5, 1, 7]))
    for parts in (1, 2, 3, 7, 20):
        split = batch.split(parts)
        assert len(split) == min(parts, 7)
        for name in ("row", "valid", "image", "raw_ids", "long_length"):
            assert torch.equal(torch.cat([getattr(part, name) for part in split]), getattr(batch, name))
    assert [len(part) for part in batch.split(3)] == [3, 2, 2]


def test_a_part_of_an_evaluation_has_the_texts_of_its_rows(samples):
    batch = judged(samples, [7, 6, 0])
    first, second = batch.split(2)
    assert (first.row.tolist(), second.row.tolist()) == ([7, 6], [0])
    assert first.text_row.tolist() == [7, 7, 7, 6, 6, 6]
    assert torch.equal(torch.cat([first.text_ids, second.text_ids]), batch.text_ids)


def test_a_field_that_a_batch_does_not_have_is_an_error(samples):
    with pytest.raises(AttributeError):
        _ = samples.train.batch(4, block(samples, [0])).valids
