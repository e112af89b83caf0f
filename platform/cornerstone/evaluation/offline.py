"""Evaluation of a saved model in this process, without Ray: the same samples and the same tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from cornerstone.data.batch import Batch
from cornerstone.data.images import Transform
from cornerstone.data.manifest import FILE as MANIFEST
from cornerstone.data.mixture import Mixture
from cornerstone.data.pairs.drawing import viewed
from cornerstone.data.pairs.feature_store import FeatureKeys, FeatureType, Precision, check_store, store_width
from cornerstone.data.pairs.image_input import ImageInput, StoredFeatures
from cornerstone.data.shards import DataSet, Reader
from cornerstone.data.storage import Location
from cornerstone.data.texts import TextFormat
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.evaluator import evaluate
from cornerstone.evaluation.judged import Judged
from cornerstone.evaluation.left_out import USUAL_LIMIT, import_losses, unusable_rows
from cornerstone.evaluation.overlap import overlap_warnings, training_data
from cornerstone.evaluation.tasks import EvaluationInputs, EvaluationSet
from cornerstone.inference.opened_model import OpenedModel
from cornerstone.models.image_tower import TimmTower, state_hash
from cornerstone.runtime.home import home

ROWS_AT_ONCE = 128
Track = Callable[[Iterable[int], str], Iterable[int]]


def evaluate_model(
    model: OpenedModel,
    sets: Sequence[EvaluationSet],
    track: Track = lambda steps, name: steps,
    *,
    features: Sequence[str] = (),
    bad_row_limit: float = USUAL_LIMIT,
) -> tuple[Judged, ...]:
    """The result of every set; `track(steps, set name)` may show progress.

    With `features`, folders of stored features, one for each set, no image is read. Raises CornerstoneError for a model that
    does not encode images and texts, for features of other rows or of another tower, and for a set of which more than
    `bad_row_limit` (a share) of the rows have no usable image or were left out at its import.
    """
    for judged in sets:
        if why := judged.task.refusal(type(model.module)):
            raise CornerstoneError(f"The method {model.name!r} {why} (given: {judged.folder}).")
    _refuse(import_losses(sets, bad_row_limit))
    texts = model.text_input
    images: ImageInput = model.image_input
    stores = _stores_of(model, sets, features)
    if stores:
        images = StoredFeatures((), store_width(DataSet.open(next(iter(stores.values())), "features").manifest))
    inputs = EvaluationInputs(images, texts, model.tokenizer_json, stores)

    def batches() -> Iterator[tuple[int, Batch]]:
        for place, judged in enumerate(sets):
            source = judged.source(inputs)
            opened = source.open()
            for first in track(range(0, judged.rows, ROWS_AT_ONCE), judged.name):
                rows = np.arange(first, min(first + ROWS_AT_ONCE, judged.rows))
                yield place, source.batch(0, opened.take(rows, np.zeros_like(rows)))

    results = evaluate(model.module, batches(), sets, texts.open() if texts is not None else None, model.device)
    _refuse(unusable_rows(results, sets, bad_row_limit))
    return results


def _refuse(losses: Sequence[str]) -> None:
    if losses:
        raise CornerstoneError(f"{losses[0]}, or allow more with --bad-row-limit SHARE.")


def texts_cut(model: OpenedModel, sets: Sequence[EvaluationSet]) -> dict[str, tuple[int, int]]:
    """By the name of each set of pairs: how many of its texts are longer than the model reads, and how many it has."""
    form, counts = model.text_format, {}
    for judged in sets:
        if form is not None and judged.task.reads == "pairs" and judged.view:
            lengths = text_lengths(judged, form)
            counts[judged.name] = sum(length > form.max_tokens for length in lengths), len(lengths)
    return counts


def text_lengths(judged: EvaluationSet, form: TextFormat) -> list[int]:
    """Tokens of each text of a set of pairs before any limit, without those that a text tower adds."""
    reader = Reader(data := DataSet.open(judged.folder, "pairs"), ["captions"])
    lengths: list[int] = []
    for group in range(sum(len(shard.row_groups) for shard in data.manifest.shards)):
        rows = reader.group(group)["captions"].to_pylist()
        texts = (text.sentences for row in rows for text in viewed(row or [], judged.view))
        lengths += (len(ids) for ids in form.encode_uncut(texts))
    return lengths


def overlaps(model: OpenedModel, sets: Sequence[EvaluationSet]) -> list[str]:
    """Warnings about images that the model has seen in training, and about images that two of the sets share.

    Of a run's model whose training data are still where they were, row by row; otherwise by their hash, saved with it.
    """
    data = model.recipe.get("data", {})
    seen = training_data(data.get("train", ""), data.get("limit_rows"))
    known = model.content.get("data", "")
    if seen is not None and known and known != Mixture.open(data["train"]).manifest.content_hash:
        seen = None  # the folder holds other rows now
    return overlap_warnings(sets, seen, known, model.name)


def stores_in_home(model: OpenedModel, sets: Sequence[EvaluationSet]) -> list[str]:
    """The features that the model's own run was evaluated on, if they are in the home; [] if it read images.

    Stored features are rounded to fp16: from images the same model gives slightly other numbers.
    """
    data = model.recipe.get("data", {})
    if data.get("features") != "stored" or _tower(model) is None:
        return []
    keys = _keys_of(model, data.get("feature_dtype", "float16"), data.get("feature_precision", "fp32"))
    found = [home().join("features", replace(keys, data=judged.content_hash).digest()) for judged in sets]
    return list(dict.fromkeys(store.uri for store in found)) if all(s.join(MANIFEST).exists() for s in found) else []


def _keys_of(model: OpenedModel, dtype: FeatureType, precision: Precision) -> FeatureKeys:
    """What the features of this model's image tower depend on; `data` is left open."""
    tower = _tower(model)
    if tower is None:
        raise CornerstoneError(
            f"Stored features are those of a run's image tower, and {model.name} has none: leave out --features."
        )
    return FeatureKeys("", state_hash(tower), Transform(model.image_size, train=False).key(), dtype, precision)


def _tower(model: OpenedModel) -> TimmTower | None:
    """The image tower of a run's model; a released one has another kind of tower."""
    tower: TimmTower | None = getattr(model.module, "image_tower", None)
    return tower


def _stores_of(model: OpenedModel, sets: Sequence[EvaluationSet], features: Sequence[str]) -> dict[str, str]:
    """The feature store of each set by its folder; {} without features."""
    if not features:
        return {}
    model.image_size  # noqa: B018 - raises if there is no image tower
    opened = {s.manifest.keys.get("data"): s for s in (DataSet.open(folder, "features") for folder in features)}
    stores = {}
    for judged in sets:
        store = opened.get(judged.content_hash)
        if store is None:
            raise CornerstoneError(
                f"None of the features given is of the rows of {judged.name} ({judged.folder}): compute them with "
                f"`cornerstone features {judged.folder} --out DIR`, or leave out --features."
            )
        held = store.manifest.keys
        keys = _keys_of(model, held["dtype"], held.get("precision", "fp32"))
        stores[judged.folder] = check_store(Location.of(store.location), replace(keys, data=judged.content_hash))
    return {folder: store.location.uri for folder, store in stores.items()}
