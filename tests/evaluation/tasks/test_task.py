"""The registry of tasks, and that a new task needs a module and an entry in it, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sources import texts_of

import cornerstone.evaluation as evaluation
import cornerstone.sweeps as sweeps
from cornerstone.data.images import Transform
from cornerstone.data.pairs.image_input import DecodedImages
from cornerstone.data.pairs.views import Wanted
from cornerstone.evaluation.dialogue import BENCHMARKS
from cornerstone.evaluation.evaluator import evaluate
from cornerstone.evaluation.judged import metrics_of, queries_of
from cornerstone.evaluation.ranking import Measured, cosine
from cornerstone.evaluation.sets import metric_names, open_sets
from cornerstone.evaluation.tasks import TASKS, EvaluationInputs, Metric
from cornerstone.evaluation.tasks.pair_task import PairTask


def test_every_task_is_registered_under_its_name():
    assert (
        list(TASKS)
        == [task.name for task in TASKS.values()]
        == [
            "retrieval",
            "classification",
            "lookalike",
            "sentence-swap",
            "attention",
            "interleaved",
            "probe",
            "classifier",
            "caption",
            *BENCHMARKS,
        ]
    )
    assert [str(task) for task in TASKS.values()] == list(TASKS)


def test_metrics_have_names_and_labels_of_their_own():
    for task in TASKS.values():
        assert len({metric.name for metric in task.metrics}) == len({metric.label for metric in task.metrics})
        assert {metric.unit for metric in task.metrics} <= {"%", "nats", "bits", ""}
    assert [metric.name for metric in TASKS["retrieval"].shown] == ["i2t_r1", "t2i_r1"]
    assert [metric.name for metric in TASKS["classification"].shown] == ["top1"]
    assert TASKS["lookalike"].shown == TASKS["lookalike"].metrics


@pytest.mark.parametrize("package", [evaluation, sweeps])
def test_no_other_module_names_a_task(package):
    """But for benchmarks of dialogue, which have a registry of their own and are columns of papers."""
    named = "|".join(f"['\"]{name}['\"]" for name in TASKS if name not in BENCHMARKS)
    folder = Path(package.__file__).parent
    for path in folder.rglob("*.py"):
        if path.parent.name != "tasks":
            assert not re.search(named, path.read_text()), path


class Swap(PairTask):
    """Whether an image is nearer to its first raw caption than to the first foil."""

    name = "swap"
    metrics = (Metric("swap_accuracy", "swap"),)

    def views(self, contents):
        return {"-swap": (Wanted("raw", every=False), Wanted("foil", every=False))}

    def judge(self, judged, encoded, encode_texts):
        right, foil = (encoded.text_TD[encoded.place_T == place] for place in (0, 1))
        correct = (encoded.image_ND * (right - foil)).sum(1) > 0
        share = {"swap_accuracy": 100 * correct.double().mean().item()}
        return Measured(share, {}, {"swap_accuracy": correct}, {"swap_accuracy": torch.arange(len(correct))})


def test_a_new_task_is_one_object_in_the_registry(monkeypatch, tmp_path, small_data, wordpiece):
    from cornerstone.data.records import Caption

    monkeypatch.setitem(TASKS, "swap", Swap())
    captions = (Caption("web", "raw", "one two"), Caption("web", "foil", "two one three"))
    folder = small_data.write(
        tmp_path / "foils", (small_data.pair(i, captions=captions) for i in range(4)), tasks=("swap",)
    )
    sets = open_sets((folder,))
    assert [(s.name, s.task.name) for s in sets] == [("foils-swap", "swap")]
    assert metric_names(sets) == ["eval/foils-swap/swap_accuracy"]
    texts = texts_of(wordpiece.read_text(), 32, 0)
    source = sets[0].source(EvaluationInputs(DecodedImages(Transform(8)), texts, ""))
    rows = np.arange(4)
    batch = source.batch(0, source.open().take(rows, np.zeros_like(rows)))

    class Model:
        def encode_image(self, image):
            return torch.tensor([[1.0], [1.0], [1.0], [-1.0]])

        def encode_text(self, ids, lengths):
            return -lengths[:, None].float()  # the foil is longer

        similarity = text_similarity = staticmethod(cosine)

    results = evaluate(Model(), [(0, batch)], sets, texts.open(), torch.device("cpu"))
    assert metrics_of(results) == {"eval/foils-swap/swap_accuracy": 75.0}
    assert queries_of(results) == {"eval/foils-swap/swap_accuracy": 4}
