"""Answers that a model gives to questions about images, scored by the rules of the benchmark that asks them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from cornerstone.data.batch import Batch
from cornerstone.data.conversations.batch import QuestionBatch
from cornerstone.data.conversations.chat import Chat
from cornerstone.data.conversations.questions import Questions
from cornerstone.data.manifest import Kind
from cornerstone.data.pairs.views import View
from cornerstone.data.shards import DataSet
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.dialogue import BENCHMARKS, Benchmark
from cornerstone.evaluation.dialogue.conversations import numbered
from cornerstone.evaluation.ranking import Measured
from cornerstone.evaluation.tasks.task import Collected, Contents, EvaluationInputs, EvaluationSet, Judge, Metric, Task
from cornerstone.models.dialogue_transfer import DialogueTransfer

AT_ONCE = 32
"""Questions that are answered together."""
LONGEST = 128
"""Most tokens of an answer."""


@dataclass
class Answered(Collected):
    """The answers to the questions of the rows that this worker has seen, by row and number; None: the row was bad."""

    answers: dict[tuple[int, int], str | None] = field(default_factory=dict)
    left_out: int = 0

    def add(self, batch: Batch, judge: Judge) -> None:
        """Answer each question."""
        if not isinstance(batch, QuestionBatch):
            raise TypeError(f"a {type(batch).__name__} is no batch of questions")
        self.left_out += len(batch.bad)
        form = judge.texts
        assert form is not None, "a model that answers reads texts"
        keys = list(zip(batch.row[batch.place].tolist(), batch.number.tolist(), strict=True))
        self.answers |= dict.fromkeys(keys)
        for some in torch.nonzero(batch.valid[batch.place]).flatten().split(AT_ONCE):
            prompts = (batch.ids[some], batch.length[some], batch.image_place[some])
            inputs = (x.to(judge.device) for x in (batch.image[batch.place[some]], *prompts))
            found = judge.model.generate(*inputs, form.last, LONGEST)
            for place, ids in zip(some.tolist(), found, strict=True):
                self.answers[keys[place]] = form.tokenizer.decode(ids, skip_special_tokens=True).strip()


@dataclass(frozen=True)
class Dialogue(Task):
    """One benchmark of visual dialogue, by whose name it is called."""

    name: str
    metrics: tuple[Metric, ...]
    reads: ClassVar[Kind] = "documents"

    @staticmethod
    def of(one: Benchmark) -> Dialogue:
        """The task of a benchmark: its metrics, of which tables show the papers'."""
        unit = one.unit.strip()
        shown = (Metric(name, name.replace("_", " "), unit, shown=not place) for place, name in enumerate(one.metrics))
        return Dialogue(one.name, tuple(shown))

    def applies(self, contents: Contents) -> bool:
        """Documents without a task are taken as conversations."""
        return self.name == "conversations"

    def refusal(self, method: type) -> str:
        """It needs a model that answers."""
        return "" if issubclass(method, DialogueTransfer) else "answers no questions"

    def views(self, contents: Contents) -> dict[str, View]:
        """One set."""
        return {"": ()}

    def source(self, judged: EvaluationSet, inputs: EvaluationInputs) -> Questions:
        """The rows' questions and images."""
        if inputs.texts is None:
            raise CornerstoneError(f"{judged.name} is judged by answers, but the method reads no texts.")
        form = inputs.texts.open()
        chat = Chat(inputs.texts.tokenizer, form.first, form.last, form.max_tokens)
        return Questions(judged.folder, judged.rows, inputs.images.for_evaluation(""), chat)

    def collected(self) -> Answered:
        """Answers."""
        return Answered()

    def conclude(self, judged: EvaluationSet, parts: Sequence[Answered], judge: Judge) -> Measured:
        """The benchmark's scores over all questions."""
        given = {key: answer for part in parts for key, answer in part.answers.items()}
        asked = list(numbered(DataSet.open(judged.folder, "documents")))
        questions = [question for _, _, question in asked]
        answers = {question.key: given.get((row, number)) for row, number, question in asked}
        scored = BENCHMARKS[self.name].score(questions, answers)
        primary, counts = self.metrics[0].name, {"questions": len(questions)}
        metrics = {metric.name: scored.metrics[metric.name] for metric in self.metrics}
        if scored.of_set or not np.isin(scored.right_Q, (0.0, 100.0)).all():
            return Measured(metrics, counts)  # no share of questions
        _, cluster_Q = np.unique([question.cluster for question in questions], return_inverse=True)
        right_Q = torch.from_numpy(scored.right_Q == 100.0)
        return Measured(metrics, counts, {primary: right_Q}, {primary: torch.from_numpy(cluster_Q)})

    def notes(self, judged: EvaluationSet) -> tuple[str, ...]:
        """What is measured."""
        return (
            f"{judged.name}: greedy answers of a language model that was trained on the image tower's patches, scored as "
            f"{BENCHMARKS[self.name].title} is.",
        )

    def __str__(self) -> str:
        return self.name


DIALOGUES = tuple(Dialogue.of(one) for one in BENCHMARKS.values())
"""A task for each benchmark."""
