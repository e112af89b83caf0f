"""A client of a tracking server or store, and what its errors mean."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

from cornerstone.tracking.address import Address

if TYPE_CHECKING:
    from mlflow import MlflowClient

UNREACHABLE = re.compile(
    "ConnectionError|ConnectTimeout|ReadTimeout|MaxRetryError|NameResolutionError| failed with exception "
    "|unable to open database file|could not connect|connection refused|connection to server|could not translate host name",
    re.IGNORECASE,
)
"""How requests, urllib3, MLflow and SQLAlchemy's drivers say that nobody answered."""


def open_client(address: Address) -> MlflowClient:
    """A client whose calls end within seconds if nobody answers."""
    # MLflow's defaults, 120 s and 7 retries, would block the caller for minutes if the server hangs.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    from mlflow import MlflowClient

    if not address.is_server:
        return MlflowClient(tracking_uri=address.full)
    scheme, _, rest = address.full.partition("://")
    credentials, at, host = rest.rpartition("@")
    if at:  # in MLflow's own variables and not in the URI, which its messages and logs contain
        user, colon, password = credentials.partition(":")
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(user)
        if colon:  # otherwise the variable may already have it
            os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(password)
    return MlflowClient(tracking_uri=f"{scheme}://{host}")


def is_unreachable(error: BaseException | None) -> bool:
    """Whether no server answered, or a database could not be opened: anything else is an answer."""
    while error is not None:
        if isinstance(error, ConnectionError | TimeoutError) or UNREACHABLE.search(f"{type(error).__name__}: {error}"):
            return True
        error = error.__cause__ or error.__context__
    return False
