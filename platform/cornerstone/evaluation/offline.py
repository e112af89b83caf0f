"""Evaluation of a saved model in this process, without Ray: the same samples and the same tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from cornerstone.data.batch import Batch
from cornerstone.data.images import Transform
from cornerstone.data.pairs.image_input import DecodedImages
from cornerstone.evaluation.evaluator import evaluate
from cornerstone.evaluation.judged import Judged
from cornerstone.evaluation.tasks import EvaluationSet
from cornerstone.inference.saved_model import SavedModel

ROWS_AT_ONCE = 128
Track = Callable[[Iterable[int], str], Iterable[int]]


def evaluate_model(
    model: SavedModel, sets: Sequence[EvaluationSet], track: Track = lambda steps, name: steps
) -> tuple[Judged, ...]:
    """The result of every set; `track(steps, set name)` may show progress.

    Raises CornerstoneError for a model that does not encode images and texts.
    """
    encoder, texts = model.encoder, model.text_input
    images = DecodedImages(Transform(model.image_size, train=False))
    assert texts is not None, "a dual encoder has a text tower"

    def batches() -> Iterator[tuple[int, Batch]]:
        for place, judged in enumerate(sets):
            source = judged.source(images, texts)
            opened = source.open()
            for first in track(range(0, judged.rows, ROWS_AT_ONCE), judged.name):
                rows = np.arange(first, min(first + ROWS_AT_ONCE, judged.rows))
                yield place, source.batch(0, opened.take(rows, np.zeros_like(rows)))

    return evaluate(encoder, batches(), sets, texts.open(), model.device)
