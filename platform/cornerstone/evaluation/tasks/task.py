"""What an evaluation task is: its metrics, the sets it makes of a folder, what a worker collects of its batches, how it judges.

Shape legend: N images, T texts, D feature width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Protocol, TypeVar

import torch

from cornerstone.data.batch import Batch
from cornerstone.data.manifest import Kind
from cornerstone.data.pairs.image_input import ImageInput
from cornerstone.data.pairs.views import View
from cornerstone.data.shards import DataSet
from cornerstone.data.source import Source
from cornerstone.data.texts import TextFormat, TextInput
from cornerstone.evaluation.ranking import Measured


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
    scenes: bool = False
    """Whether its rows are built-in scenes, which say where objects are."""
    cleaned: bool = False
    """Whether its long texts are cleaned for retrieval (`texts.CLEANED_FORMATS`)."""


@dataclass(frozen=True)
class EvaluationInputs:
    """How a model reads the rows of evaluation sets."""

    images: ImageInput
    texts: TextInput | None
    """None: it encodes no single texts."""
    tokenizer: str
    """The text of a `tokenizer.json`."""
    stores: dict[str, str] = field(default_factory=dict)
    """Folders of stored features by the set's folder."""


Limited = TypeVar("Limited", TextInput, TextFormat)


def limited_name(name: str, token_limit: int) -> str:
    """The name of a set that is read at a token limit of its own."""
    return f"{name}@{token_limit}"


class Judge(Protocol):
    """What judges with the weights of now."""

    @property
    def model(self) -> Any:
        """The method's module, in evaluation mode."""
        ...

    @property
    def texts(self) -> TextFormat | None:
        """Its text format, for class prompts."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...


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
    worth: float = 0.0
    """Of built-in documents: nats that their images are worth to a reader of the text; 0 if it is not known."""
    max_tokens: int = 0
    """Most tokens of a text that are read of this set and its prompts; 0: as many as in training."""

    def at_limit(self, token_limit: int, reserved: int) -> EvaluationSet:
        """The set at another token limit, of which the tower fills `reserved` places itself: `NAME@LIMIT`."""
        return replace(self, name=limited_name(self.name, token_limit), max_tokens=token_limit - reserved)

    def limited(self, texts: Limited) -> Limited:
        """A format, or what a source knows of its texts, with the set's own limit if it has one."""
        return texts.with_limit(self.max_tokens) if self.max_tokens else texts

    split: str = ""
    """Which rows of its origin it holds (`Manifest.split`)."""
    lost: int = 0
    """Rows that its import left out."""

    def described(self) -> dict[str, Any]:
        """What was measured, as JSON values: the content's hash, the split, the pool, the prompts and the texts."""
        return {
            "data": self.content_hash,
            "split": self.split,
            "rows": self.rows,
            "pool": self.pool,
            "prompts": list(self.task.prompts(self)),
            "texts": [asdict(wanted) for wanted in self.view],
        }

    def source(self, inputs: EvaluationInputs) -> Source[Batch]:
        """Its rows as a model reads them."""
        return self.task.source(self, inputs)


class Collected(ABC):
    """What a worker has seen of one set. It is pickled and gathered from all workers."""

    left_out: int = 0
    """Rows that could not be used."""

    @abstractmethod
    def add(self, batch: Batch, judge: Judge) -> None:
        """Take some rows of the set."""


class Task(ABC):
    """A way to judge a model on a set. Instances are equal by class and fields, and are pickled with the sets."""

    name: str
    metrics: tuple[Metric, ...]
    """Every metric that `conclude` may give; the first one is the primary metric."""
    reads: ClassVar[Kind]
    """What the folder of a set must hold."""

    @property
    def shown(self) -> tuple[Metric, ...]:
        """The metrics that tables show."""
        return tuple(metric for metric in self.metrics if metric.shown)

    def applies(self, contents: Contents) -> bool:
        """Whether a folder of the kind that it reads is judged by this task if its manifest names no tasks."""
        return False

    def on_request(self, contents: Contents) -> bool:
        """Whether a folder that is for other tasks can be judged by it too, if a command names it."""
        return self.applies(contents)

    @abstractmethod
    def refusal(self, method: type) -> str:
        """Why it cannot judge models of this class; "" if it can."""

    @abstractmethod
    def views(self, contents: Contents) -> dict[str, View]:
        """The sets that the task makes of a folder: for each the suffix of its name and the texts that it reads."""

    def worth(self, data: DataSet) -> float:
        """`EvaluationSet.worth` of a folder."""
        return 0.0

    @abstractmethod
    def source(self, judged: EvaluationSet, inputs: EvaluationInputs) -> Source[Batch]:
        """The set's rows as a model reads them."""

    @abstractmethod
    def collected(self) -> Collected:
        """What a worker collects, still empty."""

    @abstractmethod
    def conclude(self, judged: EvaluationSet, parts: Sequence[Any], judge: Judge) -> Measured:
        """All of `metrics` for which the set has queries, and each query's result, from what the workers collected."""

    def prompts(self, judged: EvaluationSet) -> tuple[str, ...]:
        """The prompts that it puts the set's class names in; none if it reads no class names."""
        return ()

    def notes(self, judged: EvaluationSet) -> tuple[str, ...]:
        """What a reader of a table has to know about this set's numbers."""
        return ()

    def __str__(self) -> str:
        return self.name
