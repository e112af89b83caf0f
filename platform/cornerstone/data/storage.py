"""Folders and files that may be local or in an object store: one small type over `pyarrow.fs`."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs

from cornerstone.errors import CornerstoneError

PART = ".part-"
"""Stands in the name of a file that is still being written."""


def absolute(path: str | os.PathLike[str]) -> str:
    """An absolute path or URI that means the same in every process: workers do not share the working directory.

    A `file://` URI becomes the path that it stands for, which every library understands.
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
        """A location from anything that names one; relative paths are made absolute here, in the caller's process."""
        return path if isinstance(path, Location) else Location(absolute(path))

    def __str__(self) -> str:
        return self.uri

    @property
    def is_local(self) -> bool:
        """Whether it lies in this machine's file system (or one mounted on it)."""
        return "://" not in self.uri or self.uri.startswith("file://")

    def join(self, *parts: str) -> Location:
        """A place below this one; what follows a `?` (`endpoint_override=..`) stays behind the path."""
        path, options = self._split()
        return Location("/".join([path.rstrip("/"), *parts]) + options)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self._split()[0].rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> Location:
        """The place that this one lies in."""
        path, options = self._split()
        return Location(path.rstrip("/").rpartition("/")[0] + options)

    def _split(self) -> tuple[str, str]:
        path, mark, options = self.uri.partition("?") if "://" in self.uri else (self.uri, "", "")
        return path, mark + options

    def resolve(self) -> tuple[fs.FileSystem, str]:
        """The file system and the path in it."""
        try:
            found: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(self.uri)
            return found
        except (ValueError, OSError) as error:
            raise CornerstoneError(f"Cannot open {self.uri}: {error}") from error

    def exists(self) -> bool:
        """Whether a file or folder is there."""
        filesystem, path = self.resolve()
        return bool(filesystem.get_file_info(path).type != fs.FileType.NotFound)

    def list(self) -> list[str]:
        """Names of the files and folders directly below."""
        filesystem, path = self.resolve()
        if filesystem.get_file_info(path).type == fs.FileType.File:
            raise CornerstoneError(f"{self} is a file; expected a folder.")
        return [info.base_name for info in filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))]

    def make(self) -> Location:
        """Create the folder where the storage has folders."""
        filesystem, path = self.resolve()
        filesystem.create_dir(path, recursive=True)
        return self

    def remove(self) -> None:
        """Delete the folder or file and all below it."""
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

    def read_text(self) -> str:
        """The whole file as UTF-8."""
        return self.read_bytes().decode("utf-8")

    @contextmanager
    def replacing(self) -> Iterator[Any]:
        """A stream whose content appears under this name when the block ends without an exception, all at once.

        Raises CornerstoneError where the disk is full.

        On a local disk it is written under another name, forced to the disk and renamed, so that neither a reader nor a
        power cut finds a part of it, and two writers leave one's file or the other's; object stores show a file when it is
        closed.
        """
        filesystem, path = self.resolve()
        filesystem.create_dir(os.path.dirname(path), recursive=True)
        if not self.is_local:
            try:
                with filesystem.open_output_stream(path) as file:
                    yield file
            except BaseException:
                with suppress(OSError):
                    filesystem.delete_file(path)  # closing it has shown what there was of it
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
                raise CornerstoneError(f"No space is left for {self}: free some, or name another place.") from error
            raise

    def write_bytes(self, content: bytes) -> None:
        """Write the file so that a reader sees all of it or nothing."""
        with self.replacing() as file:
            file.write(content)

    def write_text(self, content: str) -> None:
        """Write the file as UTF-8, all or nothing."""
        self.write_bytes(content.encode("utf-8"))
