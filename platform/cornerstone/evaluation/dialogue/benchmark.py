"""What a benchmark is: how its files become questions, and how answers to all of them become scores.

Q questions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError

SHORTLY = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
"""LLaVA-1.5's requests for the form of an answer."""
LETTERS = "ABCDEFGHIJ"
Answers = Mapping[str, str | None]
"""Of each question's key what was answered; None: its image could not be read, which counts as wrong in every benchmark."""


@dataclass(frozen=True)
class Question:
    """One question as the model is asked it."""

    key: str
    prompt: str
    image: str | bytes | None
    """The image's name in the benchmark's folder, or its encoded bytes; None: the question has none."""
    truth: Any
    """What the benchmark's own rules compare with; its form is the benchmark's."""
    kind: str = ""
    """The split, subtask or type that scores are given by."""
    group: str = ""
    """Questions that are right only together (circular options), or of one image."""

    @property
    def cluster(self) -> str:
        """What the bootstrap draws."""
        return self.group or (self.image if isinstance(self.image, str) else self.key)


@dataclass(frozen=True)
class Scored:
    """Scores of a benchmark."""

    metrics: dict[str, float]
    """In percent, or in points."""
    right_Q: npt.NDArray[np.float64] = field(repr=False)
    """Of each question, 0 to 100: what the intervals are made of, where `of_set` is False."""
    of_set: bool = False
    """Whether the primary metric is no mean over questions (F1, MME's sum)."""


Read = Callable[[Sequence[Location]], list[Question]]
Score = Callable[[Sequence[Question], Answers], Scored]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark by its name on the command line."""

    name: str
    title: str
    metrics: tuple[str, ...]
    """Those that stand in the table; the first one is the papers'."""
    read: Read
    """Questions from its files or folders. Raises CornerstoneError for files of another benchmark."""
    score_answers: Score
    files: int = 1
    """How many files it has: 2 with answers apart from questions."""
    unit: str = " %"

    def score(self, questions: Sequence[Question], answers: Answers) -> Scored:
        """Scores of the answers to all questions. CornerstoneError if some are not answered: the others are no benchmark."""
        lacking = [question.key for question in questions if question.key not in answers]
        if lacking:
            raise CornerstoneError(
                f"{len(lacking)} of {len(questions)} questions of {self.title} have no answer, {lacking[0]} among them: a "
                f"score over the others is not comparable. Answer each, with an empty text if there is nothing to say."
            )
        return self.score_answers(questions, answers)


def read_json(place: Location) -> Any:
    """A JSON file. CornerstoneError if there is none, or it is not JSON."""
    try:
        return json.loads(text_of(place))
    except ValueError as error:
        raise CornerstoneError(f"{place}: not JSON ({error}). Is it the question file of another benchmark?") from error


def read_lines(place: Location) -> list[Any]:
    """A file of JSON lines."""
    found = []
    for number, line in enumerate(text_of(place).split("\n"), 1):
        if line.strip():
            try:
                found.append(json.loads(line))
            except ValueError as error:
                raise CornerstoneError(
                    f"{place}, line {number}: not JSON ({error}). Is it the question file of another benchmark?"
                ) from error
    return found


def text_of(place: Location) -> str:
    """A text file. CornerstoneError if there is none."""
    try:
        return place.read_bytes().decode("utf-8-sig", "replace")
    except OSError as error:
        raise CornerstoneError(
            f"No file of questions at {place}: check the path, and whether the benchmark has a file or a folder "
            f"(--questions, --answers)."
        ) from error


def having(place: Location, title: str, rows: Any, *fields: str) -> list[dict[str, Any]]:
    """The rows of a benchmark's file. CornerstoneError unless it is a list of objects that have all `fields`."""
    if not isinstance(rows, list) or not rows:
        raise CornerstoneError(
            f"{place} is no question file of {title}: expected a list of objects with {_all(fields)}."
        )
    for number, row in enumerate(rows):
        missing = [name for name in fields if not isinstance(row, dict) or name not in row]
        if missing:
            has = ", ".join(map(str, list(row)[:8])) if isinstance(row, dict) else type(row).__name__
            raise CornerstoneError(
                f"{place} is no question file of {title}: entry {number} has no {missing[0]!r}, but {has}. Expected "
                f"{_all(fields)}; check --benchmark and --questions, which are given in the same order."
            )
    return rows


def _all(fields: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in fields)


def mean(right_Q: npt.NDArray[np.float64]) -> float:
    """Of no questions, NaN."""
    return float(right_Q.mean()) if len(right_Q) else float("nan")


def letter_of(answer: str | None, options: int) -> str:
    """The option that an answer names: "B", "B. a cat", "(B)", "The answer is B"; "" if it names none.

    As LLaVA's evaluation of ScienceQA reads answers, and besides a letter in brackets or before ":" and ")".
    """
    text, valid = (answer or "").strip().removeprefix("("), LETTERS[:options]
    for candidate in (text, text.partition("he answer is ")[2].removeprefix("(")):
        if candidate and candidate[0] in valid and (len(candidate) == 1 or candidate[1] in ".):,\n"):
            return candidate[0]
    return ""


def by_kind(questions: Sequence[Question], right_Q: npt.NDArray[np.float64]) -> dict[str, float]:
    """The mean over the questions of each kind."""
    kinds: dict[str, list[int]] = {}
    for place, one in enumerate(questions):
        if one.kind:
            kinds.setdefault(re.sub(r"\W+", "_", one.kind.strip().lower()), []).append(place)
    return {f"accuracy_{kind}": mean(right_Q[places]) for kind, places in sorted(kinds.items())}


def options_prompt(question: str, options: Sequence[str], hint: str = "") -> str:
    """A question with lettered options, as in LLaVA-1.5's instruction data and its prompts for MMBench."""
    listed = [f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False)]
    return "\n".join([*([hint] if hint else []), question, *listed]) + LETTER
