"""What a transfer is asked to do, whatever the task."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.recipe import Optimization
from cornerstone.training.engine import Precision
from cornerstone.transfer.images import Track

Say = Callable[[str], None]
TOKEN_LIMIT = 77
"""Most tokens of a caption."""


def _silent(steps: Iterable[int], what: str) -> Iterable[int]:
    return steps


@dataclass(frozen=True)
class DialogueOptions:
    """What only the transfer to dialogue is asked."""

    alignment: str = ""
    """Folder of the first stage's pairs or conversations; "": those of --train that have an image."""
    alignment_steps: int = 0
    alignment_batch_size: int = 0
    alignment_learning_rate: float = 0.0
    patches: Literal["second-last", "last"] = "second-last"
    """The layer whose patches are read."""
    benchmarks: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    """Of each benchmark its file or folder of questions."""
    answers: tuple[str, ...] = ()
    """Of those benchmarks that keep their answers apart from the questions, the file of answers, in their order."""
    images: tuple[str, ...] = ()
    """Of each benchmark its folder of images."""
    longest_answer: int = 128
    """Most tokens of an answer."""
    written: str = ""
    """A file for all answers."""


@dataclass(frozen=True)
class Options:
    """Data, mode, seeds and head hyper-parameters. 0 stands for the task's usual value."""

    train: str
    test: str
    """`[NAME=]DIR`."""
    full: bool = False
    seeds: int = 3
    steps: int = 0
    batch_size: int = 0
    learning_rates: tuple[float, ...] = ()
    tower_lr_factor: float = 0.0
    weight_decay: float = 1e-4
    held_share: float = 0.2
    """Share of the training images that is held out while the learning rate is chosen."""
    crop_scale: tuple[float, float] = (1.0, 1.0)
    precision: Precision = "fp32"
    micro_batch: int = 0
    memory_gb: float = 8.0
    """Most memory of a frozen tower's patches; above it images are decoded and encoded at each step."""
    ceiling: str = ""
    """`scratch`: the same architecture trained on the task alone; or a tower's name, as MODEL; "": none."""
    image_size: int = 0
    tokenizer: str = ""
    """Retrieval, caption: by name or folder; "": the one kept beside the training shards."""
    captions: Literal["raw", "long"] = "raw"
    """Retrieval: which captions are trained on and judged."""
    text_width: int = 256
    """Retrieval, caption: width of the new text tower or language model."""
    text_layers: int = 4
    token_limit: int = 0
    """Retrieval, caption: most tokens of a text; dialogue: of a conversation with its image."""
    language_model: str = ""
    """Caption, dialogue: a pretrained causal language model by name or folder; "": random weights of the sizes above."""
    language_lr_factor: float = 1.0
    """Caption: on the learning rate of a pretrained language model."""
    dialogue: DialogueOptions = field(default_factory=DialogueOptions)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    say: Say = print
    track: Track = _silent

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise CornerstoneError(f"{self.seeds} seeds: expected 1 or more (--seeds).")
        if any(rate <= 0 for rate in self.learning_rates):
            raise CornerstoneError(f"Learning rates {self.learning_rates}: expected them above 0 (--learning-rates).")
        if not 0 < self.held_share < 1:
            raise CornerstoneError(f"A held-out share of {self.held_share}: expected between 0 and 1 (--held-share).")

    def limit(self, usual: int) -> int:
        """Most tokens of a text."""
        return self.token_limit or usual

    def rates(self, paper: Paper) -> tuple[float, ...]:
        """The learning rates to try."""
        return self.learning_rates or paper.learning_rates

    @property
    def memory(self) -> int:
        """Bytes of patches to keep; none if crops are drawn anew in each epoch."""
        return 0 if self.crop_scale != (1.0, 1.0) else int(self.memory_gb * 2**30)

    def optimization(self, rows: int, paper: Paper) -> Optimization:
        """The paper's epochs on `rows` images, with its warm-up in proportion, unless steps and batch are given."""
        if self.batch_size > rows:
            raise CornerstoneError(f"A batch of {self.batch_size} from {rows} rows: give --batch-size {rows} or less.")
        batch = self.batch_size or min(paper.batch_size, max(rows // 8, 2))
        steps = self.steps or -(-paper.steps * paper.batch_size * rows // (paper.rows * batch))
        warmup = min(paper.warmup * steps // paper.steps, steps)
        return Optimization(steps, batch, self.rates(paper)[0], warmup, self.weight_decay, betas=(0.9, 0.999), eps=1e-8)


@dataclass(frozen=True)
class Paper:
    """A task's training in LCL's appendix, which sets the number of epochs elsewhere."""

    steps: int
    batch_size: int
    warmup: int
    rows: int
    learning_rates: tuple[float, ...]
    """The paper's, and what is tried beside it."""
