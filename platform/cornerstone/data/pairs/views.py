"""Which of a row's captions an evaluation judges, as data that a decode actor can read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Wanted:
    """Captions of one role: all of them or the first one, whole or their first sentences."""

    role: str
    """`raw`, `long` or `foil`."""
    every: bool = True
    """Every caption of that role; False takes the first one alone, "" if there is none."""
    sentences: int = 0
    """The first so many sentences of each; 0 for the whole text."""
    cleaned: bool = False
    """Cleaned first (`texts.clean`)."""
    shuffled: bool = False
    """The sentences in another order, which belongs to the row: texts of a row with equally many sentences have the same."""


View = tuple[Wanted, ...]
"""The texts of a row, in this order; an empty view wants none."""


class About(NamedTuple):
    """What is known of a text besides its tokens."""

    part: int
    """Which of the view's captions it is one of."""
    source: str
    """Its author or field."""
    sentences: tuple[int, ...]
    """A number for each sentence, before the token limit; equal for equal sentences."""


class Box(NamedTuple):
    """Where an object is in an image, as shares of its width and height."""

    left: float
    top: float
    right: float
    bottom: float
    salient: bool = False


Boxes = Callable[[str, str, int], list[Box]]
"""From a row's `extra`, a text and the image's width in pixels: the boxes of the objects that the text mentions. A function of
a module, so that it can be pickled."""
