"""A folder of images, found by relative name or by URL. No file outside the folder is read."""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Iterable
from urllib.parse import unquote, urlsplit

from pyarrow import fs

from cornerstone.data.images import BadImage, probe
from cornerstone.data.importers.core import MAX_BYTES
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError


class ImageFolder:
    """One folder, local or in an object store.

    Symbolic links are followed if they stay inside the folder, or, in a snapshot of the Hugging Face hub's cache, lead to
    its blobs. With `follow_links` they may lead anywhere. Names never may: `..` and absolute paths are refused.
    """

    def __init__(self, location: Location, follow_links: bool = False) -> None:
        self.filesystem, self.root = location.resolve()
        self.local, self.follow_links = isinstance(self.filesystem, fs.LocalFileSystem), follow_links
        self.allowed = [self.root]
        if self.local:
            self.root = os.path.abspath(self.root)
            self.allowed = [os.path.realpath(self.root), *_hub_blobs(self.root)]

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises OSError or ValueError with the reason if it cannot be read."""
        path = self._inside(name)
        info = self.filesystem.get_file_info(path)
        if info.type == fs.FileType.NotFound:
            raise OSError("missing file: the image folder has no such file")
        if info.type != fs.FileType.File:
            raise OSError("not a file: a folder, a pipe or a device")
        if info.size is not None and info.size > MAX_BYTES:
            raise OSError(f"too large: {info.size:,} bytes")
        try:
            with self.filesystem.open_input_file(path) as file:
                return bytes(file.read())
        except OSError as error:
            if not self.local:  # the storage does not answer: stop, to resume later, instead of quarantining the row
                raise CornerstoneError(f"Cannot read {path}: {error}") from error
            raise OSError(f"not readable: {error}") from error

    def read_image(self, names: Iterable[str]) -> bytes:
        """The first file with one of these names that is an image. Raises OSError, ValueError or BadImage if there is none."""
        problems: list[Exception] = []
        for name in names:
            try:
                found = self.read(name)
                probe(found)
                return found
            except (OSError, ValueError, BadImage) as error:
                problems.append(error)
        if not problems:
            raise OSError("no image: the row has neither a name nor a URL")
        # A file that is there and cannot be used says more than the names that do not exist.
        raise next((one for one in problems if not str(one).startswith("missing file")), problems[0])

    def _inside(self, name: str) -> str:
        """The path of a name, with symbolic links resolved on a local disk. Raises ValueError if it lies outside the folder."""
        path = posixpath.normpath(posixpath.join(self.root, name))
        if "\0" in name or not _is_inside(path, self.root):
            raise ValueError("outside the image folder: `..` or an absolute path leads out of it")
        if not self.local:
            return path
        real = os.path.realpath(path)
        if not self.follow_links and not any(_is_inside(real, allowed) for allowed in self.allowed):
            raise ValueError(
                f"outside the image folder: a link leads to {real}. Use --follow-links, or name that folder as the source"
            )
        return real


def _is_inside(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")


def _hub_blobs(root: str) -> list[str]:
    """The folder to which the files of a snapshot in the hub's cache link: REPO/blobs for REPO/snapshots/REVISION/.."""
    parts = root.split("/")
    places = [place for place, part in enumerate(parts) if part == "snapshots" and place + 1 < len(parts)]
    repositories = ["/".join(parts[:place]) for place in places]
    return [os.path.realpath(f"{repo}/blobs") for repo in repositories if os.path.isdir(f"{repo}/blobs")]


def candidates(name: str | None, address: str | None) -> list[str]:
    """File names under which a downloader may have saved an image, most specific first.

    These are its name, hashes of its URL, and the last component of either, which several URLs may share.
    """
    names = [name] if name else []
    if address and "://" in address:
        last = unquote(urlsplit(address).path).rpartition("/")[2]
        kinds = ("md5", "sha1", "sha256")
        hashes = [hashlib.new(kind, address.encode(), usedforsecurity=False).hexdigest() for kind in kinds]
        names += [*(f"{digest}{ending}" for digest in hashes for ending in (".jpg", "")), last]
    if name:
        names.append(name.rpartition("/")[2])
    return [found for found in dict.fromkeys(names) if found]
