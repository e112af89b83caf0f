"""From a recipe to all that its workers need: names resolved, data opened, sources made, features computed once.

Prepared data are kept under the home, in folders named by a hash of their content, and reused. One `Preparer` serves all
points of a sweep: each data set, tokenizer, tower and feature store is opened, hashed or computed once.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Protocol

from cornerstone.data.documents.config import SpecialIds
from cornerstone.data.manifest import Kind
from cornerstone.data.mixture import Mixture
from cornerstone.data.plan import Plan
from cornerstone.data.source import Source
from cornerstone.data.storage import Location
from cornerstone.data.texts import FILE as TOKENIZER
from cornerstone.data.texts import plain_tokenizer, vocabulary_size
from cornerstone.errors import CornerstoneError, did_you_mean
from cornerstone.evaluation.overlap import Seen, overlap_warnings
from cornerstone.evaluation.sets import EvaluationSet, metric_names, open_sets
from cornerstone.hashing import content_digest
from cornerstone.recipes.conversations import ConversationData
from cornerstone.recipes.documents import DocumentData
from cornerstone.recipes.labelled import LabelledData
from cornerstone.recipes.pairs import PairData
from cornerstone.recipes.recipe import Recipe
from cornerstone.runtime.tokenizer import load_tokenizer
from cornerstone.training.conversation_sources import ConversationSources
from cornerstone.training.document_sources import DocumentSources
from cornerstone.training.labelled_sources import LabelledSources
from cornerstone.training.pair_sources import PairSources
from cornerstone.training.prepared import Prepared
from cornerstone.training.resolve import check_named, resolved
from cornerstone.training.shared import Say, Shared

if TYPE_CHECKING:
    from cornerstone.data.batch import Batch


class Sources(Protocol):
    """How one kind of data becomes sources; made for one recipe."""

    manifest_kinds: ClassVar[tuple[Kind, ...]]
    """What the manifest of a training folder may say that it holds."""
    reads_texts: ClassVar[bool]
    """Whether a tokenizer is needed."""

    def __init__(
        self, recipe: Recipe, data: Mixture, tokenizer: str, sets: tuple[EvaluationSet, ...], shared: Shared
    ) -> None:
        """Open, or compute, what the recipe needs of its data."""

    @property
    def train(self) -> Source[Batch]:
        """The rows that are trained on."""
        ...

    @property
    def evaluations(self) -> tuple[Source[Batch], ...]:
        """The rows of each evaluation set."""
        ...

    @property
    def stored_features(self) -> bool:
        """Whether stored features stand for the image tower."""
        ...

    @staticmethod
    def special_ids(tokenizer: str) -> SpecialIds | None:
        """Of documents: the ids that stand between the words."""
        ...


KINDS: dict[str, type[Sources]] = {
    PairData.kind: PairSources,
    DocumentData.kind: DocumentSources,
    LabelledData.kind: LabelledSources,
    ConversationData.kind: ConversationSources,
}
"""What makes the sources of each kind of data."""


class Preparer:
    """Prepares recipes in the driver, before anything is started.

    `compute_features=False` leaves stored features that are not there uncomputed (a dry run): the tower then runs online.
    """

    def __init__(self, say: Say = print, *, compute_features: bool = True) -> None:
        self.shared = Shared(say, compute_features)

    def prepare(self, recipe: Recipe) -> Prepared:
        """Resolve a recipe. CornerstoneError for whatever cannot be opened, or would fail later."""
        text = recipe.method.text_tower
        for note in text.without_effect if text is not None else ():
            self.shared.once(("said", note), partial(self.shared.say, note))
        recipe = resolved(recipe, self.shared)
        kind = KINDS[recipe.data.kind]
        data = self.shared.once(
            ("data", recipe.data.train, recipe.data.kind), lambda: Mixture.open(recipe.data.train, *kind.manifest_kinds)
        )
        _check_batch(recipe, data)
        tokenizer = self._tokenizer(recipe, data) if kind.reads_texts else ""
        named, task = recipe.evaluation.sets, recipe.method.judged_by
        sets = self.shared.once(("sets", named, task), lambda: open_sets(named, task))
        sets = _suited(recipe, sets)
        _check_best(recipe, sets)
        sets = self._at_limits(recipe, sets)
        width, tower_digest = self.shared.tower(recipe.method.image_tower) if recipe.method.image_tower else (0, "")
        sources = kind(recipe, data, tokenizer, sets, self.shared)
        overlaps = self._overlaps(recipe, data, sets)
        return Prepared(
            recipe=recipe,
            data=data,
            train=sources.train,
            tokenizer=tokenizer,
            vocab_size=self._vocab_size(tokenizer),
            sets=sets,
            evaluations=sources.evaluations,
            content=self._content(recipe, data, tokenizer, tower_digest),
            image_width=width,
            stored_features=sources.stored_features,
            special_ids=kind.special_ids(tokenizer),
            overlaps=overlaps,
        )

    def _overlaps(self, recipe: Recipe, data: Mixture, sets: tuple[EvaluationSet, ...]) -> tuple[str, ...]:
        """Warnings about images that are in both training and evaluation; each is said once."""
        limit = recipe.data.limit_rows
        pairs = tuple(one for one in data.sets if one.manifest.kind == "pairs")

        def compare() -> tuple[str, ...]:
            found = tuple(overlap_warnings(sets, Seen(pairs, limit) if pairs else None))
            for warning in found:
                self.shared.say(warning)
            return found

        folders = tuple(one.folder for one in sets)
        return self.shared.once(("overlaps", data.location.uri, limit, folders), compare)

    def open_names(self, recipe: Recipe) -> None:
        """Open whatever the recipe names, before anything is started: a wrong name costs seconds.

        Raises CornerstoneError as `prepare` does, which then finds it opened. Features are not computed, and the built-in
        scenes not made.
        """
        check_named(recipe)
        if not recipe.data.train:
            return
        wanted, self.shared.compute_features = self.shared.compute_features, False
        try:
            self.prepare(recipe)
        finally:
            self.shared.compute_features = wanted

    def _content(self, recipe: Recipe, data: Mixture, tokenizer: str, tower_digest: str) -> dict[str, str]:
        content = {"data": data.manifest.content_hash}
        if tokenizer:
            content["tokenizer"] = content_digest(tokenizer)
        if tower_digest:
            content["image"] = tower_digest
        content |= {name: self.shared.weights(named) for name, named in recipe.method.weights.items()}
        text = recipe.method.text_tower
        if (
            text is not None and text.name
        ):  # opened also if it is from the hub: a wrong name fails here and not in a worker
            found = self.shared.text_tower(text, self._vocab_size(tokenizer))
            if Location.of(text.name).exists():
                content["text"] = found
        return content

    def _at_limits(self, recipe: Recipe, sets: tuple[EvaluationSet, ...]) -> tuple[EvaluationSet, ...]:
        """The sets, and those of pairs again at each token limit of the evaluation. CornerstoneError for an impossible one."""
        if not (limits := recipe.evaluation.token_limits):
            return sets
        from cornerstone.evaluation.tasks.pair_task import PairTask
        from cornerstone.recipes.method import imported

        text = recipe.method.text_tower
        if text is None:
            raise CornerstoneError(
                f"The method {recipe.method.kind!r} has no text tower, whose token limit the evaluation could change: leave "
                f"out --recipe.evaluation.token-limits."
            )
        positions = self.shared.once(("positions", text), lambda: imported(text.implementation).most_tokens(text))
        for limit in limits:
            replace(text, token_limit=limit)  # refuses what is too short
            if positions is not None and limit > positions:
                raise CornerstoneError(
                    f"The evaluation's token limit {limit} is above the {positions} positions of the text tower: lower "
                    f"--recipe.evaluation.token-limits."
                )
        chooses = recipe.evaluation.best.removeprefix("eval/").rpartition("/")[0]
        judged = [one for one in sets if isinstance(one.task, PairTask) and one.name != chooses]
        return (*sets, *(one.at_limit(limit, text.reserved_tokens) for one in judged for limit in limits))

    def _vocab_size(self, tokenizer: str) -> int:
        if not tokenizer:
            return 0
        return self.shared.once(("vocabulary", tokenizer), lambda: vocabulary_size(plain_tokenizer(tokenizer)))

    def _tokenizer(self, recipe: Recipe, data: Mixture) -> str:
        def load() -> str:
            if recipe.data.tokenizer:
                return load_tokenizer(recipe.data.tokenizer)
            for folder in (data.location, *(one.location for one in data.sets)):
                if folder.join(TOKENIZER).exists():
                    return folder.join(TOKENIZER).read_text()
            if text is not None and text.name:
                return load_tokenizer(text.name)
            raise CornerstoneError(
                f"No tokenizer: {data.location} keeps none beside its shards. Name one: --tokenizer bert-base-uncased, or a "
                f"folder."
            )

        text = recipe.method.text_tower
        return self.shared.once(
            ("tokenizer", recipe.data.tokenizer, data.location.uri, text.name if text else ""), load
        )


def prepare(recipe: Recipe, say: Say = print) -> Prepared:
    """Prepare one recipe."""
    return Preparer(say).prepare(recipe)


def _check_batch(recipe: Recipe, data: Mixture) -> None:
    """Raise CornerstoneError if the data have fewer rows than a batch: making the plan finds out."""
    Plan(data.parts, recipe.optimization.batch_size, recipe.seed, recipe.data.limit_rows)


def _suited(recipe: Recipe, sets: tuple[EvaluationSet, ...]) -> tuple[EvaluationSet, ...]:
    """The sets whose tasks can judge the method. CornerstoneError for another one, unless the recipe skips those."""
    from cornerstone.recipes.method import implementation_of

    method = implementation_of(recipe.method)
    refusals = [(judged, judged.task.refusal(method)) for judged in sets]
    for judged, why in refusals:
        if why and not recipe.evaluation.skip_unsuited:
            raise CornerstoneError(f"The method {recipe.method.kind!r} {why}: leave out --eval {judged.folder}.")
    return tuple(judged for judged, why in refusals if not why)


def _check_best(recipe: Recipe, sets: tuple[EvaluationSet, ...]) -> None:
    best, valid = recipe.evaluation.best, metric_names(sets)
    if best and best not in valid:
        raise CornerstoneError(
            f"The best checkpoint is to be chosen by {best!r}, which no evaluation set gives"
            f"{did_you_mean(best, valid) if valid else ': there is none.'} "
            f"Set --recipe.evaluation.best to one that is measured, or '' for the last."
        )
