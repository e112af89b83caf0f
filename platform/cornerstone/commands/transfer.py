"""`cornerstone transfer`: what a trained image tower is worth for another task."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from cornerstone.commands.terminal import console, say


@dataclass(frozen=True)
class TransferCommand:
    """Train a head on a trained image tower, frozen or trained too, and measure it beside a random tower."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A run's folder or its `model` (any method's; its image tower is taken), a folder in timm's layout, timm:NAME for timm's
    pretrained weights, or random:NAME for timm's architecture with random weights."""
    train: str
    """Folder of the task's training split: labelled images, or pairs for the other tasks."""
    eval: Annotated[str, tyro.conf.arg(metavar="[NAME=]DIR")]
    """Folder of its test split; nothing is chosen on it."""
    task: Literal["classification", "retrieval", "caption"] = "classification"
    """What the tower is transferred to. classification: attention pooling and a linear layer, k-NN, linear probe. retrieval:
    attention pooling and a new text tower, trained contrastively. caption: an MLP and a new causal language model."""
    full: bool = False
    """Train the tower too; otherwise it stays frozen, and its patches are computed once for all seeds."""
    seeds: int = 3
    """Heads, each with its own initialisation and order of the data."""
    ceiling: str = ""
    """`scratch`: also train the same architecture from random weights on the training split; or another tower, named as MODEL
    is."""
    steps: int = 0
    """Steps of a head; 0: the paper's number of epochs (classification: 90, retrieval: 5, caption: 1)."""
    batch_size: int = 0
    """Rows of a step; 0: the paper's, or an eighth of a small set."""
    learning_rates: tuple[float, ...] = ()
    """Peak learning rates, of which the one that is best on held-out training rows is taken, for every tower; by default the
    paper's and larger or smaller ones (classification: 1e-4 3e-4 1e-3, retrieval: 1e-3 3e-4, caption: 1e-4 3e-4 1e-3)."""
    tower_lr_factor: float = 0.0
    """With --full, the factor on the learning rate of the pretrained tower; 0: the paper's (retrieval: 0.01,
    otherwise 1)."""
    weight_decay: float = 1e-4
    held_share: float = 0.2
    """Share of the training rows that is held out while the learning rate is chosen."""
    crop_scale: tuple[float, float] = (1.0, 1.0)
    """Share of the area that random crops keep in training; `1 1` for the fixed crop, which frozen patches need."""
    image_size: int = 0
    """Side of the images in pixels, for timm:NAME and random:NAME; 0: as it was trained."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of training."""
    micro_batch: int = 0
    """Most rows of a forward pass; 0: the whole batch."""
    memory_gb: float = 8.0
    """Most memory that a frozen tower's patches may take; above it each step decodes and encodes its images."""
    tokenizer: str = ""
    """Of pairs: the tokenizer by name or folder; by default the one kept beside the training shards."""
    captions: Literal["raw", "long"] = "raw"
    """Retrieval: which captions are trained on and judged."""
    text_width: int = 256
    """Of pairs: width of the new text tower or language model."""
    text_layers: int = 4
    """Of pairs: its layers."""
    token_limit: int = 77
    """Of pairs: most tokens of a text."""
    device: str = "auto"
    """Where it computes: auto (a GPU if there is one), cpu, cuda, cuda:1."""
    json: str = ""
    """Write the metrics to this file; under `details` the intervals and each seed's value."""

    def run(self) -> None:
        """Measure, and print the table."""
        from rich.progress import track

        from cornerstone.data.storage import Location
        from cornerstone.runtime.device import device_named
        from cornerstone.transfer.captioning import caption_by_transfer
        from cornerstone.transfer.classification import classify
        from cornerstone.transfer.options import Options
        from cornerstone.transfer.printed import printed_beside
        from cornerstone.transfer.result import table_of
        from cornerstone.transfer.retrieval import retrieve_by_transfer

        def show(steps: Iterable[int], what: str) -> Iterable[int]:
            return track(steps, what, console=console, disable=not console.is_terminal, transient=True)

        names = (
            *("train", "full", "seeds", "ceiling", "steps", "batch_size", "learning_rates", "tower_lr_factor"),
            *("tokenizer", "captions", "text_width", "text_layers", "token_limit"),
            *("weight_decay", "held_share", "crop_scale", "image_size", "precision", "micro_batch", "memory_gb"),
        )
        given = {name: getattr(self, name) for name in names}
        options = Options(test=self.eval, device=device_named(self.device), say=say, track=show, **given)
        tasks = {"classification": classify, "retrieval": retrieve_by_transfer, "caption": caption_by_transfer}
        result = tasks[self.task](self.model, options)
        console.print(table_of(result))
        for note in (*result.notes, *printed_beside(result)):
            say(f"• {note}")
        say(f"{result.seconds:.0f} s in all")
        if self.json:
            Location.of(self.json).write_text(json.dumps(result.as_json(), indent=1) + "\n")
