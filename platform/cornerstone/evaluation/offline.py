"""Evaluating a saved model in this process: the same samples, the same judges, no cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from cornerstone.data.images import Transform
from cornerstone.data.pairs.batch import EvaluationBatch
from cornerstone.data.pairs.image_input import DecodedImages
from cornerstone.data.pairs.source import PairEvaluation
from cornerstone.evaluation.evaluator import evaluate
from cornerstone.evaluation.sets import EvaluationSet
from cornerstone.inference.saved_model import SavedModel

ROWS_AT_ONCE = 128
Track = Callable[[Iterable[int], str], Iterable[int]]


def evaluate_model(
    model: SavedModel, sets: tuple[EvaluationSet, ...], track: Track = lambda steps, name: steps
) -> dict[str, float]:
    """`eval/<set>/<metric>` of every set. `track` may show progress over batches."""
    images = DecodedImages(Transform(model.image_size, train=False))
    texts, encoder = model.text_input, model.encoder
    assert texts is not None, "a dual encoder has a text tower"

    def batches() -> Iterator[tuple[int, EvaluationBatch]]:
        for place, one in enumerate(sets):
            source = PairEvaluation(one.folder, one.rows, images, texts, one.view)
            opened = source.open()
            for first in track(range(0, one.rows, ROWS_AT_ONCE), one.name):
                rows = np.arange(first, min(first + ROWS_AT_ONCE, one.rows))
                yield place, source.batch(0, opened.take(rows, np.zeros_like(rows)))

    return evaluate(encoder, batches(), sets, texts.open(), model.device)
