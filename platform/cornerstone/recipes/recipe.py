"""The recipe: all that decides which numbers an experiment gives, as frozen dataclasses.

Where it runs is not in it (see `placement.py`). Two runs with the same hash are the same experiment, whatever seed, machine,
number of workers or folder they used.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from cornerstone.errors import CornerstoneError, did_you_mean
from cornerstone.hashing import NOT_HASHED, as_json, digest, hashed_fields
from cornerstone.recipes.data import DataConfig
from cornerstone.recipes.method import MethodConfig
from cornerstone.recipes.pairs import PairData

SHORTEST_WARMUP = 10
"""Steps: with one or two, the full learning rate comes before AdamW's moments mean anything, and the loss jumps."""


@dataclass(frozen=True)
class Optimization:
    """Steps, the global batch, and AdamW with warmup and a cosine to zero.

    Weight decay leaves out 1-D parameters and the temperature. The papers give no learning rate for LoTLIP; the defaults
    are what open_clip's users know.
    """

    steps: int = 10_000
    batch_size: int = 2_560
    """Pairs of one optimizer step, over all workers."""
    learning_rate: float = 5e-4
    warmup_steps: int = 500
    weight_decay: float = 0.2
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    clip_norm: float = 1.0
    """Largest norm of the whole gradient; 0 does not clip."""
    skipped_step_limit: int = field(default=20, metadata=NOT_HASHED)
    """Steps whose gradient is not finite change nothing; above this number the run stops."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise CornerstoneError(f"{self.steps} steps: expected 1 or more (--steps).")
        if not 0 <= self.warmup_steps <= self.steps:
            raise CornerstoneError(
                f"{self.warmup_steps} warmup steps do not fit in {self.steps} steps (--recipe.optimization.warmup-steps)."
            )
        if self.learning_rate <= 0:
            raise CornerstoneError(
                f"Learning rate {self.learning_rate}: expected above 0 (--recipe.optimization.learning-rate)."
            )
        if self.batch_size < 2:
            raise CornerstoneError(
                f"A contrastive batch of {self.batch_size} has no negatives: expected 2 or more "
                f"(--recipe.optimization.batch-size)."
            )


@dataclass(frozen=True)
class Evaluation:
    """What is measured, and when. It has a hash of its own: more sets change no number of the training."""

    sets: tuple[str, ...] = ()
    """`[NAME=]DIR`; empty for the built-in scenes' own sets."""
    built_in: tuple[str, ...] = ()
    """Names of the built-in scenes' sets to evaluate on, if `sets` is empty; empty for all but sentence-swap."""
    token_limits: tuple[int, ...] = ()
    """Evaluate each set of pairs at these token limits as well, under the name NAME@LIMIT. The model is trained at its own.
    Each limit is one more pass over the sets in every evaluation. The set that chooses by `best` is left out."""
    every: int = 0
    """Steps between evaluations; 0 evaluates at the end alone."""
    best: str = ""
    """The metric (of a validation set) that chooses the best checkpoint, `eval/validation/i2t_r1`; empty: the last is best."""
    skip_unsuited: bool = False
    """Leave out the sets by which the method cannot be judged, instead of stopping: for a comparison whose methods are trained
    on different kinds of data."""


@dataclass(frozen=True)
class Recipe:
    """One training run: method, data, optimization, evaluation, precision and seed."""

    name: str = field(metadata=NOT_HASHED)
    method: MethodConfig
    data: DataConfig = field(default_factory=PairData)
    optimization: Optimization = field(default_factory=Optimization)
    evaluation: Evaluation = field(default_factory=Evaluation, metadata=NOT_HASHED)
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_reduction: Literal["fp32", "bf16"] = "fp32"
    """The type in which gradients are summed over the workers. bf16 halves the traffic; its rounding grows with the workers."""
    seed: int = field(default=0, metadata=NOT_HASHED)
    verdicts: str = field(default="", metadata=NOT_HASHED)
    """The preset to use for conclusions, if this one is too short for them."""

    def __post_init__(self) -> None:
        self.method.check(self.data)

    def with_method(self, **changes: Any) -> Recipe:
        """The same recipe with other fields of its method."""
        return replace(self, method=_changed(self.method, changes, "method"))

    def with_image(self, **changes: Any) -> Recipe:
        """The same recipe with another image tower."""
        return self._with_part_of_method("image", changes)

    def with_text(self, **changes: Any) -> Recipe:
        """The same recipe with another text tower: corner tokens, mask, token limit, ..."""
        return self._with_part_of_method("text", changes)

    def with_loss(self, **changes: Any) -> Recipe:
        """The same recipe with another loss: weights, reduction, balance, ..."""
        return self._with_part_of_method("loss", changes)

    def with_data(self, **changes: Any) -> Recipe:
        """The same recipe with other data or draws."""
        return replace(self, data=_changed(self.data, changes, "data"))

    def with_optimization(self, **changes: Any) -> Recipe:
        """The same recipe with other steps, batch, learning rate, ..."""
        return replace(self, optimization=_changed(self.optimization, changes, "optimization"))

    def with_steps(self, steps: int) -> Recipe:
        """The same recipe with more or fewer steps, its warmup in proportion, but at least 10 steps (or half of all)."""
        old = self.optimization
        shortest = min(old.warmup_steps, SHORTEST_WARMUP, steps // 2)
        return self.with_optimization(steps=steps, warmup_steps=max(old.warmup_steps * steps // old.steps, shortest))

    def with_evaluation(self, **changes: Any) -> Recipe:
        """The same recipe, evaluated otherwise."""
        return replace(self, evaluation=_changed(self.evaluation, changes, "evaluation"))

    def with_seed(self, seed: int) -> Recipe:
        """The same recipe with another seed of initialisation, order and draws."""
        return replace(self, seed=seed)

    def _with_part_of_method(self, part: str, changes: dict[str, Any]) -> Recipe:
        value = getattr(self.method, part, None)
        if value is None:
            raise CornerstoneError(
                f"The method {self.method.kind!r} has no {part!r} to change{did_you_mean(part, vars(self.method))}"
            )
        return self.with_method(**{part: _changed(value, changes, f"method.{part}")})

    def as_dict(self) -> dict[str, Any]:
        """Every field, nested, as JSON values; methods and data with their kind."""
        plain: dict[str, Any] = as_json(self)
        return plain

    def hash(self, content: dict[str, str]) -> str:
        """12 hexadecimal digits that identify the experiment.

        `content` holds the digests of what paths stand for: data, tokenizer, the method's towers by their field's name
        (`image`, `text`), and other weights that it begins with (`MethodConfig.weights`). Seed, paths and evaluation sets are
        not in it, nor is a field at its declared default (`hashing.hashed_fields`).
        """
        plain = hashed_fields(self)
        for name in self.data.without_effect():
            plain.get("data", {}).pop(name, None)
        for tower in plain["method"].keys() & content.keys():  # a tower is its weights, not the path it was loaded by
            plain["method"][tower].pop("name", None)
        return digest({"recipe": _without_empty(plain), "content": content})


def _changed(value: Any, changes: dict[str, Any], where: str) -> Any:
    """`dataclasses.replace`; CornerstoneError names the field that is not there."""
    for name in changes:
        if name not in value.__dataclass_fields__:
            raise CornerstoneError(
                f"recipe.{where} has no field {name!r}{did_you_mean(name, value.__dataclass_fields__)}"
            )
    return replace(value, **changes)


def _without_empty(plain: dict[str, Any]) -> dict[str, Any]:
    cleaned = {name: _without_empty(value) if isinstance(value, dict) else value for name, value in plain.items()}
    return {name: value for name, value in cleaned.items() if value != {}}
