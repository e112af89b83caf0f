"""The journal: a run's metrics, appended to a local file first and sent to the tracking server from there.

A slow or dead server never stops or slows training: `write` appends a line and returns; a thread sends lines in batches and
retries if that fails. How much of the file the server has acknowledged is kept in a small file in the same folder
(`journal.sent.json`), so a journal that is opened again, after a crash or on another machine, sends the rest.

A run that is restarted from a checkpoint repeats the steps after it. A metric that the file already has for a step is
neither written nor sent again.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from cornerstone.data.storage import Location
from cornerstone.secrets import redacted

Sender = Callable[[Sequence["Line"]], None]
"""Sends lines to a server and returns once it has them; raises if it has not."""
FIRST_RETRY, LAST_RETRY = 2.0, 60.0  # seconds between attempts, doubled from the first to the last
BATCH = 500  # lines sent, and then acknowledged, at a time
ACKNOWLEDGED = ".sent.json"


@dataclass(frozen=True)
class Line:
    """The metrics of one moment: milliseconds since the epoch, the step, and names with values."""

    time_ms: int
    step: int
    metrics: Mapping[str, float]


class Journal:
    """An append-only file of metrics, and the thread that sends its lines to a tracking server.

    `make_sender` is called in the thread, since a tracking client takes seconds to import. `destination` identifies what the
    lines are sent to (the MLflow run's id): for another destination than before, the whole file is sent. `problem` is the
    reason why the last batch could not be sent, empty after a success.
    """

    def __init__(
        self,
        path: Path,
        make_sender: Callable[[], Sender] | None = None,
        *,
        destination: str = "",
        every: float = 1.0,
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.problem = path, ""
        self._file = path.open("ab")
        if ends_in_a_cut_line(path):
            self._file.write(b"\n")
            self._file.flush()
        self._destination, self._acknowledged = destination, acknowledged_path(path)
        sent, size = _acknowledged_bytes(self._acknowledged, destination), path.stat().st_size
        if sent > size:  # the end of the file was lost: what is appended in its place has not been sent
            sent = size
            self._acknowledge(size)
        self._known: set[tuple[int, str]] = set()
        self._unsent: deque[tuple[Line, int]] = deque()  # each line with the size of the file up to its end
        for line, end in _lines(path):
            self._known.update((line.step, name) for name in line.metrics)
            if end > sent:
                self._unsent.append((line, end))
        self._lock, self._wake, self._closing = threading.Lock(), threading.Event(), threading.Event()
        self._every, self._make_sender = every, make_sender
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._send_all, daemon=True, name="journal")
        if make_sender is not None:
            self._thread.start()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the metrics that the journal does not have for this step; returns at once."""
        with self._lock:
            new = {name: value for name, value in metrics.items() if (step, name) not in self._known}
            if not new:
                return
            line = Line(int(time.time() * 1000), step, new)
            text = json.dumps({"time": line.time_ms, "step": step, "metrics": new}) + "\n"
            self._file.write(text.encode())
            self._file.flush()
            self._known.update((step, name) for name in new)
            self._unsent.append((line, self._file.tell()))

    def close(self, patience: float = 15.0) -> int:
        """Send what is left for at most `patience` seconds; returns the number of lines that the server does not have."""
        self._deadline = time.monotonic() + patience
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(patience + 5.0)
        with self._lock:
            os.fsync(self._file.fileno())
            self._file.close()
            return len(self._unsent)

    def _send_all(self) -> None:
        retry, send = FIRST_RETRY, None
        while True:
            with self._lock:
                batch = list(islice(self._unsent, BATCH))
            if not batch:
                if self._closing.is_set():
                    return
                self._wake.wait(self._every)
                continue
            try:
                send = send or self._make_sender()  # type: ignore[misc]
                send([line for line, _ in batch])
            except Exception as error:  # whatever a tracking server or its client raises must not reach training
                self.problem = redacted(f"{type(error).__name__}: {error}")
                if time.monotonic() + retry > self._deadline:
                    return
                self._closing.wait(retry)
                retry = min(retry * 2, LAST_RETRY)
                continue
            with self._lock:
                for _ in batch:
                    self._unsent.popleft()
            retry, self.problem = FIRST_RETRY, ""
            self._acknowledge(batch[-1][1])
            if len(batch) < BATCH:
                self._wake.wait(self._every)

    def _acknowledge(self, size: int) -> None:
        """Keep how much of the file was sent. If that fails, a later life sends these lines again: MLflow drops repeats."""
        try:
            Location.of(self._acknowledged).write_text(
                json.dumps({"destination": self._destination, "bytes": size}) + "\n"
            )
        except Exception as error:  # a full disk, for example
            self.problem = f"{type(error).__name__}: {error}"


def acknowledged_path(journal: Path) -> Path:
    """The file that says how much of a journal the tracking server has."""
    return journal.with_suffix(ACKNOWLEDGED)


def read_journal(path: Path) -> list[Line]:
    """Every whole line of a journal; one cut short by a crash is left out."""
    return [line for line, _ in _lines(path)]


def _lines(path: Path) -> Iterator[tuple[Line, int]]:
    """Whole lines, each with the number of bytes up to its end."""
    end = 0
    with path.open("rb") as file:
        for text in file:
            end += len(text)
            try:
                fields = json.loads(text)
                yield Line(fields["time"], fields["step"], fields["metrics"]), end
            except (ValueError, KeyError, TypeError):
                continue


def ends_in_a_cut_line(path: Path) -> bool:
    """Whether a crash left a part of a line at the end."""
    with path.open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
        return file.read() not in (b"", b"\n")


def _acknowledged_bytes(path: Path, destination: str) -> int:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return int(kept["bytes"]) if kept["destination"] == destination else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0
