from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cornerstone.data.manifest import Manifest, Shard
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError

SHARDS = (Shard("shard-00000.parquet", (4, 4, 1), 100, "aa"), Shard("shard-00001.parquet", (4,), 50, "bb"))
MANIFEST = Manifest("pairs", "photos", SHARDS, classes=("cat", "dog"), prompts=("a {}",), source={"src": "x"})


@pytest.fixture
def folder(tmp_path) -> Location:
    """A folder with a manifest."""
    place = Location.of(tmp_path / "photos")
    MANIFEST.write(place)
    return place


def change(folder, **fields):
    path = folder.join("manifest.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_manifest_comes_back_as_it_was(folder):
    assert Manifest.read(folder) == MANIFEST
    assert Manifest.read(folder.uri, "pairs").rows == 13
    assert MANIFEST.row_groups == (4, 4, 1, 4)


def test_equal_row_groups_are_held_once(tmp_path):
    alike = tuple(Shard(f"shard-{i:05d}.parquet", (4,) * 20 + (1,), 100, f"{i}") for i in range(3))
    replace(MANIFEST, shards=alike).write(Location.of(tmp_path))
    one, two, three = Manifest.read(tmp_path.as_posix()).shards
    assert one.row_groups is two.row_groups is three.row_groups


def test_a_missing_folder(tmp_path):
    with pytest.raises(CornerstoneError, match=r"No data set at .*nowhere: the folder does not exist"):
        Manifest.read(str(tmp_path / "nowhere"))


def test_an_empty_folder(tmp_path):
    with pytest.raises(CornerstoneError, match="the folder is empty"):
        Manifest.read(str(tmp_path))


def test_a_folder_of_other_files(tmp_path):
    for i in range(5):
        (tmp_path / f"{i}.jpg").touch()
    with pytest.raises(CornerstoneError, match=r"no manifest.json but 5 other files \(0.jpg, 1.jpg, 2.jpg, ...\)"):
        Manifest.read(str(tmp_path))


def test_parquet_without_a_manifest(tmp_path):
    (tmp_path / "train-0.parquet").touch()
    with pytest.raises(CornerstoneError, match=r"writing was interrupted .* or these are not Cornerstone shards"):
        Manifest.read(str(tmp_path))


@pytest.mark.parametrize(
    "text", ["", "{", "[1, 2]", "3", '"text"', "{}", '{"version": 1, "shards": [{"file": "x"}]}', "\udcff"]
)
def test_a_broken_manifest(folder, text):
    folder.join("manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CornerstoneError, match="is not a Cornerstone manifest"):
        Manifest.read(folder)


def test_a_manifest_of_another_kind(folder):
    with pytest.raises(CornerstoneError, match="holds pairs, but stored features are needed here"):
        Manifest.read(folder, "features")
    with pytest.raises(CornerstoneError, match=r"packed documents are needed here\. Make .*laion-random.*data pack"):
        Manifest.read(folder, "packing")


def test_a_newer_manifest_is_not_called_broken(folder):
    change(folder, version=2, something_new=True)
    with pytest.raises(CornerstoneError, match="has version 2, newer than 1: update Cornerstone"):
        Manifest.read(folder)


def test_a_manifest_without_rows(folder):
    change(folder, shards=[])
    with pytest.raises(CornerstoneError, match="without rows"):
        Manifest.read(folder)


def test_the_content_hash_is_that_of_rows_and_classes_alone():
    same = replace(MANIFEST, name="other", source={"src": "y"}, tasks=("retrieval",), pool=10)
    assert same.content_hash == MANIFEST.content_hash
    others = [
        replace(MANIFEST, shards=SHARDS[::-1]),
        replace(MANIFEST, shards=SHARDS[:1]),
        replace(MANIFEST, shards=(replace(SHARDS[0], sha256="cc"), SHARDS[1])),
        replace(MANIFEST, classes=("dog", "cat")),
        replace(MANIFEST, prompts=("the {}",)),
    ]
    assert len({m.content_hash for m in (MANIFEST, *others)}) == 6


def test_equal_rows_written_twice_have_equal_hashes(tmp_path, small_data):
    def write(name, **changes):
        folder = small_data.write(tmp_path / name, (small_data.pair(i, **changes) for i in range(20)))
        return Manifest.read(folder).content_hash

    assert write("one") == write("two")
    assert write("three", group="g") != write("one-again")
