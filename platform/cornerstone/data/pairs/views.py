"""Which of a row's captions an evaluation judges, as data that a decode actor can read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wanted:
    """Captions of one role: all of them or the first one, whole or their first sentences."""

    role: str
    """`raw`, `long` or `foil`."""
    every: bool = True
    """Every caption of that role; False takes the first one alone, "" if there is none."""
    sentences: int = 0
    """The first so many sentences of each; 0 for the whole text."""


View = tuple[Wanted, ...]
"""The texts of a row, in this order; an empty view wants none."""
