"""POPE and MME: questions that are answered by yes or no."""

from __future__ import annotations

import string
from collections.abc import Sequence

import numpy as np

from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.dialogue.benchmark import (
    SHORTLY,
    Answers,
    Question,
    Scored,
    having,
    mean,
    read_lines,
    text_of,
)

SPLITS = ("random", "popular", "adversarial")
PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_ASKED = " Please answer yes or no."


def pope(files: Sequence[Location]) -> list[Question]:
    """POPE, a folder with `coco_pope_random.json`, `coco_pope_popular.json`, `coco_pope_adversarial.json`.

    Each has JSON lines {question_id, image, text, label: yes | no}.
    """
    (folder,) = files
    questions = []
    for split in SPLITS:
        place = folder.join(f"coco_pope_{split}.json")
        rows = having(place, "POPE", read_lines(place), "question_id", "image", "text", "label")
        questions += [
            Question(f"{split}/{row['question_id']}", row["text"] + SHORTLY, row["image"], row["label"] == "yes", split)
            for row in rows
        ]
    return questions


def mme(files: Sequence[Location]) -> list[Question]:
    """MME, its folder: in each subtask's a `NAME.txt` an image, with two lines `question⇥Yes` and `question⇥No`.

    Both lie side by side, or in `questions_answers_YN` and `images`. Images are named as the texts, .jpg or .png.
    """
    (folder,) = files
    questions = []
    for task in (*PERCEPTION, *COGNITION):
        inside = folder.join(task)
        if not inside.exists():
            raise CornerstoneError(
                f"{folder} is no folder of MME: it has no subtask {task!r}. Expected {', '.join((*PERCEPTION, *COGNITION))}."
            )
        apart = inside.join("questions_answers_YN").exists()
        texts, pictures = (inside.join("questions_answers_YN"), "images/") if apart else (inside, "")
        named = sorted(name for name in texts.list() if name.endswith(".txt"))
        images = _images(inside.join("images") if apart else inside)
        for name in named:
            stem = name.removesuffix(".txt")
            image = f"{task}/{pictures}{images.get(stem, f'{stem}.jpg')}"
            for number, line in enumerate(filter(str.strip, text_of(texts.join(name)).splitlines())):
                question, tab, label = line.partition("\t")
                if not tab or label.strip().lower() not in ("yes", "no"):
                    raise CornerstoneError(
                        f"{texts.join(name)}: expected `question⇥Yes` or `question⇥No`, found {line[:60]!r}."
                    )
                prompt = question.strip().removesuffix(_ASKED.strip()).strip() + SHORTLY
                yes = label.strip().lower() == "yes"
                questions.append(Question(f"{task}/{stem}/{number}", prompt, image, yes, task, f"{task}/{stem}"))
    return questions


def _images(folder: Location) -> dict[str, str]:
    """The files that are no texts, by their names without ending."""
    return {name.rpartition(".")[0]: name for name in folder.list() if not name.endswith(".txt")}


def says_no(answer: str) -> bool:
    """POPE's rule: the first sentence has the word No, no or not; every other answer is yes."""
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return bool({"No", "no", "not"} & set(words))


def yes_or_no(answer: str | None) -> bool | None:
    """MME's rule: the answer is, or its first four characters contain, yes or no; None for others."""
    text = (answer or "").lower().strip().strip(string.punctuation)
    for word, found in (("yes", True), ("no", False)):
        if text == word or word in text[:4]:
            return found
    return None


def score_pope(questions: Sequence[Question], answers: Answers) -> Scored:
    """F1 of yes, the mean over the three splits as LLaVA reports it; accuracy, precision, recall and the share of yes."""
    metrics: dict[str, list[float]] = {}
    by_split: dict[str, float] = {}
    said = [_said(one, answers) for one in questions]
    for split in dict.fromkeys(one.kind for one in questions):
        pairs = [(yes, one.truth) for yes, one in zip(said, questions, strict=True) if one.kind == split]
        for name, value in _binary(pairs).items():
            metrics.setdefault(name, []).append(value)
            by_split[f"{name}_{split}"] = value
    means = {name: float(np.mean(values)) for name, values in metrics.items()}
    right_Q = np.array([100.0 * (yes == one.truth) for yes, one in zip(said, questions, strict=True)])
    return Scored(means | by_split, right_Q, of_set=True)


def _said(question: Question, answers: Answers) -> bool:
    """An image that could not be read counts as the wrong answer."""
    answer = answers[question.key]
    return not question.truth if answer is None else not says_no(answer)


def _binary(pairs: Sequence[tuple[bool, bool]]) -> dict[str, float]:
    """Of (said yes, is yes), in percent; 0 where nothing was said or is yes."""
    both = sum(yes and true for yes, true in pairs)
    said, true = sum(yes for yes, _ in pairs), sum(true for _, true in pairs)
    return {
        "f1": 200 * both / (said + true) if said + true else 0.0,
        "accuracy": 100 * sum(yes == true for yes, true in pairs) / len(pairs),
        "precision": 100 * both / said if said else 0.0,
        "recall": 100 * both / true if true else 0.0,
        "yes_ratio": 100 * said / len(pairs),
    }


def score_mme(questions: Sequence[Question], answers: Answers) -> Scored:
    """Points: of each subtask accuracy and accuracy+ (both questions of an image), and their sums over the two halves."""
    right = [answers[one.key] is not None and yes_or_no(answers[one.key]) == one.truth for one in questions]
    points: dict[str, float] = {}
    for task in dict.fromkeys(one.kind for one in questions):
        mine = [(one.group, ok) for one, ok in zip(questions, right, strict=True) if one.kind == task]
        images: dict[str, bool] = {}
        for group, ok in mine:
            images[group] = images.get(group, True) and ok
        points[task] = 100 * float(np.mean([ok for _, ok in mine])) + 100 * float(np.mean(list(images.values())))
    sums = {
        "perception": sum(points.get(task, 0.0) for task in PERCEPTION),
        "cognition": sum(points.get(task, 0.0) for task in COGNITION),
    }
    right_Q = np.array([100.0 * ok for ok in right])
    named = {f"points_{task.lower()}": value for task, value in points.items()}
    return Scored({**sums, "accuracy": mean(right_Q), **named}, right_Q, of_set=True)
