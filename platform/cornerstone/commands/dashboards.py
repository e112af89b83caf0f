"""`cornerstone dashboards`: Prometheus and Grafana for the Ray of this machine, or the boards for a Grafana elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cornerstone.commands.terminal import say

if TYPE_CHECKING:
    from cornerstone.runtime.servers import Server

BOARDS = ("cornerstone-sweep", "cornerstone-run", "cornerstone-data-plane")
"""The boards' uids."""
QUERIES = ("ray_cornerstone_loss", "ray_cornerstone_samples_per_second", "ray_cornerstone_time_share")


@dataclass(frozen=True)
class DashboardsCommand:
    """Live metrics of the Ray of this machine: starts Prometheus, and Grafana if it is installed, and prints the links.

    It can start before Ray does, and stays with the next Ray. Ctrl-C stops both servers.
    """

    export: str = ""
    """Only write the boards, this project's and Ray's own, to this folder: for a Grafana elsewhere."""
    ray: str = ""
    """Folder of Ray's sessions; default: that of a Ray that is started here (/tmp/ray, if neither RAY_TMPDIR nor TMPDIR is
    set)."""
    folder: str = "~/.cornerstone/dashboards"
    """Where Prometheus and Grafana keep their data and logs."""
    prometheus: str = "prometheus"
    """The program, if it is not on the PATH."""
    grafana: str = "grafana"
    """The program, if it is not on the PATH."""
    prometheus_port: int = 9090
    """If it is taken, another one is used."""
    grafana_port: int = 3000
    """If it is taken, another one is used."""

    def run(self) -> None:
        """Serve until Ctrl-C, or export."""
        from cornerstone.runtime import monitoring
        from cornerstone.runtime.cluster import sessions_folder
        from cornerstone.runtime.servers import interrupt_on_signals, running, watch

        sessions, folder = Path(self.ray or sessions_folder()).expanduser(), Path(self.folder).expanduser().resolve()
        if self.export:
            self._export(sessions)
            return
        prometheus = monitoring.prometheus(self.prometheus, self.prometheus_port, folder, sessions)
        of_ray = monitoring.export_boards(folder, sessions)
        grafana = monitoring.grafana(self.grafana, self.grafana_port, folder, prometheus)
        servers = [prometheus] if grafana is None else [prometheus, grafana]
        interrupt_on_signals()
        try:
            with running(servers, folder) as processes:
                _say_where(prometheus, grafana, sessions / monitoring.DISCOVERY)
                for _ in watch(servers, processes, folder):
                    of_ray = of_ray or monitoring.export_boards(folder, sessions)  # Ray may start later
        except KeyboardInterrupt:
            say("Stopped.")

    def _export(self, sessions: Path) -> None:
        from cornerstone.runtime.monitoring import RAY_BOARDS, export_boards

        out = Path(self.export).expanduser()
        of_ray = export_boards(out, sessions)
        say(f"boards: {out / 'cornerstone'}")
        if of_ray:
            say(f"Ray's own {of_ray}: {out / 'ray'}")
        else:
            say(f"none of Ray's own: it writes them to {sessions / RAY_BOARDS} when it starts")


def _say_where(prometheus: Server, grafana: Server | None, discovery: Path) -> None:
    say(f"Prometheus: {prometheus.url}")
    if not discovery.exists():
        say(f"  No Ray has started here yet; it will be found through {discovery}")
    if grafana is not None:
        for board in BOARDS:
            say(f"Grafana: {grafana.url}/d/{board}")
        say("For the charts in Ray's own dashboard, start Ray with")
        say(f"  RAY_PROMETHEUS_HOST={prometheus.url} RAY_GRAFANA_HOST={grafana.url}")
    else:
        say(
            "Grafana is not installed (https://grafana.com/grafana/download): name it with --grafana PATH, or import the"
        )
        say("boards of --export DIR elsewhere. Some queries in Prometheus:")
        for query in QUERIES:
            say(f"  {prometheus.url}/graph?g0.expr={query}&g0.tab=0&g0.range_input=30m")
    say(
        f"{'Prometheus listens' if grafana is None else 'Both listen'} on 127.0.0.1 only. Ray's own metrics ports do not: "
        "they answer without a token, on all interfaces of the machine. Close them to other machines by a firewall."
    )
    say("Ctrl-C stops.")
