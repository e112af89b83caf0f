"""Servers that run on this machine as long as a command does: start, wait until they answer, watch, stop."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from cornerstone.errors import CornerstoneError

LOOPBACK = "127.0.0.1"
"""The servers have no authentication, so they listen on the loopback address only."""
READY_WITHIN = 180.0  # seconds: a first start of Grafana, or of MLflow, makes its database, on a loaded machine slowly
STOPPED_WITHIN = 10.0  # seconds
POLL_EVERY = 0.5
HIGHEST = 65535
LOG_LINES = 5  # of a server that ended, in the error


@dataclass(frozen=True)
class Server:
    """A program that serves HTTP on this machine."""

    name: str
    command: Sequence[str]
    port: int
    ready: str
    """The path that answers once it is ready."""
    environment: Mapping[str, str]

    @property
    def url(self) -> str:
        """Where it is reached."""
        return f"http://{LOOPBACK}:{self.port}"


@contextmanager
def running(servers: Sequence[Server], folder: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start servers and wait until they are ready; stop them at the end. Their output is in `folder`/NAME-PORT.log.

    Raises CornerstoneError if one ends, or does not answer in time.
    """
    processes: list[subprocess.Popen[bytes]] = []
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for server in servers:
            with _log(server, folder).open("wb") as log:
                environment = {**os.environ, **server.environment}
                # A session of its own: Ctrl-C reaches only this process, which stops them.
                process = subprocess.Popen(
                    server.command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
                )
            processes.append(process)
        for server, process in zip(servers, processes, strict=True):
            _wait_until_ready(server, process, folder)
        yield processes
    finally:
        _stop(processes)


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End the servers with the processes that they started themselves, if need be by force."""
    try:
        _signal(processes, signal.SIGTERM)
        deadline = time.monotonic() + STOPPED_WITHIN
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
    finally:  # after a second Ctrl-C too
        _signal(processes, signal.SIGKILL)
        for process in processes:
            process.wait()


def _signal(processes: Sequence[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def interrupt_on_signals() -> None:
    """Take SIGTERM, and SIGHUP (the terminal is closed), as Ctrl-C: the servers must end with this process.

    SIGHUP stays ignored if it is (nohup).
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _interrupt_once)


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    """A closed terminal may send SIGHUP twice, by the kernel and by the shell: one must not cut short what the other began."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def watch(servers: Sequence[Server], processes: Sequence[subprocess.Popen[bytes]], folder: Path) -> Iterator[None]:
    """Yield every half second without an end; raises CornerstoneError as soon as a server ends."""
    while True:
        for server, process in zip(servers, processes, strict=True):
            _check_alive(server, process, folder)
        yield
        time.sleep(POLL_EVERY)


def _wait_until_ready(server: Server, process: subprocess.Popen[bytes], folder: Path) -> None:
    begun = time.monotonic()
    while not answers(server.url + server.ready):
        _check_alive(server, process, folder)
        if time.monotonic() - begun > READY_WITHIN:
            raise CornerstoneError(
                f"{server.name} does not answer after {READY_WITHIN:.0f} s: see {_log(server, folder)}."
            )
        time.sleep(POLL_EVERY)


def _check_alive(server: Server, process: subprocess.Popen[bytes], folder: Path) -> None:
    if process.poll() is not None:
        last = "\n".join(_log(server, folder).read_text(errors="replace").splitlines()[-LOG_LINES:])
        raise CornerstoneError(
            f"{server.name} ended with status {process.returncode} ({_log(server, folder)}):\n{last}"
        )


def answers(url: str) -> bool:
    """Whether a page of this machine is there within two seconds."""
    return page(url) is not None


def page(url: str) -> bytes | None:
    """A page of a server on this machine; None if it is not there within two seconds."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy has another 127.0.0.1
    try:
        with direct.open(url, timeout=2) as response:
            return bytes(response.read()) if response.status == 200 else None
    except (OSError, http.client.HTTPException):  # nobody, an error's page, or a program that does not speak HTTP
        return None


def _log(server: Server, folder: Path) -> Path:
    return folder / f"{server.name.lower()}-{server.port}.log"  # two of a kind may run, on different ports


def check_port(port: int, lowest: int = 0) -> None:
    """CornerstoneError unless it is a port's number; 0 stands for any one that is free."""
    if not lowest <= port <= HIGHEST:
        raise CornerstoneError(f"{port} is no port: expected a number from {lowest} to {HIGHEST}.")


def free_port(port: int) -> int:
    """The port, or another one if it is taken. CornerstoneError if it is none."""
    check_port(port)
    for candidate in (port, 0):
        if found := _bound(candidate):
            return found
    raise CornerstoneError(f"No port is free on {LOOPBACK}.")


def is_free(port: int) -> bool:
    """Whether nothing listens on a port of this machine."""
    return bool(_bound(port))


def _bound(port: int) -> int:
    """The port, or for 0 any one, if a server could listen there; otherwise 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return 0
        return int(probe.getsockname()[1])
