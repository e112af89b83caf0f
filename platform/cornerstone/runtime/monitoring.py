"""Prometheus and Grafana on this machine, for the metrics of the Ray that runs here."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cornerstone.errors import CornerstoneError

DASHBOARDS = Path("dashboards")
"""Boards and configuration, relative to the project's root."""
HERE = "127.0.0.1"
"""Neither server asks who reads: they listen for this machine alone."""
DISCOVERY = Path("session_latest/prom_metrics_service_discovery.json")
"""Ray's list of its metrics ports, in its folder of sessions."""
RAY_BOARDS = Path("session_latest/metrics/grafana/dashboards")
READY_WITHIN = 60.0  # seconds: a first start of Grafana makes its database
POLL_EVERY = 0.5
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
        return f"http://{HERE}:{self.port}"


def source_folder() -> Path:
    """The project's folder of boards. Raises CornerstoneError if the current folder has none."""
    if not (DASHBOARDS / "boards").is_dir():
        raise CornerstoneError(
            f"There is no {DASHBOARDS / 'boards'} here ({Path.cwd()}): start it from the project's root."
        )
    return DASHBOARDS


def export_boards(out: Path, sessions: Path) -> int:
    """Copy our boards to `out`/cornerstone, and Ray's own to `out`/ray; returns how many Ray has.

    Ray writes its boards when it starts: 0 if it never did.
    """
    copies = {out / "cornerstone": source_folder() / "boards", out / "ray": sessions / RAY_BOARDS}
    for there, here in copies.items():
        there.mkdir(parents=True, exist_ok=True)
        for board in here.glob("*.json"):
            shutil.copyfile(board, there / board.name)
    return len(list((sessions / RAY_BOARDS).glob("*.json")))


def prometheus(program: str, port: int, folder: Path, sessions: Path) -> Server:
    """Prometheus for the Ray whose folder of sessions is given; it keeps its data in `folder`.

    It finds Ray through a file, which needs no token, and goes on with the next Ray that starts there.
    """
    import yaml

    program = _found(
        program,
        "Prometheus is not installed. On Debian and Ubuntu: sudo apt-get install prometheus, and, as the package also starts "
        "one that listens on all interfaces: sudo systemctl disable --now prometheus. Elsewhere unpack a release of "
        "https://prometheus.io/download and name it with --prometheus PATH.",
    )
    config = yaml.safe_load((source_folder() / "prometheus" / "one_machine.yml").read_text())
    for scrape in config["scrape_configs"]:
        for files in scrape["file_sd_configs"]:
            files["files"] = [str(sessions / DISCOVERY)]
    written = folder / "prometheus.yml"
    folder.mkdir(parents=True, exist_ok=True)
    written.write_text(yaml.safe_dump(config))
    port = _free(port)
    options = {
        "config.file": written,
        "storage.tsdb.path": folder / "prometheus",
        "web.listen-address": f"{HERE}:{port}",
    }
    command = [program, *(f"--{name}={value}" for name, value in options.items())]
    return Server("Prometheus", command, port, "/-/ready", {})


def grafana(program: str, port: int, folder: Path, source: Server) -> Server | None:
    """Grafana with the boards that were exported to `folder`, or None if it is not installed.

    Whoever is on this machine may look, and change a board for himself; nobody can log in.
    """
    found = shutil.which(program) or (shutil.which("grafana-server") if program == "grafana" else None)
    if found is None:
        return None
    port = _free(port)
    environment = {
        "CORNERSTONE_PROMETHEUS": source.url,
        "CORNERSTONE_BOARDS": str(folder / "cornerstone"),
        "RAY_BOARDS": str(folder / "ray"),
        "GF_SERVER_HTTP_ADDR": HERE,
        "GF_SERVER_HTTP_PORT": str(port),
        "GF_PATHS_PROVISIONING": str((source_folder() / "grafana" / "provisioning").resolve()),
        "GF_PATHS_DATA": str(folder / "grafana"),
        "GF_PATHS_LOGS": str(folder / "grafana" / "logs"),
        "GF_PATHS_PLUGINS": str(folder / "grafana" / "plugins"),
        "GF_AUTH_ANONYMOUS_ENABLED": "true",
        "GF_AUTH_ANONYMOUS_ORG_ROLE": "Viewer",
        "GF_USERS_VIEWERS_CAN_EDIT": "true",
        "GF_SECURITY_ADMIN_PASSWORD": secrets.token_hex(16),
        "GF_SECURITY_ALLOW_EMBEDDING": "true",  # in Ray's dashboard
        "GF_ANALYTICS_REPORTING_ENABLED": "false",
        "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
    }
    serve = ["server"] if Path(found).name != "grafana-server" else []
    command = [found, *serve, "--homepath", str(_grafana_home(Path(found)))]
    return Server("Grafana", command, port, "/api/health", environment)


@contextmanager
def running(servers: Sequence[Server], folder: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start servers and wait until they are ready; stop them at the end. Their output is in `folder`/NAME.log.

    Raises CornerstoneError if one ends, or does not answer in time.
    """
    processes: list[subprocess.Popen[bytes]] = []
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
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def watch(servers: Sequence[Server], processes: Sequence[subprocess.Popen[bytes]], folder: Path) -> Iterator[None]:
    """Yield every half second, for ever; raises CornerstoneError as soon as a server ends."""
    while True:
        for server, process in zip(servers, processes, strict=True):
            _check_alive(server, process, folder)
        yield
        time.sleep(POLL_EVERY)


def _wait_until_ready(server: Server, process: subprocess.Popen[bytes], folder: Path) -> None:
    begun = time.monotonic()
    while not _answers(server.url + server.ready):
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


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _log(server: Server, folder: Path) -> Path:
    return folder / f"{server.name.lower()}.log"


def _found(program: str, otherwise: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise CornerstoneError(otherwise)
    return found


def _grafana_home(program: Path) -> Path:
    """Where its pages are: two levels above the program in a release, elsewhere in a distribution's package."""
    release = program.resolve().parent.parent
    return release if (release / "public").is_dir() else Path("/usr/share/grafana")


def _free(port: int) -> int:
    """The port, or another one if it is taken."""
    for candidate in (port, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HERE, candidate))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise CornerstoneError(f"No port is free on {HERE}.")
