"""The folder that a command writes: one writer at a time, finished pieces kept through interruptions, the manifest last.

A piece of work (a tar to import, a shard to describe) writes its shards and then a record of itself, which says by what
settings they were made. So an interrupted command goes on after its finished pieces, and pieces made otherwise are made
anew. Records and whatever a killed writer left half are removed when the manifest is written.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from pyarrow import fs

from cornerstone.data.manifest import FILE, RECORD, WRITER, Shard
from cornerstone.data.storage import PART, Location
from cornerstone.errors import CornerstoneError

BEAT = 20.0  # seconds between a writer's signs of life, where the storage has no locks
DEAD = 3 * BEAT


@dataclass(frozen=True)
class Done:
    """A finished piece: its shards in their order, and what its maker tells of them (plain JSON values)."""

    shards: tuple[Shard, ...]
    told: dict[str, Any] = field(default_factory=dict)


def refuse_existing(folder: Location) -> None:
    """Raise CornerstoneError where a finished data set already lies in the folder."""
    if folder.join(FILE).exists():
        raise CornerstoneError(
            f"{folder} already holds a finished data set. Name another --out, or delete that folder first."
        )


@contextmanager
def writing(*folders: Location) -> Iterator[None]:
    """Hold folders, made where they are missing, for the length of the block; tidy those that it finished.

    Raises CornerstoneError where one holds a finished data set, or is being written by another process: on a local or
    mounted disk by a lock, which ends with its process; in an object store by signs of life, a minute without which
    mean that the writer is dead.
    """
    with ExitStack() as held:
        for folder in folders:
            refuse_existing(folder)
            held.enter_context(_held(folder.make()))
            refuse_existing(folder)  # finished by another one since the first look
        yield
        for folder in folders:
            if folder.join(FILE).exists():
                _tidy(folder)


def finished(folder: Location, piece: str, settings: str) -> Done | None:
    """The piece, where an earlier run with these settings finished it and its files are there as they were written."""
    place = folder.join(piece + RECORD)
    if not place.exists():
        return None
    found = json.loads(place.read_text())
    if found["settings"] != settings:
        return None
    shards = tuple(Shard(**{**shard, "row_groups": tuple(shard["row_groups"])}) for shard in found["shards"])
    filesystem, root = folder.resolve()
    whole = (filesystem.get_file_info(f"{root}/{shard.file}").size == shard.bytes for shard in shards)
    return Done(shards, found["told"]) if all(whole) else None


def finish(folder: Location, piece: str, settings: str, done: Done) -> None:
    """Record that a piece is finished, after its last shard was closed."""
    content = {"settings": settings, "shards": [asdict(shard) for shard in done.shards], "told": done.told}
    folder.join(piece + RECORD).write_text(json.dumps(content) + "\n")


def forget(folder: Location) -> None:
    """Take away the records of all pieces."""
    for name in folder.list():
        if name.endswith(RECORD):
            folder.join(name).remove()


def stamps(files: list[Location]) -> list[list[Any]]:
    """Size and time of change of each file or folder: pieces made of its earlier state are made anew."""
    found = []
    for file in files:
        filesystem, path = file.resolve()
        info = filesystem.get_file_info(path)
        found.append([file.uri, info.size, info.mtime_ns])
    return found


def _tidy(folder: Location) -> None:
    forget(folder)
    for name in folder.list():
        if PART in name:
            folder.join(name).remove()


@contextmanager
def _held(folder: Location) -> Iterator[None]:
    """The folder, by the means that its storage has."""
    if folder.is_local:
        with _locked(folder) as locks:
            if locks:
                yield
                return
    with _alive(folder):
        yield


@contextmanager
def _locked(folder: Location) -> Iterator[bool]:
    """Hold a lock on the writer's file, which the kernel ends with the process; False where the disk knows no locks."""
    path = folder.resolve()[1] + "/" + WRITER
    file = _lock(folder, path)
    if file is None:
        yield False
        return
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, _self().encode(), 0)
        yield True
    finally:
        with suppress(FileNotFoundError):  # with its folder
            os.unlink(path)  # while it is held: who opened it before finds another file under the name, and looks again
        os.close(file)


def _lock(folder: Location, path: str) -> int | None:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 4096, 0).decode(errors="replace")
            os.close(file)
            raise CornerstoneError(_taken(folder, holder)) from None
        except OSError:
            os.close(file)
            return None
        if os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(file)):
            return file
        os.close(file)


@contextmanager
def _alive(folder: Location) -> Iterator[None]:
    """Give signs of life in a file of one's own, and heed others'. Times are the storage's: clocks need not agree."""
    mine = folder.join(f"{WRITER}-{uuid.uuid4().hex}")
    mine.write_text(_self())
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(BEAT):
            with suppress(OSError):  # the next one comes before this writer counts as dead
                mine.write_text(_self())

    thread = threading.Thread(target=beat, daemon=True, name="sign-of-life")
    try:
        filesystem, root = folder.resolve()
        files = {i.base_name: i for i in filesystem.get_file_info(fs.FileSelector(root)) if i.type == fs.FileType.File}
        now = files[mine.name].mtime_ns
        for name, info in files.items():
            if not name.startswith(WRITER + "-") or folder.join(name) == mine:
                continue
            if now - info.mtime_ns < DEAD * 1e9:
                raise CornerstoneError(_taken(folder, folder.join(name).read_text()))
            folder.join(name).remove()
        thread.start()
        yield
    finally:
        stop.set()
        if thread.is_alive():
            thread.join()  # or it would write once more
        mine.remove()


def _self() -> str:
    command = " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])[:200]
    return f"process {os.getpid()} on {socket.gethostname()} ({command}), {time.strftime('%Y-%m-%d %H:%M:%S')}"


def _taken(folder: Location, holder: str) -> str:
    return (
        f"{folder} is being written by {holder or 'another process'}. Wait for its end, stop it, or name another --out; where "
        f"it was killed, the same command goes on once it is gone."
    )
