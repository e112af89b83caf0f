"""Pairs become sources: captioners checked, stored features found or computed, evaluation sets made ready to stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import ClassVar

from cornerstone.data.images import Transform
from cornerstone.data.manifest import FILE as MANIFEST
from cornerstone.data.manifest import Kind
from cornerstone.data.mixture import Mixture
from cornerstone.data.pairs.drawing import TextDraws
from cornerstone.data.pairs.feature_store import FeatureKeys, check_store
from cornerstone.data.pairs.image_input import DecodedImages, ImageInput, StoredFeatures
from cornerstone.data.pairs.source import PairSource
from cornerstone.data.shards import DataSet, Reader
from cornerstone.data.texts import TextInput
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.sets import EvaluationSet
from cornerstone.evaluation.tasks import EvaluationInputs
from cornerstone.jobs.built_in_scenes import timed
from cornerstone.jobs.features import FeatureJob, write_features
from cornerstone.recipes.pairs import PairData
from cornerstone.recipes.recipe import Recipe
from cornerstone.recipes.towers import ImageTower
from cornerstone.runtime.home import home
from cornerstone.training.shared import Shared


class PairSources:
    """The sources of a recipe that is trained on pairs."""

    manifest_kinds: ClassVar[tuple[Kind, ...]] = ("pairs",)
    reads_texts: ClassVar[bool] = True

    def __init__(
        self, recipe: Recipe, data: Mixture, tokenizer: str, sets: tuple[EvaluationSet, ...], shared: Shared
    ) -> None:
        pairs, image = recipe.data, recipe.method.image_tower
        texts = TextInput.of_method(recipe.method, tokenizer)
        if not isinstance(pairs, PairData) or image is None or texts is None:
            raise CornerstoneError(
                f"The method {recipe.method.kind!r} reads no images and texts: it cannot train on pairs."
            )
        shared.once(("captioners", data.location, pairs.captioners), lambda: _check_captioners(pairs, data))
        shared.once(("rewrites", data.location, pairs.rewrites), lambda: _check_rewrites(pairs, data))
        transform = Transform(image.size, pairs.crop_scale)
        stores = _stores(pairs, image, transform, data, sets, shared) if pairs.features == "stored" else {}
        self.stored_features = bool(stores)
        images: ImageInput = DecodedImages(transform)
        if stores:
            images = StoredFeatures(tuple(stores[one.location.uri] for one in data.sets), shared.tower(image)[0])
        draws = TextDraws(recipe.seed, pairs.sub_captions, pairs.captioners, pairs.rewrites)
        self.train = PairSource(data.folders, data.parts, images, texts, draws)
        inputs = EvaluationInputs(images, texts, tokenizer, stores)
        self.evaluations = tuple(one.source(inputs) for one in sets)

    @staticmethod
    def special_ids(tokenizer: str) -> None:
        """Pairs have no special tokens between their words."""


def _stores(
    pairs: PairData,
    image: ImageTower,
    transform: Transform,
    data: Mixture,
    sets: tuple[EvaluationSet, ...],
    shared: Shared,
) -> dict[str, str]:
    """The feature store of each data set by its folder, computed now if none fits; {} if a dry run lacks any."""
    width, tower_digest = shared.tower(image)
    fixed = replace(transform, train=False)
    sources = [*data.sets, *(shared.once(("open", s.folder), partial(DataSet.open, s.folder)) for s in sets)]
    named = {
        store.manifest.keys.get("data"): store
        for store in (DataSet.open(folder, "features") for folder in pairs.feature_stores)
    }
    jobs: dict[str, FeatureJob] = {}
    for one in sources:
        keys = FeatureKeys(
            one.manifest.content_hash, tower_digest, fixed.key(), pairs.feature_dtype, pairs.feature_precision
        )
        given = named.get(keys.data)
        jobs[one.location.uri] = FeatureJob(
            one, given.location if given else home().join("features", keys.digest()), keys
        )
    if unused := [str(s.location) for key, s in named.items() if key not in {job.keys.data for job in jobs.values()}]:
        raise CornerstoneError(
            f"The features at {unused[0]} are of none of this run's data sets: compute them again from the data as it is now "
            f"(`cornerstone features`), or leave out --features {unused[0]}."
        )
    missing = {job.out: job for job in jobs.values() if not job.out.join(MANIFEST).exists()}
    if missing and not shared.compute_features:
        return {}
    if missing:
        images = sum(len(job.data) for job in missing.values())
        what = f"features: {images:,} images of {len(missing)} data sets through the locked tower, once for all trials"
        with timed(shared.say, what):
            write_features(list(missing.values()), image, fixed, width=width)
    return {folder: check_store(job.out, job.keys).location.uri for folder, job in jobs.items()}


def _first_captions(data: Mixture) -> Iterator[dict[str, str]]:
    """The captions of the first row group of every data set."""
    tables = [Reader(one, ["captions"]).group(0) for one in data.sets]
    return (c for table in tables for row in table["captions"].to_pylist() for c in row or [])


def _check_rewrites(pairs: PairData, data: Mixture) -> None:
    if pairs.rewrites and not any(caption["role"] == "rewrite" for caption in _first_captions(data)):
        raise CornerstoneError(
            f"No rewrite of a raw caption in {data.location}: import them (`cornerstone data import FORMAT SRC "
            f"--rewrite FIELD`), set --recipe.data.scenes.rewrites for the built-in scenes, or set --recipe.data.no-rewrites."
        )


def _check_captioners(pairs: PairData, data: Mixture) -> None:
    if not pairs.captioners:
        return
    sources = {caption["source"] for caption in _first_captions(data) if caption["role"] == "long"}
    unknown = [name for name in pairs.captioners if name not in sources]
    if unknown:
        raise CornerstoneError(
            f"No long caption by {unknown[0]!r} in {data.location}: its captioners are {', '.join(sorted(sources)) or 'none'} "
            f"(--recipe.data.captioners)."
        )
