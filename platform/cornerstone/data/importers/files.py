"""Formats that consist of many files of records: finding the files, one task per file, shuffling.

The order of the files is a seeded permutation. Within a task, records pass through a shuffle buffer of 1,000, whose draws
are seeded too.
"""

from __future__ import annotations

import fnmatch
import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import IO, Any, TypeVar

from cornerstone.data import draws
from cornerstone.data.importers.core import ImportOptions, ImportPlan
from cornerstone.data.importers.debris import is_debris
from cornerstone.data.output import stamps
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError

SHUFFLE_BUFFER = 1000  # records
_DRAWS = "import-window"  # purpose of the shuffle buffer's draws: another name would be another order
T = TypeVar("T")
Task = list[tuple[int, Location]]
"""The files of one task, each with its number in the sorted source."""


def find_files(src: Location, endings: Sequence[str], what: str) -> list[Location]:
    """The files that `src` names, sorted: a file, a folder, a glob (`cc3m/*.tar`) or a brace list (`{00000..00331}.tar`).

    A path that exists is taken as it is, whatever signs are in its name. `what` describes one file in error messages. Raises
    CornerstoneError if there is no file with one of the endings.
    """
    found: list[Location] = []
    for location in [src] if src.exists() else map(Location, braces(src.uri)):
        last, exists = location.name, location.exists()
        if not exists and any(sign in last for sign in "*?["):
            found += [location.parent.join(name) for name in location.parent.list() if fnmatch.fnmatch(name, last)]
        elif not exists:
            if last.endswith(tuple(endings)):
                raise CornerstoneError(f"No {what} at {location}.")
            raise CornerstoneError(
                f"Nothing at {location}: expected a {what}, a folder of them, a glob or a brace list."
            )
        elif last.endswith(tuple(endings)):
            found.append(location)
        else:
            found += [location.join(name) for name in location.list()]
    found = [file for file in found if file.name.endswith(tuple(endings)) and not is_debris(file.name)]
    if not found:
        raise CornerstoneError(f"No {what} in {src}: expected files that end with {', '.join(endings)}.")
    return sorted(set(found), key=lambda file: file.uri)


def plan_files(files: Sequence[Location], options: ImportOptions, what: str) -> ImportPlan:
    """One task per file; with `limit_rows` a single task for all files, which reads no more files than it needs."""
    drawn = draws.permutation(len(files), options.seed, "import-order")
    shuffled_files = [(int(i), files[i]) for i in drawn]
    tasks = [[file] for file in shuffled_files] if options.limit_rows is None else [shuffled_files]
    order = {what: "permuted", "shuffle_buffer": SHUFFLE_BUFFER, "seed": options.seed}
    sources = [stamps([file for _, file in task]) for task in tasks]
    return ImportPlan(tasks, order, source=[file.uri for file in files], sources=sources)


def read_files(task: Task, records: Callable[[Location], Iterator[T]], options: ImportOptions) -> Iterator[T]:
    """The records of the files of one task, at most `limit_rows`, through the shuffle buffer."""
    found = (record for _, file in task for record in records(file))
    return shuffled(islice(found, options.limit_rows), options.seed, task[0][0])


@contextmanager
def reading(file: Location) -> Iterator[IO[bytes]]:
    """The file as a stream. A failure of the storage raises CornerstoneError, so that it is not taken for a damaged file: the
    import stops, and resumes when the storage answers again.
    """
    with _storage_errors(file):
        source = file.open_input()
    with source, io.BufferedReader(_Source(file, source), 1 << 20) as stream:
        yield stream


@contextmanager
def _storage_errors(file: Location) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CornerstoneError(f"Cannot read {file}: {error}") from error


class _Source(io.RawIOBase):
    def __init__(self, file: Location, source: Any) -> None:
        self._file, self._source = file, source

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _storage_errors(self._file):
            found = self._source.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with _storage_errors(self._file):
            return int(self._source.seek(offset, whence))

    def tell(self) -> int:
        return int(self._source.tell())


def braces(pattern: str) -> list[str]:
    """Expand `a{0..2}.tar` and `{train,val}.tar`; leading zeros are kept."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    inside = match.group(1)
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if numbers:
        first, last = numbers.groups()
        choices = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    else:
        choices = inside.split(",")
    return [text for choice in choices for text in braces(pattern[: match.start()] + choice + pattern[match.end() :])]


def shuffled(records: Iterator[T], seed: int, task: int) -> Iterator[T]:
    """The records, shuffled by a buffer of SHUFFLE_BUFFER records. The order depends on the seed and the task only."""
    buffer: list[T] = []
    for count, record in enumerate(records):
        if len(buffer) < SHUFFLE_BUFFER:
            buffer.append(record)
            continue
        place = int(draws.choice(SHUFFLE_BUFFER, seed, _DRAWS, task, count)[0])
        buffer[place], record = record, buffer[place]
        yield record
    for place in draws.permutation(len(buffer), seed, _DRAWS, task, -1):
        yield buffer[place]
