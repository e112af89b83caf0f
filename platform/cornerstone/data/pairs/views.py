"""Which texts of a row an evaluation task reads. No torch here: decode actors import this module."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wanted:
    """The captions of one role.

    `role` is raw, long or foil. `every` takes every caption of that role; otherwise the first one alone is taken, and a
    row without one gives an empty text, so that the places of the texts stay the same in all rows. `sentences` cuts a
    text to its first n sentences; 0 takes the whole text.
    """

    role: str
    every: bool = True
    sentences: int = 0


View = tuple[Wanted, ...]
"""The texts of a row in order; an empty tuple: none."""
