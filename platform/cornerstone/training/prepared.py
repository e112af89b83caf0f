"""A recipe whose every name has become something that can be opened from any worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cornerstone.data.documents.config import SpecialIds
from cornerstone.data.layout import StreamSpec
from cornerstone.data.mixture import Mixture
from cornerstone.data.plan import Plan
from cornerstone.data.source import Source
from cornerstone.data.texts import TextInput
from cornerstone.evaluation.sets import EvaluationSet, eval_hash
from cornerstone.recipes.recipe import Recipe

if TYPE_CHECKING:
    from cornerstone.data.batch import Batch


@dataclass(frozen=True)
class Prepared:
    """All that the workers of a run need, and what identifies its numbers."""

    recipe: Recipe
    """With absolute paths, and the built-in data's if it names none."""
    data: Mixture
    train: Source[Batch]
    tokenizer: str
    """The text of a `tokenizer.json`; "" if no text is read."""
    vocab_size: int
    sets: tuple[EvaluationSet, ...]
    evaluations: tuple[Source[Batch], ...]
    """The source of each set."""
    content: dict[str, str]
    """Digests of what paths stand for; see `Recipe.hash`."""
    image_width: int = 0
    """Length of the image tower's feature; 0 for a method without one."""
    stored_features: bool = False
    """Whether stored features stand for the image tower."""
    special_ids: SpecialIds | None = None
    overlaps: tuple[str, ...] = ()
    """Warnings about images that are in both training and evaluation (`evaluation.overlap`)."""

    @property
    def recipe_hash(self) -> str:
        """Identifies the experiment: all that changes the expected numbers, no seed, no path."""
        return self.recipe.hash(self.content)

    @property
    def eval_hash(self) -> str:
        """Identifies what is measured."""
        return eval_hash(self.sets)

    @property
    def rows(self) -> int:
        """Rows of an epoch: of a mixture, each data set's as often as its weight says."""
        return self.plan.rows

    @property
    def plan(self) -> Plan:
        """Which rows make which global batch. CornerstoneError if a batch is larger than an epoch."""
        recipe = self.recipe
        return Plan(self.train.parts, recipe.optimization.batch_size, recipe.seed, recipe.data.limit_rows)

    def stream(self) -> StreamSpec:
        """What the decode actors need."""
        recipe = self.recipe
        return StreamSpec(
            self.train, self.plan, recipe.optimization.steps, self.evaluations, every=recipe.evaluation.every
        )

    @property
    def evaluation_texts(self) -> TextInput | None:
        """How evaluation texts and class prompts become token ids; None for a method that reads none."""
        return TextInput.of_method(self.recipe.method, self.tokenizer)

    def passes(self) -> str:
        """Epochs of the run, and what its end leaves of the last one: `3 epochs, and 17 rows of the next one's 50`."""
        steps, plan = self.recipe.optimization.steps, self.plan
        whole, begun = divmod(steps * plan.batch_size, plan.rows)
        rest = f"{begun:,} rows of the {'next one' if whole else 'first one'}'s {plan.rows:,}" if begun else ""
        return ", and ".join(filter(None, [f"{whole:,} epochs" if whole != 1 else "1 epoch", rest]))

    def described(self) -> dict[str, Any]:
        """The data set or mixture, as a record names it."""
        manifest = self.data.manifest
        return {
            "name": manifest.name,
            "digest": manifest.content_hash,
            "uri": self.data.location.uri,
            "rows": self.rows,
        }
