"""The recipe: all that decides which numbers an experiment should give, as frozen dataclasses.

Where it runs is not in it (see `placement.py`). Two runs with the same hash are the same experiment, whatever machine,
number of workers or folder they used.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, ClassVar, Literal, Protocol

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.towers import ImageTower, TextTower

NOT_HASHED: dict[str, Any] = {"hashed": False}  # paths, seeds and names: what they stand for enters by its content


class MethodConfig(Protocol):
    """What a method's own dataclass has: the class that implements it (`module:Class`), its towers and its loss."""

    implementation: ClassVar[str]
    image: ImageTower
    text: TextTower
    loss: Any


@dataclass(frozen=True)
class Scenes:
    """Sizes of the embedded data set, made on first use where no --train is given."""

    pairs: int = 16_000
    evaluation_images: int = 1_000
    """Images in each evaluation set."""
    seed: int = 0
    """The world's seed; the recipe's seed draws from it, and never changes it."""
    tower_images: int = 12_000
    """Images of the image tower's own pretraining."""


@dataclass(frozen=True)
class Data:
    """Which rows are trained on, and what is drawn from each."""

    train: str = field(default="", metadata=NOT_HASHED)
    """A folder or URI of shards; empty for the embedded scenes."""
    tokenizer: str = field(default="", metadata=NOT_HASHED)
    """A Hugging Face tokenizer by name or folder; empty for the one kept beside the shards."""
    limit_rows: int | None = None
    """Train on the first rows alone (rows lie in random order)."""
    captioners: tuple[str, ...] = ()
    """Sources of long captions to draw from, uniformly for each sample and epoch; empty for all."""
    sub_captions: int = 3
    """Consecutive sentences drawn from a long caption; 0 trains on raw texts alone."""
    crop_scale: tuple[float, float] = (0.9, 1.0)
    """Share of the area that the random crop keeps; `1 1` for the fixed centre crop."""
    features: Literal["online", "stored"] = "online"
    """`stored` computes a locked tower's features once for all trials: there is no random crop then."""
    feature_stores: tuple[str, ...] = field(default=(), metadata=NOT_HASHED)
    """Folders made by `cornerstone features`, used for the data sets they fit; what is missing is computed."""
    feature_dtype: Literal["float16", "float32"] = "float16"
    bad_row_limit: float = field(default=0.01, metadata=NOT_HASHED)
    """The run stops when more than this share of the rows seen could not be used."""
    scenes: Scenes = field(default_factory=Scenes, metadata=NOT_HASHED)

    def __post_init__(self) -> None:
        if self.sub_captions < 0:
            raise CornerstoneError(
                f"{self.sub_captions} sub-captions: expected 0 or more (--recipe.data.sub-captions)."
            )
        if self.limit_rows is not None and self.limit_rows < 1:
            raise CornerstoneError(f"A limit of {self.limit_rows} rows leaves nothing to train on (--limit-rows).")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise CornerstoneError(
                f"Crop scale {self.crop_scale}: expected 0 < low <= high <= 1 (--recipe.data.crop-scale)."
            )
        if self.features == "stored" and self.crop_scale != (1.0, 1.0):
            raise CornerstoneError(
                f"Stored features see one fixed crop, but the crop scale is {low} to {high}: "
                f"set --recipe.data.crop-scale 1 1, or --recipe.data.features online."
            )


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
    """`[NAME=]DIR`; empty for the embedded scenes' own sets."""
    every: int = 0
    """Steps between evaluations; 0 evaluates at the end alone."""
    best: str = ""
    """The metric (of a validation set) that chooses the best checkpoint, `eval/validation/i2t_r1`; empty: the last is best."""


@dataclass(frozen=True)
class Recipe:
    """One training run: method, data, optimization, evaluation, precision and seed."""

    name: str = field(metadata=NOT_HASHED)
    method: Any
    data: Data = field(default_factory=Data)
    optimization: Optimization = field(default_factory=Optimization)
    evaluation: Evaluation = field(default_factory=Evaluation, metadata=NOT_HASHED)
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = field(default=0, metadata=NOT_HASHED)
    verdicts: str = field(default="", metadata=NOT_HASHED)
    """The preset to use for verdicts, where this one is too short for any and only shows the path."""

    def __post_init__(self) -> None:
        if self.data.features == "stored" and not self.method.image.locked:
            raise CornerstoneError(
                "Stored features need a locked image tower, but the tower is trained: set --recipe.data.features online, "
                "or leave the tower locked (no --recipe.method.image.no-locked)."
            )
        if self.data.sub_captions == 0 and getattr(self.method.loss, "long_weight", 0) > 0:
            raise CornerstoneError(
                "0 sub-captions leave no long text to learn from: set --recipe.method.loss.long-weight 0 as well "
                "(in Python: recipe.with_sub_captions(0) does both)."
            )

    def with_method(self, **changes: Any) -> Recipe:
        """The same recipe with other fields of its method."""
        return replace(self, method=replace(self.method, **changes))

    def with_image(self, **changes: Any) -> Recipe:
        """The same recipe with another image tower."""
        return self.with_method(image=replace(self.method.image, **changes))

    def with_text(self, **changes: Any) -> Recipe:
        """The same recipe with another text tower: corner tokens, mask, token limit, ..."""
        return self.with_method(text=replace(self.method.text, **changes))

    def with_loss(self, **changes: Any) -> Recipe:
        """The same recipe with another loss: weights, reduction, balance, ..."""
        return self.with_method(loss=replace(self.method.loss, **changes))

    def with_data(self, **changes: Any) -> Recipe:
        """The same recipe with other data or draws."""
        return replace(self, data=replace(self.data, **changes))

    def with_sub_captions(self, k: int) -> Recipe:
        """The same recipe with k sentences of a long caption; 0 leaves the raw texts alone."""
        recipe = self if k else self.with_loss(long_weight=0.0)
        return recipe.with_data(sub_captions=k)

    def with_optimization(self, **changes: Any) -> Recipe:
        """The same recipe with other steps, batch, learning rate, ..."""
        return replace(self, optimization=replace(self.optimization, **changes))

    def with_steps(self, steps: int) -> Recipe:
        """The same recipe with more or fewer steps, its warmup in proportion."""
        old = self.optimization
        return self.with_optimization(steps=steps, warmup_steps=old.warmup_steps * steps // old.steps)

    def with_evaluation(self, **changes: Any) -> Recipe:
        """The same recipe, evaluated otherwise."""
        return replace(self, evaluation=replace(self.evaluation, **changes))

    def with_seed(self, seed: int) -> Recipe:
        """The same recipe with another seed of initialisation, order and draws."""
        return replace(self, seed=seed)

    def as_dict(self) -> dict[str, Any]:
        """Every field, nested, as JSON knows them; the method's implementation is named in it."""
        return _plain(self, hashed_only=False)

    def hash(self, content: dict[str, str]) -> str:
        """12 hexadecimal digits that identify the experiment.

        `content` holds the digests of what paths stand for: data, tokenizer, image and text tower. Seed, paths and
        evaluation sets are not in it.
        """
        plain = _plain(self, hashed_only=True)
        if self.data.features == "online":
            del plain["data"]["feature_dtype"]  # nothing is stored: it has no effect
        for tower in ("image", "text"):  # a tower is its weights, not the path or name it was loaded by
            if tower in content:
                plain["method"][tower].pop("name", None)
        return digest({"recipe": plain, "content": content})


def digest(value: Any) -> str:
    """12 hexadecimal digits over canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _plain(value: Any, hashed_only: bool) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        kept = [f for f in fields(value) if not hashed_only or f.metadata.get("hashed", True)]
        plain = {f.name: _plain(getattr(value, f.name), hashed_only) for f in kept}
        implementation = getattr(value, "implementation", None)
        return {"implementation": implementation, **plain} if implementation else plain
    if isinstance(value, tuple | list):
        return [_plain(item, hashed_only) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 1 and 1.0 are the same experiment
    return value
