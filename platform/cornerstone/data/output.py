"""The output folder of a command: one writer at a time, finished tasks are kept after an interruption, the manifest is last.

A task (a tar to import, a shard to caption) writes its shards and then a record with a fingerprint of everything that
determines its output. A command that is started again reuses finished tasks whose fingerprint is unchanged. Records, and
partial files of killed writers, are removed once the manifest is written.
"""

from __future__ import annotations

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
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pyarrow import fs

from cornerstone.data.manifest import FILE, RECORD, WRITER, Shard
from cornerstone.data.storage import PART, Location
from cornerstone.errors import CornerstoneError

LOCK_PATIENCE = 0.2  # seconds: the lock of a writer that is just ending is soon free
BEAT = 20.0  # seconds between a writer's heartbeats, if the storage has no locks
DEAD = 3 * BEAT  # seconds without a heartbeat after which a writer counts as dead


@dataclass(frozen=True)
class Done:
    """A finished task: its shards in order, and what the task reports (plain JSON values)."""

    shards: tuple[Shard, ...]
    report: dict[str, Any] = field(default_factory=dict)


def refuse_existing(folder: Location) -> None:
    """Raise CornerstoneError if the folder already holds a finished data set."""
    if folder.join(FILE).exists():
        raise CornerstoneError(
            f"{folder} already holds a finished data set. Name another --out, or delete that folder first."
        )


@contextmanager
def writing(*folders: Location) -> Iterator[None]:
    """Be the only writer of the folders, which are created, during the block; clean up those that it finished.

    Raises CornerstoneError if one of them holds a finished data set or is being written by another process. On a local or
    mounted disk that is known by a file lock, which ends with its process; in an object store by heartbeats: a writer
    without one for a minute is dead.
    """
    with ExitStack() as held:
        for folder in folders:
            refuse_existing(folder)
            held.enter_context(_held(folder.make()))
            refuse_existing(folder)  # another process may have finished it in between
        yield
        for folder in folders:
            if folder.join(FILE).exists():
                _clean_up(folder)


def finished(folder: Location, task: str, settings: str) -> Done | None:
    """The task's result if an earlier run finished it with the same settings and its files are complete; None otherwise."""
    place = folder.join(task + RECORD)
    if not place.exists():
        return None
    found = json.loads(place.read_text())
    if found["settings"] != settings or "report" not in found:  # an older version called it otherwise
        return None
    shards = tuple(Shard(**{**shard, "row_groups": tuple(shard["row_groups"])}) for shard in found["shards"])
    filesystem, root = folder.resolve()
    whole = (filesystem.get_file_info(f"{root}/{shard.file}").size == shard.bytes for shard in shards)
    return Done(shards, found["report"]) if all(whole) else None


def finish(folder: Location, task: str, settings: str, done: Done) -> None:
    """Record that a task is finished, after its last shard was closed."""
    content = {"settings": settings, "shards": [asdict(shard) for shard in done.shards], "report": done.report}
    folder.join(task + RECORD).write_text(json.dumps(content) + "\n")


def forget(folder: Location) -> None:
    """Remove the records of all tasks."""
    for name in folder.list():
        if name.endswith(RECORD):
            folder.join(name).remove()


def stamps(files: list[Location]) -> list[list[Any]]:
    """Name, size and modification time of each file or folder: if one changes, its tasks are run again."""
    found = []
    for file in files:
        filesystem, path = file.resolve()
        info = filesystem.get_file_info(path)
        found.append([file.uri, info.size, info.mtime_ns])
    return found


def _clean_up(folder: Location) -> None:
    forget(folder)
    for name in folder.list():
        if PART in name:
            folder.join(name).remove()


@contextmanager
def _held(folder: Location) -> Iterator[None]:
    """Hold the folder, by a lock if its storage has locks."""
    with ExitStack() as held:
        if not (folder.is_local and _lock(folder, held)):
            held.enter_context(_alive(folder))
        yield


def _lock(folder: Location, held: ExitStack) -> bool:
    """Lock the folder until `held` is closed; False if the file system does not support locks.

    The kernel releases the lock when its process ends, however it ends. The file contains who holds it.
    """
    path = Path(folder.resolve()[1]) / WRITER
    lock = FileLock(path, timeout=LOCK_PATIENCE, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire(poll_interval=LOCK_PATIENCE / 4)
    except Timeout:
        holder = path.read_text(errors="replace") if path.exists() else ""
        raise CornerstoneError(_taken(folder, holder)) from None
    except OSError:  # some network file systems
        path.unlink(missing_ok=True)
        return False
    held.callback(lock.release)
    held.callback(path.unlink, missing_ok=True)  # before the release: filelock locks no file that has lost its name
    path.write_text(_self())
    return True


@contextmanager
def _alive(folder: Location) -> Iterator[None]:
    """Write a heartbeat file, and check those of other writers. Times are the storage's: clocks need not agree."""
    mine = folder.join(f"{WRITER}-{uuid.uuid4().hex}")
    mine.write_text(_self())
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(BEAT):
            with suppress(OSError):  # the next heartbeat comes before this writer counts as dead
                mine.write_text(_self())

    thread = threading.Thread(target=beat, daemon=True, name="heartbeat")
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
            thread.join()  # otherwise it might write the file again
        mine.remove()


def _self() -> str:
    command = " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])[:200]
    return f"process {os.getpid()} on {socket.gethostname()} ({command}), {time.strftime('%Y-%m-%d %H:%M:%S')}"


def _taken(folder: Location, holder: str) -> str:
    return (
        f"{folder} is being written by {holder or 'another process'}. Wait until it ends, stop it, or name another --out. If "
        f"it was killed, the same command continues its work once the process has ended."
    )
