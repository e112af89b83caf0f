"""Folders and files, local or in an object store: one small type over `pyarrow.fs`."""

from __future__ import annotations

import errno
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs

from cornerstone.errors import CornerstoneError

_CHUNK = 4 << 20
"""Bytes hashed at a time."""
PART = ".part-"
"""Part of the temporary name of a file that is still being written."""


def absolute(path: str | os.PathLike[str]) -> str:
    """An absolute path or URI, which is valid in every process: workers may have another working directory.

    A `file://` URI is converted to a path, which every library accepts.
    """
    text = os.fspath(path)
    if text.startswith("file://"):
        return str(fs.FileSystem.from_uri(text)[1])
    return text if "://" in text else str(Path(text).expanduser().absolute())


@dataclass(frozen=True)
class Location:
    """A folder or a file, by absolute path or URI (`s3://bucket/cc3m`)."""

    uri: str

    @staticmethod
    def of(path: Location | str | os.PathLike[str]) -> Location:
        """A location from a path or URI. Relative paths become absolute here, in the process of the caller."""
        return path if isinstance(path, Location) else Location(absolute(path))

    def __str__(self) -> str:
        return self.uri

    @property
    def is_local(self) -> bool:
        """Whether it is in a file system of this machine, mounted ones included."""
        return "://" not in self.uri or self.uri.startswith("file://")

    def join(self, *parts: str) -> Location:
        """A location below this one. URI options after a `?` (`endpoint_override=..`) stay at the end."""
        path, options = self._split()
        return Location("/".join([path.rstrip("/"), *parts]) + options)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self._split()[0].rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> Location:
        """The folder that contains this location."""
        path, options = self._split()
        return Location(path.rstrip("/").rpartition("/")[0] + options)

    def _split(self) -> tuple[str, str]:
        path, mark, options = self.uri.partition("?") if "://" in self.uri else (self.uri, "", "")
        return path, mark + options

    def resolve(self) -> tuple[fs.FileSystem, str]:
        """The file system and the path in it. Raises CornerstoneError if pyarrow cannot open it."""
        if "://" not in self.uri:  # a path is taken as it is, whatever signs are in it
            return fs.LocalFileSystem(), self.uri
        try:
            found: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(self.uri)
            return found
        except (ValueError, OSError) as error:
            raise CornerstoneError(f"Cannot open {self.uri}: {error}") from error

    def exists(self) -> bool:
        """Whether the file or folder exists."""
        filesystem, path = self.resolve()
        return bool(filesystem.get_file_info(path).type != fs.FileType.NotFound)

    def files(self) -> tuple[str, ...]:
        """Paths, relative to this folder, of all files below it; none if it does not exist."""
        filesystem, path = self.resolve()
        found = filesystem.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
        root = len(path.rstrip("/")) + 1
        return tuple(info.path[root:] for info in found if info.type == fs.FileType.File)

    def list(self) -> list[str]:
        """Names of the files and folders directly below. Raises CornerstoneError if it is a file."""
        filesystem, path = self.resolve()
        if filesystem.get_file_info(path).type == fs.FileType.File:
            raise CornerstoneError(f"{self} is a file; expected a folder.")
        return [info.base_name for info in filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))]

    def make(self) -> Location:
        """Create the folder, if the storage has folders."""
        filesystem, path = self.resolve()
        filesystem.create_dir(path, recursive=True)
        return self

    def remove(self) -> None:
        """Delete the file, or the folder with everything in it. Does nothing if it does not exist."""
        filesystem, path = self.resolve()
        info = filesystem.get_file_info(path)
        if info.type == fs.FileType.Directory:
            filesystem.delete_dir(path)
        elif info.type == fs.FileType.File:
            filesystem.delete_file(path)

    def open_input(self) -> Any:
        """A random-access file to read from."""
        filesystem, path = self.resolve()
        return filesystem.open_input_file(path)

    def read_bytes(self) -> bytes:
        """The whole file."""
        with self.open_input() as file:
            return bytes(file.read())

    def sha256(self) -> str:
        """Of the file's content, as hexadecimal digits."""
        digest = hashlib.sha256()
        with self.open_input() as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def read_text(self) -> str:
        """The whole file as UTF-8."""
        return self.read_bytes().decode("utf-8")

    @contextmanager
    def replacing(self) -> Iterator[Any]:
        """A stream that replaces this file atomically if the block ends without an exception.

        Raises CornerstoneError if the disk is full.

        On a local disk the content is written to a temporary file, which is fsynced and renamed. So a reader never sees a
        partial file, not even after a power cut, and of two concurrent writers one leaves its whole file. An object store
        shows a file only when it is closed.
        """
        filesystem, path = self.resolve()
        filesystem.create_dir(os.path.dirname(path), recursive=True)
        if not self.is_local:
            try:
                with filesystem.open_output_stream(path) as file:
                    yield file
            except BaseException:
                with suppress(OSError):
                    filesystem.delete_file(path)  # closing the stream made the partial file visible
                raise
            return
        part = f"{path}{PART}{os.getpid()}-{uuid.uuid4().hex[:8]}"
        try:
            with open(part, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException as error:
            with suppress(OSError):
                os.unlink(part)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise CornerstoneError(f"No space is left for {self}: free some, or name another folder.") from error
            raise

    def write_bytes(self, content: bytes) -> None:
        """Write the file atomically."""
        with self.replacing() as file:
            file.write(content)

    def write_text(self, content: str) -> None:
        """Write the file atomically, as UTF-8."""
        self.write_bytes(content.encode("utf-8"))
