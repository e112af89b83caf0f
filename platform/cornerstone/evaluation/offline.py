"""Evaluation of a saved model in this process, without Ray: the same samples and the same tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from cornerstone.data.batches import EvaluationBatch, evaluation_batch
from cornerstone.data.images import Transform
from cornerstone.data.pairs.samples import Pictures, Samples, Texts
from cornerstone.data.storage import Location
from cornerstone.data.texts import FILE as TOKENIZER
from cornerstone.evaluation.evaluator import evaluate
from cornerstone.evaluation.judged import Judged
from cornerstone.evaluation.tasks import EvaluationSet
from cornerstone.inference.saved_model import LoadedModel

ROWS_AT_ONCE = 128
Track = Callable[[Iterable[int], str], Iterable[int]]


def evaluate_model(
    model: LoadedModel, path: str, sets: Sequence[EvaluationSet], track: Track = lambda steps, name: steps
) -> tuple[Judged, ...]:
    """The result of every set. `path` is the model's folder; `track(steps, set name)` may show progress."""
    text = model.recipe["method"]["text"]
    place = Location.of(path)
    tokenizer = next(p for p in (place.join(TOKENIZER), place.join("model", TOKENIZER)) if p.exists()).read_text()
    texts = Texts(tokenizer, text["token_limit"], text["corner_tokens"])
    pictures = Pictures(Transform(int(model.recipe["method"]["image"]["size"]), train=False))

    def batches() -> Iterator[EvaluationBatch]:
        for index, judged in enumerate(sets):
            samples = Samples((judged.source.data,), pictures, texts)
            for first in track(range(0, judged.source.rows, ROWS_AT_ONCE), judged.name):
                rows = np.arange(first, min(first + ROWS_AT_ONCE, judged.source.rows))
                yield evaluation_batch(samples.evaluation(0, index, rows, judged.source.view))

    return evaluate(model.module, batches(), sets, texts.build(), model.device)
