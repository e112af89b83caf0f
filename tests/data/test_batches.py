from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from cornerstone.data.batches import evaluation_batch, pad, pad_lists, training_batch
from cornerstone.data.images import Transform
from cornerstone.data.pairs.samples import Draws, Pictures, Samples, Texts
from cornerstone.data.pairs.views import Wanted
from cornerstone.data.plan import MASKED

SIZE = 8


@pytest.fixture(scope="module")
def samples(tmp_path_factory, small_data, wordpiece) -> Samples:
    """8 rows; row 2 has a corrupt image, row 5 no caption."""
    changes = {2: {"image": b"broken"}, 5: {"captions": ()}}
    folder = tmp_path_factory.mktemp("batches")
    small_data.write(folder, (small_data.pair(i, group=f"g{i % 2}", **changes.get(i, {})) for i in range(8)))
    return Samples((str(folder),), Pictures(Transform(SIZE)), Texts(wordpiece.read_text(), 64, corners=2))


def block(samples, rows):
    rows = np.array(rows)
    return samples.training(np.full_like(rows, 4), rows, np.full_like(rows, 1), Draws(0, 2))


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
    batch = training_batch(table)
    expected = table.to_pylist()
    assert batch.step == 4
    assert len(batch) == 6
    assert batch.row.tolist() == rows
    assert batch.epoch.tolist() == [1] * 6
    assert batch.valid.tolist() == [True, True, False, False, False, True]
    for place, sample in enumerate(expected):
        raw, long = sample["texts"] or ([], [])
        assert batch.raw_ids[place, : batch.raw_length[place]].tolist() == raw
        assert batch.long_ids[place, : batch.long_length[place]].tolist() == long
        assert batch.image[place].flatten().tolist() == sample["image"]
    assert batch.image.shape == (6, 3, SIZE, SIZE)
    assert batch.image.dtype == torch.uint8
    assert batch.feature is None
    assert batch.long_ids.shape[1] > batch.raw_ids.shape[1]  # raw texts are not padded to the length of long ones


def test_a_part_of_a_block_is_a_batch_of_its_own(samples):
    table = block(samples, [6, 0, 2, MASKED, 5, 1])
    whole, part = training_batch(table), training_batch(table.slice(2, 3))
    assert part.row.tolist() == whole.row[2:5].tolist()
    assert torch.equal(part.image, whole.image[2:5])
    assert part.bad == ((2, part.bad[0][1]), (5, "no text"))


def test_bad_rows_are_named_and_masked_places_are_not(samples):
    batch = training_batch(block(samples, [MASKED, 2, 0, 5]))
    assert [row for row, _ in batch.bad] == [2, 5]
    assert all(reason for _, reason in batch.bad)


def test_moving_a_batch_moves_its_tensors(samples):
    batch = training_batch(block(samples, [0, 1]))
    moved = batch.to("meta")
    assert moved.image.device.type == moved.long_ids.device.type == moved.valid.device.type == "meta"
    assert (moved.step, moved.bad, moved.feature) == (batch.step, batch.bad, None)


def test_an_evaluation_holds_usable_rows_with_their_texts(samples):
    batch = evaluation_batch(samples.evaluation(4, 3, np.array([7, 2, 5, MASKED, 0]), (Wanted("long"),)))
    assert batch.set == 3
    assert batch.row.tolist() == [7, 5, 0]
    assert batch.label.tolist() == [3, 1, 0]
    assert batch.group == ("g1", "g1", "g0")
    assert batch.text_row.tolist() == [7, 7, 7, 0, 0, 0]
    assert batch.text_place.tolist() == [0, 1, 2, 0, 1, 2]
    assert len(set(batch.text_key.tolist())) == 6
    assert batch.text_length.tolist() == [22] * 6
    assert len(batch.image) == 3
    assert [row for row, _ in batch.bad] == [2]


def test_an_evaluation_without_a_usable_row_is_empty(samples):
    for rows in ([MASKED, MASKED], [2]):
        batch = evaluation_batch(samples.evaluation(0, 0, np.array(rows), (Wanted("long"),)))
        assert len(batch.row) == len(batch.text_row) == len(batch.text_place) == len(batch.group) == 0
        assert batch.image.shape == (0, 3, SIZE, SIZE)
        assert len(batch.text_ids) == 0
