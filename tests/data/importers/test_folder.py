"""Where an image is looked for, and what a storage that does not answer means."""

from __future__ import annotations

import hashlib

import pytest
from pyarrow import fs

from cornerstone.data.importers.files import reading
from cornerstone.data.importers.folder import ImageFolder, candidates
from cornerstone.data.importers.tar_samples import Names, read_tar
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError


def test_the_surest_name_comes_first():
    address = "http://a/1.jpg?x=2"
    md5 = hashlib.md5(address.encode()).hexdigest()
    found = candidates("in/a folder.jpg", address)
    assert found[:3] == ["in/a folder.jpg", f"{md5}.jpg", md5]
    assert found[-2:] == ["1.jpg", "a folder.jpg"]  # under which another address's file may lie
    assert candidates(None, None) == []


class Away:
    """A file of a storage that answers for a while."""

    def __init__(self, content: bytes) -> None:
        self.content, self.place = content, 0

    def read(self, size: int = -1) -> bytes:
        if self.place + size > len(self.content) // 2:
            raise OSError("AWS Error NETWORK_CONNECTION")
        self.place += size
        return self.content[self.place - size : self.place]

    def __enter__(self) -> Away:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def test_a_storage_that_does_not_answer_is_no_damage(make, tmp_path, monkeypatch):
    """The import stops, and goes on later; a file that ends too early is another thing."""
    place = Location.of(make.write_tar(tmp_path / "a.tar", make.samples(range(4000))))
    whole = place.read_bytes()
    monkeypatch.setattr(Location, "open_input", lambda self: Away(whole))
    with pytest.raises(CornerstoneError, match=r"Cannot read .*a.tar: AWS Error NETWORK_CONNECTION"):
        list(read_tar(place, Names()))
    with pytest.raises(CornerstoneError, match="Cannot read"), reading(place) as stream:
        stream.read()


def test_an_image_of_a_storage_that_does_not_answer_stops_the_import(make, tmp_path):
    (tmp_path / "a.jpg").write_bytes(make.image(0))
    folder = ImageFolder(Location.of(tmp_path))
    assert folder.read("a.jpg") == make.image(0)
    folder.local, folder.filesystem = False, AwayStorage()
    with pytest.raises(CornerstoneError, match="time-out"):
        folder.read("a.jpg")


class AwayStorage:
    """Says that a file is there, and does not give it."""

    def get_file_info(self, path: str) -> fs.FileInfo:
        return fs.FileInfo(path, fs.FileType.File, size=9)

    def open_input_file(self, path: str) -> object:
        raise OSError("time-out")
