"""The address of a tracking server: absolute, so that workers on other machines mean the same, and without its password.

A password in an address must not be shown, logged, tagged or stored. `Address` keeps it apart, in a field that no text
contains; `secrets.redacted` removes passwords from texts of others, for example from a client's error message.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from cornerstone.runtime.home import home
from cornerstone.secrets import redacted

VARIABLE = "MLFLOW_TRACKING_URI"
SQLITE = "sqlite:///"
STORE = "mlflow.db"
"""MLflow's records in the home."""


@dataclass(frozen=True)
class Address:
    """Where MLflow records: `str()` is safe to show, `full` is what a client connects to."""

    uri: str
    """With `***` in place of the password."""
    secret: str = field(default="", repr=False)
    """The whole address, if it has a password."""

    @staticmethod
    def of(given: str | Address) -> Address:
        """An address as the user gave it; relative paths are relative to the current folder."""
        if isinstance(given, Address):
            return given
        full = _absolute(given)
        shown = redacted(full)
        return Address(shown, full if shown != full else "")

    @property
    def full(self) -> str:
        """With the password."""
        return self.secret or self.uri

    @property
    def is_server(self) -> bool:
        """Whether it is a server, which has pages of its own."""
        return self.uri.startswith(("http://", "https://"))

    @property
    def database(self) -> Path | None:
        """The SQLite file, if it is one."""
        return Path(self.uri.removeprefix(SQLITE).partition("?")[0]) if self.uri.startswith(SQLITE) else None

    def __str__(self) -> str:
        return self.uri


def tracking_address() -> Address:
    """`MLFLOW_TRACKING_URI`, or a SQLite file under the home (under `~/.cornerstone` if the home is a storage URI)."""
    configured = os.environ.get(VARIABLE)
    if configured:
        return Address.of(configured)
    root = Path(home().uri) if home().is_local else Path.home() / ".cornerstone"
    root.mkdir(parents=True, exist_ok=True)
    return Address(f"{SQLITE}{root}/{STORE}")


def _absolute(uri: str) -> str:
    """`sqlite:///mlflow.db` (four slashes would be absolute) and plain folders are relative to the current folder."""
    if uri.startswith(SQLITE) and not uri.startswith(f"{SQLITE}/"):
        path, separator, options = uri.removeprefix(SQLITE).partition("?")
        return uri if path in ("", ":memory:") else f"{SQLITE}{Path(path).absolute()}{separator}{options}"
    return uri if "://" in uri or uri in ("databricks", "") else str(Path(uri).absolute())
