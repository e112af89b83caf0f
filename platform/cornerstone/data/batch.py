"""What every batch says about the rows that it could not use."""

from __future__ import annotations

from typing import NamedTuple

ROW = "row"
"""`Bad.what` of a whole row; any other value names an image of a document."""


class Bad(NamedTuple):
    """A row, or an image of a row, that could not be used."""

    row: int
    what: str
    """`ROW`, or the image: "image 2"."""
    reason: str
