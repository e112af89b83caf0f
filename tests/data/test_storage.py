from __future__ import annotations

from pathlib import Path

import pytest

from cornerstone.data.storage import Location, absolute
from cornerstone.errors import CornerstoneError


def test_paths_mean_the_same_in_every_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert Location.of("shards").uri == str(tmp_path / "shards")
    assert Location.of("~/shards").uri == "/home/somebody/shards"
    assert Location.of("s3://bucket/cc3m").uri == "s3://bucket/cc3m"
    assert Location.of(Path("a") / "b") == Location.of("a/b")
    assert Location.of(Location("s3://bucket")) == Location("s3://bucket")


def test_a_file_uri_is_its_path(tmp_path):
    folder = tmp_path / "with a space"
    uri = folder.as_uri()
    assert "%20" in uri
    assert absolute(uri) == str(folder)
    Location.of(uri).join("sub", "note.txt").write_text("there")
    assert (folder / "sub" / "note.txt").read_text() == "there"


def test_only_paths_of_this_machine_are_local():
    assert Location.of("shards").is_local
    assert Location.of("file:///shards").is_local
    assert not Location.of("s3://bucket/shards").is_local


def test_options_of_an_address_stay_behind_its_path():
    place = Location.of("s3://bucket/a/b?endpoint_override=localhost:9000")
    assert place.join("c", "d.json").uri == "s3://bucket/a/b/c/d.json?endpoint_override=localhost:9000"
    assert (place.name, place.parent.uri) == ("b", "s3://bucket/a?endpoint_override=localhost:9000")
    assert Location.of("/a/b?c").join("d").uri == "/a/b?c/d"  # a path may hold the sign


def test_a_file_has_no_files_below_it(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"")
    with pytest.raises(CornerstoneError, match="is a file; expected a folder"):
        Location.of(tmp_path / "x.zip").list()


def test_joining_keeps_one_separator():
    assert Location.of("s3://bucket/").join("a", "b").uri == "s3://bucket/a/b"


def test_what_is_written_is_listed_read_and_removed(tmp_path):
    folder = Location.of(tmp_path / "new")
    assert not folder.exists()
    assert folder.list() == []
    folder.join("deep", "file").write_bytes(b"\x00\xff")
    assert folder.list() == ["deep"]
    assert folder.join("deep", "file").read_bytes() == b"\x00\xff"
    folder.remove()
    assert not folder.exists()
    folder.remove()  # removing what is not there is no fault


def test_a_failed_write_leaves_what_was_there(tmp_path):
    file = Location.of(tmp_path / "manifest.json")
    file.write_text("old")
    with pytest.raises(TypeError):
        file.write_bytes(3)
    assert file.read_text() == "old"
    file.write_text("new, größer")
    assert file.read_text() == "new, größer"


def test_writing_leaves_no_part_behind(tmp_path):
    Location.of(tmp_path / "file").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_storage_that_nobody_knows_is_refused():
    with pytest.raises(CornerstoneError, match="Cannot open gopher://x/y"):
        Location.of("gopher://x/y").exists()
