"""`CORNERSTONE_HOME`: the one folder (or storage URI) for runs, prepared data and records."""

from __future__ import annotations

import os
import socket
import uuid
from contextlib import suppress

from cornerstone.data.storage import Location
from cornerstone.errors import first_line
from cornerstone.secrets import redacted

VARIABLE = "CORNERSTONE_HOME"


def home() -> Location:
    """`CORNERSTONE_HOME`, or `~/.cornerstone`."""
    return Location.of(os.environ.get(VARIABLE) or "~/.cornerstone")


def problem_of_home(token: str, write: bool = False, uri: str = "") -> str:
    """Why the home (or `uri`) cannot be used from this node; "" if it can.

    One process writes the file `token`, the others must see it and be able to write beside it.
    """
    place, here = Location.of(uri) if uri else home(), socket.gethostname()
    try:
        file = place.join(".probe", token)
        if write:
            file.write_text(token)
        else:
            _write_and_remove(place.join(".probe", f"{token}-{uuid.uuid4().hex[:8]}"))
        if not file.exists():
            return redacted(
                f"{VARIABLE} is {place}, of which {here} sees a folder of its own: set it to a shared folder or a storage URI "
                f"(s3://bucket/cornerstone) that every node reaches."
            )
    except Exception as error:  # of any storage's client: permission, address, credentials, no space
        return redacted(
            f"{VARIABLE} is {place}, where {here} cannot write: {first_line(error)}. "
            "Set it to a shared folder or a storage URI that the "
            f"nodes may write to, and give them its credentials."
        )
    return ""


def _write_and_remove(file: Location) -> None:
    file.write_text("probe")
    with suppress(Exception):  # credentials that may write need not be allowed to delete
        file.remove()
