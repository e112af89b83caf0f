from __future__ import annotations

import gc
import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cornerstone.data import shards
from cornerstone.data.manifest import Manifest
from cornerstone.data.shards import DataSet, Reader, ShardWriter, write_shard
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError


def test_rows_come_back_as_they_were_written(pairs_folder, small_data):
    data = DataSet.open(pairs_folder)
    table = Reader(data).take(np.arange(50))
    assert table.to_pylist() == [small_data.pair(i).as_row() for i in range(50)]
    assert len(data) == 50
    assert data.name == "pairs"


def test_rows_come_in_the_order_asked_for_with_repeats(pairs_folder):
    wanted = np.array([49, 3, 3, 17, 0, 16, 49, 48, 1])
    for kept in (1, 8):
        table = Reader(DataSet.open(pairs_folder), ["key"], keep_groups=kept).take(wanted)
        assert table["key"].to_pylist() == [f"{row:05d}" for row in wanted]
        assert table.column_names == ["key"]


def test_no_row_is_asked_for(pairs_folder):
    table = Reader(DataSet.open(pairs_folder), ["key", "label"]).take(np.zeros(0, dtype=np.int64))
    assert table.num_rows == 0
    assert table.column_names == ["key", "label"]


def test_a_reader_keeps_few_groups_and_reads_none_twice_that_it_keeps(pairs_folder, monkeypatch):
    read = []
    original = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda *a, **k: read.append(a[1]) or original(*a, **k))
    reader = Reader(DataSet.open(pairs_folder), ["key"], keep_groups=2)
    reader.take(np.arange(16))
    reader.take(np.arange(8, 16))
    assert read == [0, 1, 2, 3]
    reader.take(np.arange(4))
    assert read == [0, 1, 2, 3, 0]


def test_a_reader_keeps_few_files_open(pairs_folder, monkeypatch):
    """A pass visits every shard: 12,000 of a large set."""
    monkeypatch.setattr(shards, "KEPT_FILES", 2)
    reader = Reader(DataSet.open(pairs_folder), ["key"], keep_groups=1)
    for _ in range(2):
        for row in (0, 16, 32, 48):
            assert reader.take(np.array([row]))["key"].to_pylist() == [f"{row:05d}"]
            assert len(reader._files) <= 2


def test_the_manifest_describes_the_files(pairs_folder):
    manifest = Manifest.read(pairs_folder)
    assert [shard.rows for shard in manifest.shards] == [16, 16, 16, 2]
    for shard in manifest.shards:
        content = (Path(pairs_folder) / shard.file).read_bytes()
        assert (shard.bytes, shard.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        metadata = pq.read_metadata(Path(pairs_folder) / shard.file)
        groups = tuple(metadata.row_group(g).num_rows for g in range(metadata.num_row_groups))
        assert groups == shard.row_groups == (4,) * (shard.rows // 4) + (2,) * (shard.rows % 4 > 0)


def test_a_shard_holds_one_row_group_in_memory(tmp_path, small_data):
    image_bytes, held = 100_000, []

    def pairs():
        for i in range(96):
            yield small_data.pair(i, image=np.random.default_rng(i).bytes(image_bytes))
            held.append(tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes())

    gc.collect()  # tables of other tests are not to be freed in the middle
    tracemalloc.start()
    shard = write_shard(Location.of(tmp_path), 7, pairs(), rows_per_group=8)
    tracemalloc.stop()
    assert shard.file == "shard-00007.parquet"
    assert shard.row_groups == (8,) * 12
    assert max(held) - min(held) < 5 * 8 * image_bytes  # this group, the last, and what is encoded; not all 12


def test_a_shard_is_the_same_from_a_list_and_from_a_generator(tmp_path, small_data):
    pairs, folder = [small_data.pair(i) for i in range(10)], Location.of(tmp_path)
    from_list = write_shard(folder, 0, pairs, rows_per_group=4)
    assert from_list == write_shard(folder, 0, iter(pairs), rows_per_group=4)
    assert from_list.row_groups == (4, 4, 2)


def test_a_shard_of_no_rows_is_no_file(tmp_path):
    assert write_shard(Location.of(tmp_path), 0, iter(())) is None
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_writer_leaves_no_manifest(tmp_path, small_data):
    with pytest.raises(KeyboardInterrupt), ShardWriter(str(tmp_path), name="x", rows_per_shard=2) as writer:  # noqa: PT012
        for i in range(5):
            writer.add(small_data.pair(i))
        raise KeyboardInterrupt
    assert {path.suffix for path in tmp_path.iterdir()} == {".parquet"}
    with pytest.raises(CornerstoneError, match="interrupted"):
        DataSet.open(str(tmp_path))
    small_data.write(tmp_path, [small_data.pair(0)])  # the next start may use the folder
    assert len(DataSet.open(str(tmp_path))) == 1


def test_a_finished_folder_is_never_written_over(pairs_folder):
    with pytest.raises(CornerstoneError, match="already holds a finished data set"):
        ShardWriter(pairs_folder, name="x")


def test_writing_nothing_is_said(tmp_path):
    with pytest.raises(CornerstoneError, match="no usable row"), ShardWriter(str(tmp_path), name="x"):
        pass


@pytest.fixture
def damaged(tmp_path, small_data) -> Path:
    """A data set of its own, to be damaged."""
    return Path(small_data.write(tmp_path / "damaged", map(small_data.pair, range(16))))


def read_all(folder):
    return Reader(DataSet.open(str(folder))).take(np.arange(16))


def test_a_shard_that_its_manifest_does_not_fit_is_refused(damaged, small_data):
    write_shard(Location.of(damaged), 0, map(small_data.pair, range(12)), rows_per_group=4)
    with pytest.raises(CornerstoneError, match=r"has 12 rows, but its manifest says 16"):
        read_all(damaged)


def test_a_missing_shard_is_named(damaged):
    (damaged / "shard-00000.parquet").unlink()
    with pytest.raises(CornerstoneError, match=r"Cannot read .*shard-00000.parquet"):
        read_all(damaged)


def test_a_truncated_shard_is_named(damaged):
    shard = damaged / "shard-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(CornerstoneError, match=r"Cannot read .*shard-00000.parquet"):
        read_all(damaged)


def test_a_shard_with_broken_pages_is_named(damaged):
    shard = damaged / "shard-00000.parquet"
    content = bytearray(shard.read_bytes())
    content[4:2000] = bytes(1996)
    shard.write_bytes(content)
    with pytest.raises(CornerstoneError, match=r"Cannot read .*shard-00000.parquet"):
        read_all(damaged)
