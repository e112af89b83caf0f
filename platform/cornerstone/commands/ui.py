"""`cornerstone ui`: MLflow's pages of a sweep, on the store of its records."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cornerstone.commands.terminal import say
from cornerstone.errors import CornerstoneError

if TYPE_CHECKING:
    from cornerstone.runtime.servers import Server
    from cornerstone.tracking.address import Address
    from cornerstone.tracking.mlflow_sweeps import RecordedSweep


@dataclass(frozen=True)
class UiCommand:
    """MLflow's pages of a sweep: starts MLflow's server on the store of the records, and prints the links.

    The store is that of MLFLOW_TRACKING_URI, or mlflow.db in CORNERSTONE_HOME. Nothing is started if it is a server already,
    or if one serves it on this port. Ctrl-C stops the server.
    """

    sweep: str = ""
    """A sweep's name, as it was printed at its start; default: the newest one."""
    port: int = 5000
    """Where the server listens, for this machine alone."""
    folder: str = "~/.cornerstone/ui"
    """Where the server's log is kept."""

    def run(self) -> None:
        """Print the links, and serve until Ctrl-C."""
        from cornerstone.runtime.servers import check_port, interrupt_on_signals, running, watch
        from cornerstone.tracking.address import tracking_address
        from cornerstone.tracking.mlflow_sweeps import find_sweep

        check_port(self.port, lowest=1)
        address, folder = tracking_address(), Path(self.folder).expanduser()
        sweep = find_sweep(address, self.sweep)
        if address.is_server:
            return _say_links(address, sweep, self.port)
        server = mlflow_server(address, self.port)
        if _is_served(server, address, sweep):
            say(f"MLflow serves {address} already: {server.url}")
            return _say_links(address, sweep, self.port)
        interrupt_on_signals()
        say(f"Starting MLflow's server on {address} ...")
        try:
            with running([server], folder) as processes:
                _say_links(address, sweep, self.port)
                say("Ctrl-C stops the server.")
                for _ in watch([server], processes, folder):
                    pass
        except KeyboardInterrupt:
            say("Stopped.")


def mlflow_server(address: Address, port: int) -> Server:
    """MLflow's server on a store. The store's address is not in its command, which other users of the machine can read."""
    from cornerstone.runtime.servers import LOOPBACK, Server

    command = [sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(port), "--workers", "1"]
    environment = {
        "MLFLOW_BACKEND_STORE_URI": address.full,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # jobs of its own that no page of a sweep needs
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    return Server("MLflow", command, port, "/health", environment)


def _is_served(server: Server, address: Address, sweep: RecordedSweep | None) -> bool:
    """Whether a server on the port serves this store. CornerstoneError if the port is taken by anything else."""
    from cornerstone.runtime.servers import answers, is_free

    if is_free(server.port):
        return False
    if _has(f"{server.url}/api/2.0/mlflow", address, sweep):
        return True
    what = "MLflow's server on another store" if answers(server.url + server.ready) else "another program"
    raise CornerstoneError(f"Port {server.port} is taken by {what}: stop it, or name another port with --port.")


def _has(interface: str, address: Address, sweep: RecordedSweep | None) -> bool:
    """Whether a server has the sweep, or, in a store without any, an experiment that was made at the same time."""
    from cornerstone.tracking.mlflow_sweeps import any_experiment

    if sweep is not None:
        return _asked(f"{interface}/runs/get?run_id={sweep.parent}", "run") is not None
    number, made = any_experiment(address)
    experiment = _asked(f"{interface}/experiments/get?experiment_id={number}", "experiment")
    return experiment is not None and int(experiment.get("creation_time", 0)) == made


def _asked(url: str, what: str) -> dict[str, Any] | None:
    """What a server of MLflow says of a run or an experiment; None if it has none, or is no such server."""
    from cornerstone.runtime.servers import page

    try:
        found: dict[str, Any] = json.loads(page(url) or b"")[what]
    except (ValueError, KeyError, TypeError):  # another program's page
        return None
    return found


def _say_links(address: Address, sweep: RecordedSweep | None, port: int) -> None:
    from cornerstone.tracking.mlflow_pages import experiments_link, sweep_links

    if sweep is None:
        say(f"There is no sweep yet; all experiments: {experiments_link(address, port)}")
        return
    say(f"sweep {sweep.name} of {sweep.experiment}:")
    links = sweep_links(address, sweep.experiment_id, sweep.name, sweep.parent, port)
    for name, link in links.items() if sweep.has_view else [("the sweep", links["the sweep"])]:
        say(f"{name:>12}: {link}")
    if not sweep.has_view:
        say("MLflow has no view of its trials, which this version makes when a sweep starts: its own page lists them.")
