"""VQAv2, GQA and VizWiz: short free answers. And conversations in shards, whose answers are compared as GQA's are.

A = 10 people who answered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.dialogue.benchmark import (
    SHORTLY,
    Answers,
    Question,
    Scored,
    by_kind,
    having,
    mean,
    read_json,
)
from cornerstone.evaluation.dialogue.normalise import normalised, without_punctuation

UNANSWERABLE = "unanswerable"
_WHEN_INSUFFICIENT = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."


def vqav2(files: Sequence[Location]) -> list[Question]:
    """VQAv2's questions and annotations.

    `v2_OpenEnded_mscoco_val2014_questions.json`: {data_subtype, questions: [{question_id, image_id, question}]};
    `v2_mscoco_val2014_annotations.json`: {annotations: [{question_id, answer_type, answers: [{answer}] × 10}]}. Images are
    named `COCO_val2014_000000000042.jpg`. The answers to test-dev are kept by a server (`--write-answers` gives what it takes).
    """
    questions_file, answers_file = files
    found, kept = read_json(questions_file), read_json(answers_file)
    subtype = found.get("data_subtype") if isinstance(found, dict) else None
    rows = having(
        questions_file, "VQAv2", found.get("questions") if subtype else None, "question_id", "image_id", "question"
    )
    listed = kept.get("annotations") if isinstance(kept, dict) else None
    answers = {row["question_id"]: row for row in having(answers_file, "VQAv2", listed, "question_id", "answers")}
    lacking = [row["question_id"] for row in rows if row["question_id"] not in answers]
    if lacking:
        raise CornerstoneError(
            f"{answers_file} lacks the answers to {len(lacking)} of {len(rows)} questions of {questions_file}, "
            f"{lacking[0]} among them: are they of the same split?"
        )
    return [
        Question(
            str(row["question_id"]),
            row["question"] + SHORTLY,
            f"COCO_{subtype}_{int(row['image_id']):012d}.jpg",
            [one["answer"] for one in answers[row["question_id"]]["answers"]],
            str(answers[row["question_id"]].get("answer_type", "")),
        )
        for row in rows
    ]


def vizwiz(files: Sequence[Location]) -> list[Question]:
    """VizWiz-VQA, `val.json`: [{image, question, answers: [{answer}] × 10, answer_type, answerable}]."""
    (place,) = files
    rows = having(place, "VizWiz", read_json(place), "image", "question", "answers")
    return [
        Question(
            row["image"],
            row["question"] + _WHEN_INSUFFICIENT + SHORTLY,
            row["image"],
            [one["answer"] for one in row["answers"]],
            str(row.get("answer_type", "")),
        )
        for row in rows
    ]


def gqa(files: Sequence[Location]) -> list[Question]:
    """GQA, `testdev_balanced_questions.json`: {question id: {imageId, question, answer, types: {structural}}}."""
    (place,) = files
    found = read_json(place)
    rows = list(found.values()) if isinstance(found, dict) else found
    having(place, "GQA", rows, "imageId", "question", "answer")
    return [
        Question(
            key,
            row["question"] + SHORTLY,
            f"{row['imageId']}.jpg",
            row["answer"],
            str((row.get("types") or {}).get("structural", "")),
        )
        for key, row in found.items()
    ]


def agreement(answer: str, theirs: Sequence[str]) -> float:
    """0 to 1: the mean over the A people left out in turn of min(1, those of the others who gave the same answer / 3)."""
    same = Counter(theirs)[answer]
    left_out = [same - (one == answer) for one in theirs]
    return sum(min(1.0, agreeing / 3) for agreeing in left_out) / len(theirs)


def soft_accuracy(answer: str | None, given: Sequence[str]) -> float:
    """VQA's accuracy: `agreement`, with texts normalised only where people disagree, and of theirs the punctuation alone.

    Otherwise line ends are replaced.
    """
    if answer is None:
        return 0.0
    plain = answer.replace("\n", " ").replace("\t", " ").strip()
    theirs = [one.replace("\n", " ").replace("\t", " ").strip() for one in given]
    if len(set(theirs)) > 1:
        plain, theirs = normalised(plain), [without_punctuation(one) for one in theirs]
    return agreement(plain, theirs)


def vizwiz_accuracy(answer: str | None, given: Sequence[str]) -> float:
    """VizWiz's accuracy: `agreement`, with the answer normalised always, and what people said compared as it stands.

    So nobody can agree with a person who wrote a hyphen, even if all ten did.
    """
    return 0.0 if answer is None else agreement(normalised(answer), given)


def score_vqa(questions: Sequence[Question], answers: Answers) -> Scored:
    """VQA's accuracy: of all, and by the kinds of answers that the file names."""
    return _scored(questions, answers, soft_accuracy)


def score_vizwiz(questions: Sequence[Question], answers: Answers) -> Scored:
    """VizWiz's accuracy, and the share of questions that are called unanswerable, by the model and by most people."""
    scored = _scored(questions, answers, vizwiz_accuracy)
    said = [normalised(_cleaned(answers[one.key]) or "") == UNANSWERABLE for one in questions]
    true = [Counter(map(normalised, one.truth)).most_common(1)[0][0] == UNANSWERABLE for one in questions]
    shares = {"called_unanswerable": 100 * float(np.mean(said)), "unanswerable": 100 * float(np.mean(true))}
    return Scored({**scored.metrics, **shares}, scored.right_Q)


def _scored(
    questions: Sequence[Question], answers: Answers, accuracy: Callable[[str | None, Sequence[str]], float]
) -> Scored:
    right_Q = np.array([100 * accuracy(_cleaned(answers[one.key]), one.truth) for one in questions])
    return Scored({"accuracy": mean(right_Q), **by_kind(questions, right_Q)}, right_Q)


def score_exact(questions: Sequence[Question], answers: Answers) -> Scored:
    """Exact match, without case and a last period: of all, and by kind."""
    right_Q = np.array([100.0 * (_same_form(answers[one.key]) == _same_form(one.truth)) for one in questions])
    return Scored({"accuracy": mean(right_Q), **by_kind(questions, right_Q)}, right_Q)


def _same_form(text: str | None) -> str | None:
    return None if text is None else text.strip().rstrip(".").lower()


def _cleaned(answer: str | None) -> str | None:
    """The evaluation servers compare in lower case, and people wrote no last period."""
    return _same_form(answer)
