"""What an evaluation task is: its metrics, the texts it reads, the sets it makes of a folder, and how it judges.

Shape legend: N images, T texts, D feature width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cornerstone.data.pairs.image_input import ImageInput
from cornerstone.data.pairs.source import PairEvaluation
from cornerstone.data.pairs.views import View
from cornerstone.data.texts import TextInput
from cornerstone.evaluation.ranking import Measured

EncodeTexts = Callable[[Sequence[str]], Tensor]
"""Text features (T, D), fp32 on the CPU, by the model that is evaluated."""


@dataclass(frozen=True)
class Metric:
    """A number that a task gives. `name` is its name in MLflow and in files, `label` its name in tables."""

    name: str
    label: str
    unit: str = "%"
    shown: bool = True
    """Whether a sweep's table has a column for it."""


@dataclass(frozen=True)
class Contents:
    """What a folder of pairs offers for evaluation."""

    roles: frozenset[str]
    """The roles of its captions."""
    labelled: bool
    """Whether its rows have labels and its manifest names their classes."""


@dataclass(frozen=True)
class Encoded:
    """Features and labels of a set's usable rows, ordered by row; fp32 on the CPU."""

    image_ND: Tensor
    label_N: Tensor
    """-1: the row has no label."""
    groups: tuple[str, ...]
    """The group of each image; empty: none."""
    text_TD: Tensor
    owner_T: Tensor
    """Index of the image that each text belongs to."""
    place_T: Tensor
    """Index of each text among the texts that the view takes of its row."""
    key_T: Tensor
    """Equal for identical texts."""


@dataclass(frozen=True)
class EvaluationSet:
    """A set under one task: its rows with the texts to read, and what its manifest says about judging them."""

    name: str
    task: Task
    folder: str
    rows: int
    view: View
    content_hash: str
    pool: int | None = None
    classes: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()

    def source(self, images: ImageInput, texts: TextInput, features: str = "") -> PairEvaluation:
        """Its rows as a model reads them; `features` is the folder of its stored features, if there are any."""
        return PairEvaluation(self.folder, self.rows, images.for_evaluation(features), texts, self.view)


class Task(ABC):
    """A way to judge a model on a set. Instances hold no state, are equal by class, and are pickled with the sets."""

    name: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]
    """Every metric that `judge` gives; the first one is the primary metric."""

    @property
    def shown(self) -> tuple[Metric, ...]:
        """The metrics that tables show."""
        return tuple(metric for metric in self.metrics if metric.shown)

    def applies(self, contents: Contents) -> bool:
        """Whether a folder is judged by this task if its manifest names no tasks."""
        return False

    @abstractmethod
    def views(self, contents: Contents) -> dict[str, View]:
        """The sets that the task makes of a folder: for each the suffix of its name and the texts that it reads."""

    @abstractmethod
    def judge(self, judged: EvaluationSet, encoded: Encoded, encode_texts: EncodeTexts) -> Measured:
        """All of `metrics`, and each query's result."""

    def notes(self, judged: EvaluationSet) -> tuple[str, ...]:
        """What a reader of a table has to know about this set's numbers."""
        return ()

    def __str__(self) -> str:
        return self.name
