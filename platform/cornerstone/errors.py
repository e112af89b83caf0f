"""The one error type that a user may see without a traceback, and the words that help to correct a mistake."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from cornerstone.secrets import redacted


class CornerstoneError(Exception):
    """Something the user can correct. Its message says what was given, what was expected and what to change, no password."""

    def __str__(self) -> str:
        return redacted(super().__str__())


class RunStopped(CornerstoneError):
    """Every worker of a run stopped together, for a reason that a restart would meet again."""


def first_line(error: BaseException) -> str:
    """The first line of what a library's error says, its type if it says nothing; without passwords and a full stop."""
    return redacted((str(error).strip() or type(error).__name__).splitlines()[0].rstrip("."))


def nearest(given: str, valid: Iterable[str]) -> str:
    """`; did you mean 'ViT-B-16'?`, or a full stop where none is near: for names of which there are too many to list."""
    return did_you_mean(given, valid).partition(" Valid:")[0]


def did_you_mean(given: str, valid: Iterable[str]) -> str:
    """`; did you mean 'scenes'? Valid: photos, scenes, smoke.` for a misspelt name, the list alone where none is near."""
    names = sorted(valid)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"{hint} Valid: {', '.join(names)}."
