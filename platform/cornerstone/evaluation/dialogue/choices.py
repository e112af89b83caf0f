"""ScienceQA, MMBench and SEED-Bench: lettered options."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Sequence

import numpy as np

from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.dialogue.benchmark import (
    LETTERS,
    Answers,
    Question,
    Scored,
    by_kind,
    having,
    letter_of,
    mean,
    options_prompt,
    read_json,
    text_of,
)

ROUND = 1_000_000
"""MMBench's files hold the rotations of question i as i + 1,000,000 k; others are rotated here."""
_NOTHING = ("", "nan")


def scienceqa(files: Sequence[Location]) -> list[Question]:
    """ScienceQA, test split with an image.

    `problems.json`: {id: {question, choices, answer (number of the choice), hint, image (null without one), split, subject}};
    images lie in `test/ID/image.png`. Prompts are those of LLaVA-1.5's own file of questions, `llava_test_CQM-A.json`.
    """
    (place,) = files
    found = read_json(place)
    rows = list(found.values()) if isinstance(found, dict) else found
    having(place, "ScienceQA", rows, "question", "choices", "answer", "image", "split")
    questions = [
        Question(
            key,
            options_prompt(row["question"], row["choices"], _context(row.get("hint") or "")),
            f"test/{key}/{row['image']}",
            (LETTERS[row["answer"]], len(row["choices"])),
            str(row.get("subject", "")),
        )
        for key, row in found.items()
        if row["split"] == "test" and row["image"]
    ]
    if not questions:
        raise CornerstoneError(f"{place} has no question of the test split with an image.")
    return questions


def _context(hint: str) -> str:
    return f"Context: {hint}" if hint else ""


def seed_bench(files: Sequence[Location]) -> list[Question]:
    """SEED-Bench, image part.

    `SEED-Bench.json`: {questions: [{question_id, data_id, data_type: image | video, question, choice_a .. choice_d, answer,
    question_type_id}], question_type: {name: id}}; an image is the file `data_id` in `SEED-Bench-image`.
    """
    (place,) = files
    found = read_json(place)
    options = tuple(f"choice_{letter.lower()}" for letter in LETTERS[:4])
    wanted = ("question_id", "data_id", "data_type", "question", "answer", *options)
    rows = having(place, "SEED-Bench", found.get("questions") if isinstance(found, dict) else None, *wanted)
    types = {number: name for name, number in (found.get("question_type") or {}).items()}
    return [
        Question(
            str(row["question_id"]),
            options_prompt(row["question"], [row[name] for name in options]),
            row["data_id"],
            (row["answer"], 4),
            str(types.get(row.get("question_type_id"), "")),
        )
        for row in rows
        if row["data_type"] == "image"
    ]


def mmbench(files: Sequence[Location]) -> list[Question]:
    """MMBench, with its circular evaluation: a question is right if it is so with its options in every rotation.

    `mmbench_dev_20230712.tsv`: columns index, question, hint, A .. D, answer, category, l2-category, image (base64, or the
    index of the row that has it). The options of a question that the file has once are rotated here.
    """
    (place,) = files
    csv.field_size_limit(1 << 30)
    rows = list(csv.DictReader(io.StringIO(text_of(place), newline=""), delimiter="\t"))
    having(place, "MMBench", rows, "index", "question", "A", "B", "answer", "image")
    images: dict[str, str] = {row["index"]: row["image"] for row in rows}
    rounds: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        try:
            rounds.setdefault(str(int(float(row["index"])) % ROUND), []).append(row)
        except ValueError as error:
            raise CornerstoneError(f"{place}: the index {row['index']!r} is no number.") from error
    questions = []
    for group, listed in rounds.items():
        for row in listed:
            image = images.get(row["image"], row["image"])
            options = [row[letter] for letter in LETTERS[:4] if row.get(letter, "").strip().lower() not in _NOTHING]
            if row["answer"].strip() not in LETTERS[: len(options)] or not row["answer"].strip():
                raise CornerstoneError(
                    f"{place}: question {row['index']} has the answer {row['answer']!r}, but options A to "
                    f"{LETTERS[len(options) - 1]}: the answers of the test split are kept by a server; use the dev split."
                )
            right = LETTERS.index(row["answer"].strip())
            hint = row.get("hint", "").strip()
            turns = range(len(options)) if len(listed) == 1 else range(1)
            for turn in turns:
                shown = options[turn:] + options[:turn]
                questions.append(
                    Question(
                        f"{row['index']}/{turn}",
                        options_prompt(row["question"], shown, "" if hint.lower() in _NOTHING else hint),
                        _decoded(image),
                        (LETTERS[(right - turn) % len(options)], len(options)),
                        row.get("l2-category") or row.get("category") or "",
                        group,
                    )
                )
    return questions


def _decoded(image: str) -> bytes:
    """An image's bytes; none of a text that is not base64, so that it counts as an image that cannot be read."""
    try:
        return base64.b64decode(image)
    except ValueError:
        return b""


def score_letters(questions: Sequence[Question], answers: Answers) -> Scored:
    """The share of right letters: of all, and by kind."""
    right_Q = np.array([100.0 * _right(one, answers) for one in questions])
    return Scored({"accuracy": mean(right_Q), **by_kind(questions, right_Q)}, right_Q)


def score_circular(questions: Sequence[Question], answers: Answers) -> Scored:
    """The share of questions that are right in every rotation, and of right letters. `right_Q` is that of its group."""
    together: dict[str, bool] = {}
    for one in questions:
        together[one.group] = together.get(one.group, True) and _right(one, answers)
    single = mean(np.array([100.0 * _right(one, answers) for one in questions]))
    whole = mean(np.array([100.0 * right for right in together.values()]))
    right_Q = np.array([100.0 * together[one.group] for one in questions])
    return Scored({"accuracy": whole, "accuracy_single": single}, right_Q, of_set=True)


def _right(question: Question, answers: Answers) -> bool:
    letter, options = question.truth
    return letter_of(answers[question.key], options) == letter
