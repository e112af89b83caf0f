"""`cornerstone transfer`: what a trained image tower is worth for another task."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from cornerstone.commands.terminal import console, say
from cornerstone.errors import CornerstoneError

OF_DIALOGUE = (
    *("alignment", "alignment_steps", "alignment_batch_size", "alignment_learning_rate", "patches"),
    *("questions", "answers", "images", "longest_answer"),
)
"""Options of the transfer to dialogue, by the names of its own."""


@dataclass(frozen=True)
class TransferCommand:
    """Train a head on a trained image tower, frozen or trained too, and measure it beside a random tower."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A run's folder or its `model` (any method's; its image tower is taken); a released model: open_clip:NAME/TAG, hf:NAME, or
    a folder in the layout of either; a folder in timm's layout; timm:NAME for timm's pretrained weights; random:NAME for
    timm's architecture with random weights."""
    train: str
    """Folder of the task's training split: labelled images, pairs, or for dialogue conversations."""
    eval: Annotated[str, tyro.conf.arg(metavar="[NAME=]DIR")] = ""
    """Folder of its test split; nothing is chosen on it. Dialogue: conversations, each of whose questions is asked alone."""
    task: Literal["classification", "retrieval", "caption", "dialogue"] = "classification"
    """What the tower is transferred to. classification: attention pooling and a linear layer, k-NN, linear probe. retrieval:
    attention pooling and a new text tower, trained contrastively. caption: an MLP and a causal language model. dialogue: the
    same in LLaVA-1.5's two stages, on conversations."""
    full: bool = False
    """Train the tower too; otherwise it stays frozen, and its patches are computed once for all seeds."""
    seeds: int = 3
    """Heads, each with its own initialisation and order of the data."""
    ceiling: str = ""
    """`scratch`: also train the same architecture from random weights on the training split; or another tower, named as MODEL
    is."""
    steps: int = 0
    """Steps of a head; 0: the paper's number of epochs (classification: 90, retrieval: 5, caption and dialogue: 1)."""
    batch_size: int = 0
    """Rows of a step; 0: the paper's, or an eighth of a small set."""
    learning_rates: tuple[float, ...] = ()
    """Peak learning rates, of which the one that is best on held-out training rows is taken, for every tower; by default the
    paper's and larger or smaller ones (classification: 1e-4 3e-4 1e-3, retrieval: 1e-3 3e-4, caption: 1e-4 3e-4 1e-3), for
    dialogue the paper's alone (2e-5; 1e-3 of a language model with random weights)."""
    tower_lr_factor: float = 0.0
    """With --full, the factor on the learning rate of the pretrained tower; 0: the paper's (retrieval: 0.01,
    dialogue: 0.1, otherwise 1)."""
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
    token_limit: int = 0
    """Of pairs: most tokens of a text (0: 77). Dialogue: of a conversation with its image (0: 2,048)."""
    language_model: str = ""
    """Caption, dialogue: a pretrained causal language model by its Hugging Face name or folder, with its own tokenizer; by
    default one with random weights of --text-width and --text-layers."""
    language_lr_factor: float = 1.0
    """Caption: the factor on the learning rate of a pretrained language model."""
    alignment: str = ""
    """Dialogue: folder of the first stage's pairs, or conversations; by default the first answers of --train are learnt."""
    alignment_steps: int = 0
    """Dialogue: steps of the first stage; 0: one epoch."""
    alignment_batch_size: int = 0
    """Dialogue: rows of its steps; 0: 512, or an eighth of a small set."""
    alignment_learning_rate: float = 0.0
    """Dialogue: its peak learning rate; 0: 1e-3."""
    patches: Literal["second-last", "last"] = "second-last"
    """Dialogue: the layer whose patches are read; second-last: as LLaVA-1.5."""
    benchmark: tuple[str, ...] = ()
    """Dialogue: vqav2, gqa, vizwiz, scienceqa, pope, mme, mmbench, seed, conversations; all are asked of the same models."""
    questions: tuple[str, ...] = ()
    """Dialogue: of each benchmark, in their order, its released file of questions; a folder for pope, mme, conversations."""
    answers: tuple[str, ...] = ()
    """Dialogue: of vqav2 the file of annotations."""
    images: tuple[str, ...] = ()
    """Dialogue: of each benchmark, in their order, the folder of its images; mme, mmbench and conversations have none."""
    longest_answer: int = 128
    """Dialogue: most tokens of an answer."""
    write_answers: str = ""
    """Dialogue: write what the tower's first seed answered to this JSON file."""
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
        from cornerstone.transfer.dialogue import converse
        from cornerstone.transfer.options import DialogueOptions, Options
        from cornerstone.transfer.printed import printed_beside
        from cornerstone.transfer.result import table_of
        from cornerstone.transfer.retrieval import retrieve_by_transfer

        def show(steps: Iterable[int], what: str) -> Iterable[int]:
            return track(steps, what, console=console, disable=not console.is_terminal, transient=True)

        names = (
            *("train", "full", "seeds", "ceiling", "steps", "batch_size", "learning_rates", "tower_lr_factor"),
            *(
                "tokenizer",
                "captions",
                "text_width",
                "text_layers",
                "token_limit",
                "language_model",
                "language_lr_factor",
            ),
            *("weight_decay", "held_share", "crop_scale", "image_size", "precision", "micro_batch", "memory_gb"),
        )
        if not self.eval and self.task != "dialogue":
            raise CornerstoneError(f"The task {self.task} is judged on a test split: give --eval DIR.")
        given = {name: getattr(self, name) for name in names}
        dialogue = DialogueOptions(
            benchmarks=self.benchmark,
            written=self.write_answers,
            **{name: getattr(self, name) for name in OF_DIALOGUE},
        )
        options = Options(
            test=self.eval, device=device_named(self.device), say=say, track=show, dialogue=dialogue, **given
        )
        tasks = {
            "classification": classify,
            "retrieval": retrieve_by_transfer,
            "caption": caption_by_transfer,
            "dialogue": converse,
        }
        result = tasks[self.task](self.model, options)
        console.print(table_of(result))
        for note in (*result.notes, *printed_beside(result)):
            say(f"• {note}")
        say(f"{result.seconds:.0f} s in all")
        if self.json:
            Location.of(self.json).write_text(json.dumps(result.as_json(), indent=1) + "\n")
