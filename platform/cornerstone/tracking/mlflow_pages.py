"""Where to look at runs: the command that shows them, and links to MLflow's pages.

MLflow 3 opens an experiment on its page of traces, which training runs do not have. The links name the pages that show runs.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from cornerstone.tracking.address import SQLITE, STORE, VARIABLE, Address

PORT = 5000
TRAINING = "workflowType=machine_learning"
"""MLflow's pages of training, not those of language-model applications."""
CHARTS = "&compareRunsMode=CHART"


def command_path(name: str) -> str:
    """A program of this Python environment as it can be typed in the current folder, whatever PATH is."""
    found = Path(sys.executable).parent / name
    relative = os.path.relpath(found)
    return shlex.quote(name if not found.exists() else relative if not relative.startswith("..") else str(found))


def ui_command(address: Address, sweep: str = "") -> str:
    """The command that shows the runs of a store: it starts MLflow's server, if need be, and prints the links.

    Omits MLFLOW_TRACKING_URI for the default store, and for an address with a password, which must not be printed.
    """
    is_usual = address.secret or address.uri == f"{SQLITE}{Path.home() / '.cornerstone' / STORE}"
    given = "" if is_usual else f"{VARIABLE}={shlex.quote(str(address))} "
    return f"{given}{command_path('cornerstone')} ui{f' --sweep {sweep}' if sweep else ''}"


def experiments_link(address: Address, port: int = PORT) -> str:
    """The page of all experiments."""
    return f"{_base(address, port)}/#/experiments?{TRAINING}"


def run_link(address: Address, experiment: str, run: str, port: int = PORT) -> str:
    """The page of one run; of a sweep's parent it lists the trials."""
    return f"{_base(address, port)}/#/experiments/{experiment}/runs/{run}?{TRAINING}"


def trials_link(address: Address, experiment: str, sweep: str, port: int = PORT) -> str:
    """The page that lists a sweep's trials with the columns of its table (`mlflow_view`)."""
    return f"{_base(address, port)}/{_trials(experiment, sweep)}"


def comparison_link(address: Address, experiment: str, sweep: str, port: int = PORT) -> str:
    """The charts of the same page: the primary metric first, and what differs between the trials."""
    return trials_link(address, experiment, sweep, port) + CHARTS


def sweep_links(address: Address, experiment: str, sweep: str, parent: str, port: int = PORT) -> dict[str, str]:
    """The pages of a sweep by what they show; `parent` is the sweep's own run."""
    return {
        "the sweep": run_link(address, experiment, parent, port),
        "trials": trials_link(address, experiment, sweep, port),
        "comparison": comparison_link(address, experiment, sweep, port),
    }


def links_on_page(
    experiment: str, sweep: str, parent: str, files: Sequence[str] = (), model: tuple[str, str] | None = None
) -> str:
    """Links in Markdown for the description of the sweep's own run: to its trials and their comparison, to some of its
    artifacts, and to the best model (name and version in the registry).

    They are relative, so that they work whatever the server's address is.
    """
    trials = _trials(experiment, sweep)
    pages = {"trials": trials, "comparison": trials + CHARTS}
    pages |= {name: f"#/experiments/{experiment}/runs/{parent}/artifacts/{quote(name)}?{TRAINING}" for name in files}
    if model is not None:
        pages["best model"] = f"#/models/{quote(model[0], safe='')}/versions/{model[1]}?{TRAINING}"
    return " · ".join(f"[{name}]({page})" for name, page in pages.items())


def _trials(experiment: str, sweep: str) -> str:
    return f"#/experiments/{experiment}/runs?{TRAINING}&viewStateShareKey={quote(sweep)}"


def _base(address: Address, port: int) -> str:
    if not address.is_server:
        return f"http://127.0.0.1:{port}"
    scheme, _, rest = str(address).partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}".rstrip("/")
