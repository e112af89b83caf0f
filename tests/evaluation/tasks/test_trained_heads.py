"""The tasks that judge what was trained on an image tower: classes by their logits, captions by their references."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from cornerstone.data.pairs.batch import EvaluationBatch, LabelledBatch
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.sets import open_sets
from cornerstone.evaluation.tasks import TASKS
from cornerstone.models.caption_transfer import CaptionTransfer
from cornerstone.models.classifier import Classifier
from cornerstone.models.lotlip import Lotlip

LABELS = torch.tensor([0, 1, 2, 0, -1, 1])
LOGITS = torch.tensor(
    [
        [2.0, 1.0, 0.0],
        [1.0, 1.0, 0.0],  # a tie is wrong
        [0.0, 3.0, 2.0],
        [float("nan"), 0.0, 0.0],
        [9.0, 0.0, 0.0],  # not valid
        [0.0, 4.0, 1.0],
    ]
)


class Answers:
    """A model whose images are numbers of rows."""

    def classify(self, image):
        return LOGITS[image[:, 0, 0, 0].long()]

    def generate(self, image, first, last, longest):
        assert (first, last, longest) == (1, 2, 6)
        return [[10 + int(one)] for one in image[:, 0, 0, 0]]


def judge(**texts):
    return SimpleNamespace(model=Answers(), device=torch.device("cpu"), texts=SimpleNamespace(**texts))


def labelled(rows):
    valid = LABELS[rows] >= 0
    image = rows.view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    return LabelledBatch(0, rows, valid, (), LABELS[rows], image)


def test_ties_and_nan_are_wrong_and_workers_shares_are_joined():
    task, judged = TASKS["classifier"], SimpleNamespace(name="class", rows=6, classes=("a", "b", "c"))
    parts = [task.collected(), task.collected(), task.collected()]
    parts[0].add(labelled(torch.tensor([5, 0, 3])), judge())
    parts[1].add(labelled(torch.tensor([4, 2, 1])), judge())
    measured = task.conclude(judged, parts, judge())
    assert measured.correct["top1"].tolist() == [True, False, False, False, True]  # rows 0, 1, 2, 3, 5
    assert measured.cluster["top1"].tolist() == [0, 1, 2, 3, 5]
    assert measured.metrics["top1"] == 40.0
    assert measured.counts == {"images": 5, "classes": 3}
    assert measured.chance == {"top1": pytest.approx(100 / 3), "top5": 100.0}
    with pytest.raises(CornerstoneError, match="'class' has no usable row"):
        task.conclude(judged, [task.collected()], judge())


def test_each_judges_its_own_kind_of_model_alone():
    refused = {
        name: [m.__name__ for m in (Classifier, CaptionTransfer, Lotlip) if TASKS[name].refusal(m)]
        for name in ("classifier", "caption", "classification")
    }
    assert refused == {
        "classifier": ["CaptionTransfer", "Lotlip"],
        "caption": ["Classifier", "Lotlip"],
        "classification": ["Classifier", "CaptionTransfer"],
    }


def test_a_caption_that_was_not_written_counts_as_empty(small_data, tmp_path, monkeypatch):
    monkeypatch.setattr("cornerstone.evaluation.ptb.shutil.which", lambda name: None)
    from cornerstone.data.records import Caption

    told = [(Caption("web", "raw", f"word{i} stands here"),) for i in range(3)]
    told += [(Caption("x", "long", "never judged"),)]
    pairs = (small_data.pair(i, captions=captions) for i, captions in enumerate(told))
    folder = small_data.write(tmp_path / "pairs", pairs)
    (judged,) = open_sets((folder,), "caption")
    rows = torch.tensor([0, 1])  # the image of row 2 could not be read
    none = torch.zeros(0, dtype=torch.int64)
    batch = EvaluationBatch(
        0, rows, rows >= 0, (), rows, ("", ""), none, none, none, none, none, rows.view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    )
    spoken = {10: "word0 stands here", 11: "word1 stands here"}
    tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: spoken[ids[0]])
    given = judge(first=1, last=2, max_tokens=8, tokenizer=tokenizer)
    part = judged.task.collected()
    part.add(batch, given)
    measured = judged.task.conclude(judged, [part], given)
    assert measured.counts == {"images": 3, "captions": 3}
    assert measured.metrics["rouge_l"] == pytest.approx(200 / 3)
    bare = small_data.write(tmp_path / "bare", [small_data.pair(0, captions=told[3])])
    (without,) = open_sets((bare,), "caption")
    with pytest.raises(CornerstoneError, match=r"No image of .*bare has a raw caption"):
        without.task.conclude(without, [part], given)
