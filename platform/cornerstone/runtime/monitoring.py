"""Prometheus and Grafana on this machine, for the metrics of the Ray that runs here."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

from cornerstone.errors import CornerstoneError
from cornerstone.runtime.servers import LOOPBACK, Server, free_port

DASHBOARDS = Path("dashboards")
"""Boards and configuration, relative to the project's root."""
DISCOVERY = Path("session_latest/prom_metrics_service_discovery.json")
"""Ray's list of its metrics ports, in its folder of sessions."""
RAY_BOARDS = Path("session_latest/metrics/grafana/dashboards")


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
    port = free_port(port)
    options = {
        "config.file": written,
        "storage.tsdb.path": folder / "prometheus",
        "web.listen-address": f"{LOOPBACK}:{port}",
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
    port = free_port(port)
    environment = {
        "CORNERSTONE_PROMETHEUS": source.url,
        "CORNERSTONE_BOARDS": str(folder / "cornerstone"),
        "RAY_BOARDS": str(folder / "ray"),
        "GF_SERVER_HTTP_ADDR": LOOPBACK,
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


def _found(program: str, otherwise: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise CornerstoneError(otherwise)
    return found


def _grafana_home(program: Path) -> Path:
    """Where its pages are: two levels above the program in a release, elsewhere in a distribution's package."""
    release = program.resolve().parent.parent
    return release if (release / "public").is_dir() else Path("/usr/share/grafana")
