"""Where to look at runs: the command that starts MLflow's server on a local store, and links to its pages.

MLflow 3 opens an experiment on its page of traces, which training runs do not have. The links name the pages that show runs.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from cornerstone.tracking.address import VARIABLE, Address

PORT = 5000


def command_path(name: str) -> str:
    """A program of this Python environment as it can be typed in the current folder, whatever PATH is."""
    found = Path(sys.executable).parent / name
    relative = os.path.relpath(found)
    return name if not found.exists() else relative if not relative.startswith("..") else str(found)


def server_command(address: Address) -> str:
    """The command that starts a server on the store; empty if the address is a server itself."""
    if address.is_server:
        return ""
    store = f'"${VARIABLE}"' if address.password else shlex.quote(str(address))  # a password is not printed
    return f"{command_path('mlflow')} server --backend-store-uri {store} --port {PORT}"


def run_link(address: Address, experiment: str, run: str) -> str:
    """The page of one run; of a sweep's parent it lists the trials."""
    return f"{_base(address)}/#/experiments/{experiment}/runs/{run}?workflowType=machine_learning"


def compare_link(address: Address, experiment: str, runs: Sequence[str]) -> str:
    """The page that shows runs side by side with all their metrics."""
    chosen, of = quote(json.dumps(list(runs), separators=(",", ":"))), quote(json.dumps([experiment]))
    return f"{_base(address)}/#/compare-runs?runs={chosen}&experiments={of}"


def metric_link(address: Address, experiment: str, runs: Sequence[str], metric: str) -> str:
    """The page that shows the runs by one metric."""
    chosen, of = quote(json.dumps(list(runs), separators=(",", ":"))), quote(json.dumps([experiment]))
    name, names = quote(json.dumps(metric), safe=""), quote(json.dumps([metric]), safe="")
    return f"{_base(address)}/#/metric?runs={chosen}&metric={name}&experiments={of}&plot_metric_keys={names}"


def _base(address: Address) -> str:
    if not address.is_server:
        return f"http://127.0.0.1:{PORT}"
    scheme, _, rest = str(address).partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}".rstrip("/")
