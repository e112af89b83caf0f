"""What this process writes to its standard error while a view is drawn in the same terminal."""

from __future__ import annotations

import faulthandler
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress

STDERR = 2


class CapturedErrors:
    """Within a `with` block, what goes to the standard error's file descriptor waits in a file until `new` returns it.

    The file descriptor and not `sys.stderr`, since logging handlers hold the stream itself, and C++ libraries know nothing of
    it. A file and not a pipe, since whoever writes must never wait for the reader, which needs Python's interpreter lock.
    Nothing is captured if the standard error is no terminal: it then does not disturb the view.
    """

    def __init__(self) -> None:
        self.captures = False
        self._file = -1
        self._terminal = -1
        self._read = 0
        self._part = b""
        self._ended = False
        self._dumps_faults = False

    def __enter__(self) -> CapturedErrors:
        try:
            self.captures = os.isatty(STDERR)
        except OSError:  # closed by the caller (`2>&-`)
            self.captures = False
        if not self.captures:
            return self
        sys.stderr.flush()
        with tempfile.TemporaryFile() as file:
            self._file = os.dup(file.fileno())
        self._terminal = os.dup(STDERR)
        self._dumps_faults = faulthandler.is_enabled()
        if self._dumps_faults:
            faulthandler.enable(self._terminal)  # a crash leaves nobody to show the file
        os.dup2(self._file, STDERR)
        return self

    def __exit__(self, *error: object) -> None:
        if not self.captures:
            return
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        os.dup2(self._terminal, STDERR)
        if self._dumps_faults:
            faulthandler.enable(STDERR)
        os.close(self._terminal)
        self._ended = True

    def new(self) -> Iterator[str]:
        """The whole lines since the last call; after the block also the last one, if it has no end."""
        if not self.captures or self._file < 0:
            return
        size = os.fstat(self._file).st_size
        text = self._part + os.pread(self._file, size - self._read, self._read)
        self._read = size
        *lines, self._part = text.split(b"\n")
        if self._ended:
            lines, self._part = [*lines, *([self._part] if self._part else [])], b""
            os.close(self._file)
            self._file = -1
        for line in lines:
            yield line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace")  # of a progress bar its last state
