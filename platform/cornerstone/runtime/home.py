"""`CORNERSTONE_HOME`: the one folder (or storage URI) for runs, prepared data and records."""

from __future__ import annotations

import os

from cornerstone.data.storage import Location

VARIABLE = "CORNERSTONE_HOME"


def home() -> Location:
    """`CORNERSTONE_HOME`, or `~/.cornerstone`."""
    return Location.of(os.environ.get(VARIABLE) or "~/.cornerstone")
