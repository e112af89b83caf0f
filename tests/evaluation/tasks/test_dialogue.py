"""Benchmarks as evaluation sets in shards: the same questions, answers and scores as from the released files."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from cornerstone import cli
from cornerstone.data.conversations.chat import SYSTEM
from cornerstone.data.conversations.turns import Turn, segments_of
from cornerstone.data.images import Transform
from cornerstone.data.pairs.image_input import DecodedImages
from cornerstone.data.records import Document
from cornerstone.data.scenes.tokenizer import train_wordpiece
from cornerstone.data.shards import DataSet, ShardWriter
from cornerstone.data.storage import Location
from cornerstone.data.texts import TextInput
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.dialogue import BENCHMARKS
from cornerstone.evaluation.dialogue.conversations import numbered
from cornerstone.evaluation.evaluator import evaluate
from cornerstone.evaluation.judged import metrics_of
from cornerstone.evaluation.sets import open_sets
from cornerstone.evaluation.tasks import TASKS, EvaluationInputs
from cornerstone.jobs.questions import write_questions
from cornerstone.models.dialogue_transfer import DialogueTransfer

TOKENS = train_wordpiece(
    [f"{SYSTEM} USER: ASSISTANT: yes no red girl what is it which a b c d answer"] * 9, vocab_size=600
)
TEXTS = TextInput("plain", TOKENS, 400)


def picture(colour=(200, 0, 0)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def gqa(tmp_path):
    """Three questions about two images, one of which is missing."""
    rows = {
        "201": {"imageId": "n1", "question": "Is it red?", "answer": "yes", "types": {"structural": "verify"}},
        "202": {"imageId": "n2", "question": "Is it?", "answer": "yes", "types": {"structural": "verify"}},
        "203": {"imageId": "n1", "question": "Who?", "answer": "girl", "types": {"structural": "query"}},
    }
    (tmp_path / "questions.json").write_text(json.dumps(rows))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "n1.jpg").write_bytes(picture())
    return tmp_path


class Answering:
    """Answers each prompt by what it ends with."""

    def __init__(self, said):
        self.form, self.said, self.shown = TEXTS.open(), said, []

    def generate(self, image, ids, length, place, last, longest):
        self.shown += image.float().mean((2, 3)).tolist()
        prompts = [self.form.tokenizer.decode(i[:n].tolist()) for i, n in zip(ids, length, strict=True)]
        words = [next(answer for asked, answer in self.said.items() if asked in prompt) for prompt in prompts]
        return [self.form.tokenizer.encode(word, add_special_tokens=False).ids for word in words]


def judged_by(folder, said, rows_at_once=1):
    (one,) = open_sets((str(folder),))
    source = one.source(EvaluationInputs(DecodedImages(Transform(8)), TEXTS, TOKENS))
    opened, model = source.open(), Answering(said)
    takes = [np.arange(first, min(first + rows_at_once, one.rows)) for first in range(0, one.rows, rows_at_once)]
    batches = [(0, source.batch(0, opened.take(rows, np.zeros_like(rows)))) for rows in takes]
    (found,) = evaluate(model, batches, (one,), TEXTS.open(), torch.device("cpu"))
    return one, model, found


@pytest.mark.parametrize("rows_at_once", [1, 2])
def test_a_released_benchmark_in_shards_is_scored_by_its_own_rules(gqa, rows_at_once):
    cli.main(
        [
            "data",
            "questions",
            "gqa",
            str(gqa / "questions.json"),
            "--images",
            str(gqa / "images"),
            "--out",
            str(gqa / "out"),
        ]
    )
    assert DataSet.open(str(gqa / "out")).manifest.tasks == ("gqa",)
    one, model, found = judged_by(gqa / "out", {"is it red": "Yes.", "who": "a girl"}, rows_at_once)
    assert (one.name, one.task.name, one.rows) == ("gqa", "gqa", 2)
    assert found.rows_left_out == 1
    assert metrics_of([found])["eval/gqa/accuracy"] == pytest.approx(100 / 3)  # "a girl" is no "girl", n2 is missing
    assert found.measured.counts == {"questions": 3}
    assert found.measured.correct["accuracy"].tolist() == [True, False, False]
    assert found.measured.cluster["accuracy"].tolist() == [0, 0, 1]
    assert len(model.shown) == 2
    assert all(shown[0] > 150 > shown[1] for shown in model.shown)


def test_questions_come_back_from_shards_as_they_were_read(gqa):
    one, files = BENCHMARKS["gqa"], [Location.of(gqa / "questions.json")]
    _, unread = write_questions(one, files, Location.of(gqa / "images"), Location.of(gqa / "out"))
    assert list(unread) == ["n2.jpg"]
    found = {q.key: (row, number, q) for row, number, q in numbered(DataSet.open(str(gqa / "out"), "documents"))}
    assert {key: place[:2] for key, place in found.items()} == {"201": (0, 0), "203": (0, 1), "202": (1, 0)}
    for question in one.read(files):
        again = found[question.key][2]
        assert replace(again, image=None, group="") == replace(question, image=None)
        assert again.cluster == question.cluster
    with pytest.raises(CornerstoneError, match=r"GQA names images: give the folder that has them, --images"):
        write_questions(one, files, None, Location.of(gqa / "other"))


def test_a_truth_of_several_values_and_both_questions_of_an_image(tmp_path):
    """MMBench's letter among some, and all of its rotations together; images in the file."""
    from tests.evaluation.dialogue import test_benchmarks as files

    questions = BENCHMARKS["mmbench"].read(files.mmbench(tmp_path, picture()))
    write_questions(BENCHMARKS["mmbench"], files.mmbench(tmp_path, picture()), None, Location.of(tmp_path / "out"))
    found = {q.key: q for _, _, q in numbered(DataSet.open(str(tmp_path / "out"), "documents"))}
    assert {q.key: (q.truth, q.group) for q in questions} == {key: (q.truth, q.group) for key, q in found.items()}


def test_conversations_are_asked_turn_by_turn(tmp_path):
    turns = (Turn("human", "which?", True, "x"), Turn("gpt", "red"), Turn("human", "is it?"), Turn("gpt", "no"))
    with ShardWriter(str(tmp_path / "talks"), name="talks", kind="documents") as writer:
        writer.add(Document("one", segments_of(turns, picture())))
        writer.add(Document("two", segments_of((Turn("human", "who?"), Turn("gpt", "girl")), None)))
    one, model, found = judged_by(tmp_path / "talks", {"which": "red", "is it": "yes", "who": "girl"}, 2)
    assert one.task.name == "conversations"
    assert found.measured.metrics == {"accuracy": pytest.approx(200 / 3)}
    assert found.measured.correct["accuracy"].tolist() == [True, False, True]
    assert model.shown[2] == [0, 0, 0]  # the one without an image


def test_a_model_that_answers_nothing_is_refused():
    assert TASKS["gqa"].refusal(DialogueTransfer) == ""
    assert TASKS["gqa"].refusal(SimpleNamespace) == "answers no questions"
    assert [metric.name for metric in TASKS["pope"].shown] == ["f1"]
