"""The journal: every metric of a run, appended to a local file before anything is sent.

MLflow being slow or down never stops or slows training: the step hands a line to the journal and goes on; a thread sends
lines in batches with short time-outs, and tries again where that fails. What could not be sent by the end stays in the
journal, and the run says so.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Sender = Callable[[Sequence["Line"]], None]
FIRST_RETRY, LAST_RETRY = 2.0, 60.0  # seconds


@dataclass(frozen=True)
class Line:
    """The metrics of one moment: milliseconds since the epoch, the step, and names with values."""

    time_ms: int
    step: int
    metrics: Mapping[str, float]


class Journal:
    """An append-only file of metrics, and the thread that sends them on.

    `make_sender` is called in the thread (a tracking client takes seconds to import); it returns a function that sends
    lines and raises where it cannot.
    """

    def __init__(self, path: Path, make_sender: Callable[[], Sender] | None = None, every: float = 1.0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.problem = path, ""
        self._file = path.open("a", encoding="utf-8")
        if _is_cut(path):
            self._file.write("\n")
        self._waiting: list[Line] = []
        self._lock, self._wake, self._closing = threading.Lock(), threading.Event(), threading.Event()
        self._every, self._make_sender = every, make_sender
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._send_all, daemon=True, name="journal")
        if make_sender is not None:
            self._thread.start()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append metrics; returns at once."""
        line = Line(int(time.time() * 1000), step, dict(metrics))
        with self._lock:
            self._file.write(json.dumps({"time": line.time_ms, "step": step, "metrics": line.metrics}) + "\n")
            self._file.flush()
            self._waiting.append(line)

    def close(self, patience: float = 15.0) -> int:
        """Send what is left for at most `patience` seconds; returns how many lines only the file has."""
        self._deadline = time.monotonic() + patience
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(patience + 5.0)
        with self._lock:
            os.fsync(self._file.fileno())
            self._file.close()
            return len(self._waiting)

    def _send_all(self) -> None:
        retry, send = FIRST_RETRY, None
        while True:
            self._wake.wait(self._every)
            with self._lock:
                lines = list(self._waiting)
            if lines:
                try:
                    send = send or self._make_sender()  # type: ignore[misc]
                    send(lines)
                    with self._lock:
                        del self._waiting[: len(lines)]
                    retry, self.problem = FIRST_RETRY, ""
                    continue
                except Exception as error:  # whatever a tracking server or its client raises must not reach training
                    self.problem = f"{type(error).__name__}: {error}"
                    if time.monotonic() + retry > self._deadline:
                        return
                    self._closing.wait(retry)
                    retry = min(retry * 2, LAST_RETRY)
            elif self._closing.is_set():
                return


def _is_cut(path: Path) -> bool:
    """Whether a crash left a part of a line at the end."""
    with path.open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
        return file.read() not in (b"", b"\n")


def read_journal(path: Path) -> list[Line]:
    """Every whole line of a journal; one cut short by a crash is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            fields = json.loads(text)
        except ValueError:
            continue
        lines.append(Line(fields["time"], fields["step"], fields["metrics"]))
    return lines
