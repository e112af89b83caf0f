"""The benchmarks of a transfer to dialogue: which are asked, and what a trained model answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from cornerstone.data.batch import pad_lists
from cornerstone.data.conversations.chat import ChatFormat
from cornerstone.data.images import BadImage, Transform
from cornerstone.data.importers.folder import ImageFolder
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.dialogue import Benchmark, Question, benchmark
from cornerstone.evaluation.sets import split_name
from cornerstone.models.dialogue_transfer import DialogueTransfer
from cornerstone.transfer.options import Options

AT_ONCE = 32
"""Questions that are answered together."""
ALL = "dialogue"
"""The name under which the numbers of several benchmarks stand in files."""


@dataclass(frozen=True)
class Judged:
    """A benchmark with its questions and the folder of its images."""

    benchmark: Benchmark
    questions: Sequence[Question]
    images: Location | None = None
    name: str = ""
    """What its numbers are called; "" where there is nothing but this set."""

    @property
    def clusters(self) -> npt.NDArray[np.int64]:
        """A number of each question's cluster."""
        _, place_Q = np.unique([one.cluster for one in self.questions], return_inverse=True)
        return place_Q.astype(np.int64)

    def row_name(self, metric: str, first: bool) -> str:
        """`vqav2` of the metric that papers print, `pope_precision` of others."""
        return metric if not self.name else self.name if first else f"{self.name}_{metric}"

    def unread_notes(self, unread: Mapping[str, str]) -> list[str]:
        """What is said of questions whose image could not be read."""
        if not unread:
            return []
        key, reason = next(iter(unread.items()))
        return [
            f"{self.benchmark.title}: the images of {len(unread):,} of {len(self.questions):,} questions could not be read "
            f"({key}: {reason}); these questions count as wrong."
        ]


def judged(options: Options) -> tuple[str, list[Judged]]:
    """The name of all sets in files, and what --eval and --benchmark ask for.

    Raises CornerstoneError for lists of different lengths, unknown benchmarks and files of another one.
    """
    asked, found = options.dialogue, list[Judged]()
    names, folders, answers = list(asked.benchmarks), list(asked.images), list(asked.answers)
    opened = [benchmark(name) for name in names]
    if len(asked.questions) != len(names):
        raise CornerstoneError(
            f"{len(names)} benchmarks, but {len(asked.questions)} files of questions: give one each, in the same order "
            f"(--benchmark, --questions)."
        )
    apart = [one.name for one in opened if one.files > 1]
    if len(answers) != len(apart):
        raise CornerstoneError(
            f"{len(apart)} of the benchmarks keep their answers apart ({', '.join(apart) or 'none'}), but {len(answers)} files "
            f"of answers were given (--answers)."
        )
    needing = [one.name for one in opened if one.name not in INSIDE]
    if len(folders) != len(needing):
        raise CornerstoneError(
            f"{len(needing)} of the benchmarks have a folder of images ({', '.join(needing) or 'none'}), but {len(folders)} "
            f"were given (--images)."
        )
    for one, questions in zip(opened, asked.questions, strict=True):
        files = [Location.of(questions), *([Location.of(answers.pop(0))] if one.files > 1 else [])]
        images = None if one.name in INSIDE else Location.of(folders.pop(0))
        if images is not None and not images.exists():
            raise CornerstoneError(f"No image folder of {one.title} at {images}: check the path (--images).")
        found.append(Judged(one, one.read(files), files[0] if one.name == "mme" else images, one.name))
    if options.test:
        name, folder = split_name(options.test)
        own = benchmark("conversations")
        here = name or Location.of(folder).name
        found.append(Judged(own, own.read([Location.of(folder)]), None, here if opened else ""))
        if not opened:
            return here, found
    if not found:
        raise CornerstoneError("Nothing to judge: give --eval DIR, or --benchmark NAME --questions FILE --images DIR.")
    return ALL, found


INSIDE = ("mme", "mmbench", "conversations")
"""Benchmarks whose questions' files or folders have the images too."""


@torch.no_grad()
def answered(
    module: DialogueTransfer, one: Judged, form: ChatFormat, size: int, options: Options
) -> tuple[dict[str, str | None], dict[str, str]]:
    """An answer to each question, None where its image cannot be read; and the reasons of these."""
    transform, folder = Transform(size, train=False), None if one.images is None else ImageFolder(one.images)
    answers: dict[str, str | None] = {}
    unread: dict[str, str] = {}
    places = range(0, len(one.questions), AT_ONCE)
    for begin in options.track(places, f"questions of {one.benchmark.title}"):
        some, images = list[Question](), list[npt.NDArray[np.uint8]]()
        for question in one.questions[begin : begin + AT_ONCE]:
            try:
                images.append(_pixels(question, transform, folder))
                some.append(question)
            except (OSError, ValueError, BadImage) as reason:
                answers[question.key], unread[question.key] = None, str(reason)
        if not some:
            continue
        prompts = [form.prompt(question.prompt, question.image is not None) for question in some]
        ids, length = pad_lists([ids for ids, _ in prompts])
        place = torch.tensor([place for _, place in prompts])
        shown, ids, length, place = (
            x.to(options.device) for x in (torch.from_numpy(np.stack(images)), ids, length, place)
        )
        found = module.generate(shown, ids, length, place, form.chat.last, options.dialogue.longest_answer)
        answers |= {question.key: form.decode(ids) for question, ids in zip(some, found, strict=True)}
    return answers, unread


def _pixels(question: Question, transform: Transform, folder: ImageFolder | None) -> npt.NDArray[np.uint8]:
    if question.image is None:
        return np.zeros((3, transform.size, transform.size), dtype=np.uint8)
    if isinstance(question.image, bytes):
        return transform(question.image)
    assert folder is not None, "benchmarks that name images have a folder of them"
    return transform(folder.read(question.image))


def write_answers(path: str, one: Judged, answers: Mapping[str, str | None]) -> None:
    """Add a benchmark's answers to a JSON file, {benchmark: [{question_id, answer}]}, for servers that keep the truth."""
    place = Location.of(path)
    found = json.loads(place.read_text()) if place.exists() else {}
    found[one.name or one.benchmark.name] = [
        {"question_id": key, "answer": answer or ""} for key, answer in answers.items()
    ]
    place.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
