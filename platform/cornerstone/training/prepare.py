"""From a recipe to all that its workers need: data opened, tokenizer and tower resolved, features computed once.

What is prepared lies under the home and is found again by its content; the trials of a sweep share it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from cornerstone.data.images import Transform
from cornerstone.data.layout import StreamSpec
from cornerstone.data.manifest import FILE as MANIFEST
from cornerstone.data.mixture import Mixture
from cornerstone.data.pairs.feature_store import FeatureKeys, check_store
from cornerstone.data.pairs.samples import Draws, Pictures, Texts
from cornerstone.data.plan import Plan
from cornerstone.data.shards import DataSet, Reader
from cornerstone.data.storage import Location, absolute
from cornerstone.data.texts import TextTokenizer
from cornerstone.errors import CornerstoneError, did_you_mean
from cornerstone.evaluation.sets import EvaluationSet, eval_hash, metric_names, open_sets, split_name
from cornerstone.jobs.built_in_scenes import prepare_scenes, timed
from cornerstone.recipes.recipe import Recipe
from cornerstone.recipes.towers import ImageTower
from cornerstone.runtime.home import home
from cornerstone.runtime.tokenizer import load_tokenizer

Say = Callable[[str], None]
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Prepared:
    """A recipe whose every name has become something that can be opened from any worker."""

    recipe: Recipe
    """With absolute paths, and the embedded data's where it names none."""
    given: Recipe
    """As it was written."""
    data: Mixture
    tokenizer: str
    """The text of a `tokenizer.json`."""
    vocabulary: int
    image_width: int
    sets: tuple[EvaluationSet, ...]
    content: dict[str, str]
    features: tuple[str, ...] = ()
    """A feature store for each training data set; none where the tower runs online."""

    @property
    def recipe_hash(self) -> str:
        """Identifies the experiment (DESIGN: all that changes the expected numbers; no seed, no path)."""
        return self.recipe.hash(self.content)

    @property
    def eval_hash(self) -> str:
        """Identifies what is measured."""
        return eval_hash(self.sets)

    @property
    def rows(self) -> int:
        """Rows of an epoch: of a mixture, each data set's as often as its weight says."""
        return self.stream().plan.rows

    def passes(self) -> str:
        """Epochs of the run, and what its end leaves over of the last one: `3 epochs, and 17 rows of the next one's 50`."""
        steps, plan = self.recipe.optimization.steps, self.stream().plan
        whole, begun = divmod(steps * plan.batch_size, plan.rows)
        rest = f"{begun:,} rows of the {'next one' if whole else 'first one'}'s {plan.rows:,}" if begun else ""
        return ", and ".join(filter(None, [f"{whole:,} epochs" if whole != 1 else "1 epoch", rest]))

    @property
    def texts(self) -> Texts:
        """How texts are tokenized."""
        text = self.recipe.method.text
        return Texts(self.tokenizer, text.token_limit, text.corner_tokens)

    @property
    def transform(self) -> Transform:
        """What becomes of a training image."""
        return Transform(self.recipe.method.image.size, self.recipe.data.crop_scale)

    def described(self) -> dict[str, Any]:
        """The data set or mixture, as a record names it."""
        manifest = self.data.manifest
        return {
            "name": manifest.name,
            "digest": manifest.content_hash,
            "uri": self.data.location.uri,
            "rows": self.rows,
        }

    def stream(self) -> StreamSpec:
        """What the decode actors need."""
        recipe = self.recipe
        return StreamSpec(
            data=self.data.folders,
            plan=Plan(self.data.parts, recipe.optimization.batch_size, recipe.seed, recipe.data.limit_rows),
            draws=Draws(recipe.seed, recipe.data.sub_captions, recipe.data.captioners),
            pictures=Pictures(self.transform, self.features, self.image_width),
            texts=self.texts,
            steps=recipe.optimization.steps,
            evaluations=tuple(s.source for s in self.sets),
            every=recipe.evaluation.every,
        )


def prepare(recipe: Recipe, say: Say = print, *, features: bool = True) -> Prepared:
    """Resolve a recipe in the driver, before anything is started.

    `features=False` leaves stored features that are not there uncomputed (a dry run): the tower then runs online.
    """
    given, recipe = recipe, _with_scenes(recipe, say)
    data = Mixture.open(recipe.data.train)
    _check_captioners(recipe, data)
    tokenizer = _tokenizer(recipe, data)
    sets = open_sets(recipe.evaluation.sets)
    width, tower_hash = describe_tower(recipe.method.image)
    content = {"data": data.manifest.content_hash, "tokenizer": _sha(tokenizer), **_tower_content(recipe, tower_hash)}
    prepared = Prepared(
        recipe, given, data, tokenizer, TextTokenizer(tokenizer, limit=8, corners=0).vocab_size, width, sets, content
    )
    prepared.stream()  # a batch above the rows is refused here, before anything is computed
    _check_best(recipe, sets)
    return with_features(prepared, tower_hash, say, compute=features) if recipe.data.features == "stored" else prepared


def again(prepared: Prepared, recipe: Recipe, say: Say = print) -> Prepared:
    """What a sweep's next point needs. Where it differs in what is drawn, in the text tower, the loss or the seed alone, it
    shares data, tokenizer, tower and features with the point prepared before; otherwise it is prepared by itself.
    """
    drawn: dict[str, Any] = {"sub_captions": recipe.data.sub_captions, "captioners": recipe.data.captioners}
    shared = (
        replace(prepared.given.data, **drawn) == recipe.data
        and prepared.given.method.image == recipe.method.image
        and prepared.given.method.text.name == recipe.method.text.name
        and prepared.given.evaluation == recipe.evaluation
    )
    if not shared:
        return prepare(recipe, say)
    ours = prepared.recipe
    resolved = replace(recipe, evaluation=ours.evaluation).with_data(train=ours.data.train)
    resolved = resolved.with_method(image=ours.method.image)
    _check_captioners(resolved, prepared.data)
    ready = replace(prepared, recipe=resolved, given=recipe)
    ready.stream()  # refuses a batch above the rows
    return ready


def with_features(prepared: Prepared, tower_hash: str, say: Say, *, compute: bool) -> Prepared:
    """The same with stored features, computed now where no store fits."""
    from cornerstone.jobs.features import FeatureJob, write_features

    recipe, transform = prepared.recipe, replace(prepared.transform, train=False)
    sources = [*prepared.data.sets, *(DataSet.open(s.source.data) for s in prepared.sets)]
    given = {store.manifest.keys.get("data"): store for store in map(_open_store, recipe.data.feature_stores)}
    jobs = []
    for data in sources:
        keys = FeatureKeys(data.manifest.content_hash, tower_hash, transform.key(), recipe.data.feature_dtype)
        named = given.get(keys.data)
        jobs.append(FeatureJob(data, named.location if named else home().join("features", keys.digest()), keys))
    if unused := [str(s.location) for key, s in given.items() if key not in {job.keys.data for job in jobs}]:
        raise CornerstoneError(
            f"The features at {unused[0]} are of none of this run's data sets: compute them again from the data as it is now "
            f"(`cornerstone features`), or leave out --features {unused[0]}."
        )
    missing = {job.out: job for job in jobs if not job.out.join(MANIFEST).exists()}
    if missing and not compute:
        return prepared
    if missing:
        images = sum(len(job.data) for job in missing.values())
        with timed(
            say,
            f"features: {images:,} images of {len(missing)} data sets through the locked tower, once for all trials",
        ):
            write_features(list(missing.values()), recipe.method.image, transform, width=prepared.image_width)
    stores = [check_store(job.out, job.keys).location.uri for job in jobs]
    count = len(prepared.data.sets)
    sets = tuple(
        replace(judged, source=replace(judged.source, features=store))
        for judged, store in zip(prepared.sets, stores[count:], strict=True)
    )
    return replace(prepared, features=tuple(stores[:count]), sets=sets)


def _open_store(folder: str) -> DataSet:
    return DataSet.open(folder, "features")


def describe_tower(config: ImageTower) -> tuple[int, str]:
    """Length of the tower's feature, and a digest of its weights ("" where it starts at random and is trained)."""
    from cornerstone.models.image_tower import build_image_tower, state_hash

    tower = build_image_tower(config)
    return tower.width, state_hash(tower) if config.pretrained or config.locked else ""


def _tower_content(recipe: Recipe, tower_hash: str) -> dict[str, str]:
    content = {"image": tower_hash} if tower_hash else {}
    text = recipe.method.text.name
    if text and Location.of(text).exists():
        files = sorted(f for f in Location.of(text).list() if f.endswith(".safetensors"))
        content["text"] = _sha(*(Location.of(text).join(f).read_bytes() for f in files))
    return content


def _sha(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()[:16]


def _with_scenes(recipe: Recipe, say: Say) -> Recipe:
    """The embedded data set, its evaluation sets and its tower where the recipe names none of its own."""
    if recipe.data.train:
        recipe = recipe.with_data(train=absolute(recipe.data.train))
        sets = tuple(_absolute_set(s) for s in recipe.evaluation.sets)
        if not recipe.method.image.name:
            raise CornerstoneError(
                f"The preset {recipe.name!r} takes its image tower from the embedded scenes; with your own --train name one: "
                f"--image-tower vit_small_patch16_224.augreg_in21k, or a folder in timm's layout; or use --preset photos."
            )
        return recipe.with_evaluation(sets=sets)
    if recipe.method.image.name and recipe.data.tokenizer:  # nothing of it is made for the scenes
        raise CornerstoneError(
            f"The preset {recipe.name!r} trains on your own data: name them with --train DIR and --eval DIR (`cornerstone data "
            f"import` makes such folders). The presets smoke, scenes and scenes-long bring their own."
        )
    embedded = prepare_scenes(recipe.data.scenes, recipe.method.image.size, say)
    recipe = recipe.with_data(train=embedded.train)
    if not recipe.method.image.name:
        recipe = recipe.with_image(name=embedded.tower)
    sets = tuple(_absolute_set(s) for s in recipe.evaluation.sets) or embedded.sets
    return recipe.with_evaluation(sets=sets)


def _absolute_set(argument: str) -> str:
    name, folder = split_name(argument)
    return f"{name}={folder}" if name else folder


def _tokenizer(recipe: Recipe, data: Mixture) -> str:
    if recipe.data.tokenizer:
        return load_tokenizer(recipe.data.tokenizer)
    beside = data.location.join(TOKENIZER)
    if beside.exists():
        return beside.read_text()
    if recipe.method.text.name:
        return load_tokenizer(recipe.method.text.name)
    raise CornerstoneError(
        f"No tokenizer: {data.location} keeps none beside its shards. Name one: --tokenizer bert-base-uncased, or a folder."
    )


def _check_captioners(recipe: Recipe, data: Mixture) -> None:
    if not recipe.data.captioners:
        return
    tables = [Reader(one, ["captions"]).group(0) for one in data.sets]
    captions = (c for table in tables for row in table["captions"].to_pylist() for c in row or [])
    sources = {caption["source"] for caption in captions if caption["role"] == "long"}
    unknown = [name for name in recipe.data.captioners if name not in sources]
    if unknown:
        raise CornerstoneError(
            f"No long caption by {unknown[0]!r} in {data.location}: its captioners are {', '.join(sorted(sources)) or 'none'} "
            f"(--recipe.data.captioners)."
        )


def _check_best(recipe: Recipe, sets: tuple[EvaluationSet, ...]) -> None:
    best, valid = recipe.evaluation.best, metric_names(sets)
    if best and best not in valid:
        raise CornerstoneError(
            f"The best checkpoint is to be chosen by {best!r}, which no evaluation set gives"
            f"{did_you_mean(best, valid) if valid else ': there is none.'} "
            f"Set --recipe.evaluation.best to one that is measured, or '' for the last."
        )


class Preparer:
    """Prepares the recipes of a sweep. What a recipe shares with the first one is not prepared again."""

    def __init__(self, say: Say = print) -> None:
        self._say = say
        self._first: Prepared | None = None

    def prepare(self, recipe: Recipe) -> Prepared:
        """Everything that the recipe's workers need."""
        if self._first is None:
            self._first = prepare(recipe, self._say)
        return again(self._first, recipe, self._say)
