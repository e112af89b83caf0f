"""What an experiment will meet on a cluster: a small job there, `python -m cornerstone.runtime.probe OPTIONS`.

`cornerstone submit` runs it before the experiment, with the experiment's options and environment: it looks from the nodes on
which trials will run, since a client may reach a server that they cannot, and cannot reach what they can.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.options import placement_of
from cornerstone.runtime.cluster import StillGrowing, require
from cornerstone.runtime.home import home, problem_of_home
from cornerstone.runtime.on_nodes import on_nodes

MARK = "cornerstone probe: "
"""Before the report, on its line of the output."""
TRACKING = "MLFLOW_TRACKING_URI"
SECONDS = 5.0  # for a tracking server to answer
GROWING = 15.0  # seconds in which an autoscaler says whether it can add what a placement needs
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


@dataclass
class Report:
    """What was found: problems, each with what to change, and notes."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def line(self) -> str:
        """As one line of output."""
        return MARK + json.dumps({"problems": self.problems, "notes": self.notes})

    @staticmethod
    def read(output: str) -> Report | None:
        """The report in a job's output; None if there is none."""
        lines = [line.removeprefix(MARK) for line in output.splitlines() if line.startswith(MARK)]
        return Report(**json.loads(lines[-1])) if lines else None


def probe(options: Sequence[str]) -> Report:
    """Look at the cluster that this process has joined, from the head and from a node of each kind."""
    import ray

    report, nodes = Report(), [node for node in ray.nodes() if node["Alive"]]
    token = uuid.uuid4().hex
    seen = problem_of_home(token, write=True)
    if seen:
        report.problems.append(seen)
    try:
        ids = [node["NodeID"] for node in _one_of_each_kind(nodes)]
        for found in on_nodes(ids, problems_here, "" if seen else token, failed=lambda text: [text]):
            report.problems += [problem for problem in found if problem not in report.problems]
    finally:
        if not seen:
            with suppress(Exception):  # credentials that may write need not be allowed to delete
                home().join(".probe", token).remove()
    machines = {node["NodeManagerAddress"] for node in nodes}
    if len(machines) > 1 and not is_server(os.environ.get(TRACKING, "")):
        report.notes.append(
            f"{TRACKING} names no server: a worker on another machine than the head cannot record in MLflow, and a run's "
            f"metrics are then in its journal alone"
        )
    try:
        require(replace(placement_of(options), wait_limit=GROWING), lambda text: None)
    except StillGrowing:
        report.notes.append("the cluster is too small yet, and its autoscaler is adding nodes")
    except CornerstoneError as error:
        report.problems.append(str(error))
    return report


def problems_here(token: str) -> list[str]:
    """What this node cannot reach. `token` is the file that the head has written under the home; "" if it could not."""
    found = [problem_of_home(token)] if token else []
    found.append(problem_of_tracking(os.environ.get(TRACKING, "")))
    return [problem for problem in found if problem]


def is_server(address: str) -> bool:
    """Whether a tracking address is reached over the network."""
    return "://" in address and not address.startswith(("sqlite:", "file:"))


def problem_of_tracking(address: str) -> str:
    """Why the tracking server cannot be reached from this node; "" if it can, or if the address names none."""
    parts = urlsplit(address)
    if not is_server(address) or not parts.hostname:
        return ""
    shown = f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")  # without a password
    try:
        if parts.scheme in ("http", "https"):
            _ask(address)
        else:
            port = parts.port or PORTS.get(parts.scheme.partition("+")[0], 0)
            socket.create_connection((parts.hostname, port), SECONDS).close()
    except Exception as error:  # requests and sockets have many
        return (
            f"{TRACKING} is {shown}, which {socket.gethostname()} cannot reach ({type(error).__name__}): set it to an address "
            f"of the server that the cluster's nodes can resolve and connect to (localhost is each node's own)."
        )
    return ""


def _ask(address: str) -> None:
    """Raise if no server answers there. An answer that asks for a login is one."""
    import requests

    answer = requests.get(address.rstrip("/") + "/health", timeout=SECONDS)
    if answer.status_code >= 500:
        answer.raise_for_status()


def _one_of_each_kind(nodes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Nodes with different resources or labels, the head among them."""
    kinds: dict[Any, Mapping[str, Any]] = {}
    for node in nodes:
        resources = {name: n for name, n in node["Resources"].items() if name in ("CPU", "GPU") or "head" in name}
        labels = {name: text for name, text in (node.get("Labels") or {}).items() if not name.startswith("ray.io/node")}
        kinds.setdefault(json.dumps([resources, labels], sort_keys=True), node)
    return list(kinds.values())


def main() -> None:
    """Join the cluster of this job, and print the report."""
    import logging

    import ray

    ray.init(address="auto", logging_level=logging.ERROR, log_to_driver=False)
    print(probe(sys.argv[1:]).line(), flush=True)


if __name__ == "__main__":
    main()
