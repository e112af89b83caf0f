"""`cornerstone train` and `evaluate`."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from cornerstone.commands.terminal import console, say, show_metrics
from cornerstone.recipes.options import RunOptions, Shortcuts

TRAIN_HELP = """Train one recipe on Ray Train workers.

    cornerstone train --preset smoke
    cornerstone train --preset photos --train data/train --eval data/val --tokenizer bert-base-uncased --steps 2000 --lr 5e-4"""


@dataclass(frozen=True)
class TrainShortcuts(Shortcuts):
    """The options of `train` that are typed most."""

    resume: Annotated[str, tyro.conf.arg(metavar="RUN")] = ""
    """Resume an interrupted run from its last checkpoint, by the id that was printed at its start."""
    name: str = ""
    """The run's name in MLflow; by default the preset's with the first digits of the run's id."""
    json: str = ""
    """Write the metrics to this file."""


@dataclass(frozen=True)
class TrainCommand(TrainShortcuts, RunOptions):
    """Train one recipe on Ray Train workers."""

    def run(self) -> None:
        """Train, or print what training would do."""
        if self.dry_run:
            from cornerstone.training.dry_run import dry_run
            from cornerstone.training.epochs import resolved_options

            for line in dry_run(*resolved_options(self), trials=1, experiment="train"):
                say(line)
            return
        from cornerstone.training.run import train_one

        outcome = train_one(self, self.resume, console, self.name)
        show_metrics(outcome.metrics, self.json)
        say(f"model: {outcome.model}")


def _task_names() -> Any:
    """The choices of `--task`. tyro calls this only if the command is `evaluate`, since the tasks import torch."""
    from cornerstone.evaluation.tasks import TASKS

    return tyro.extras.literal_type_from_choices(tuple(TASKS))


@dataclass(frozen=True)
class EvaluateCommand:
    """Evaluate a model zero-shot: a run's, or a released one."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """The folder `model` of a run, or the run's folder; a released model: open_clip:NAME/TAG, hf:NAME, or a folder in the
    layout of either."""
    data: tuple[str, ...]
    """Evaluation sets, `[NAME=]DIR`."""
    task: Annotated[str, tyro.conf.arg(constructor_factory=_task_names)] = "retrieval"
    """The task to evaluate on the sets."""
    features: tuple[str, ...] = ()
    """Folders of stored features of the sets (`cornerstone features`), in place of their images."""
    bad_row_limit: float = 0.01
    """Most rows of a set without a usable image, as a share: what its import left out and what cannot be read. Above it the set
    is refused."""
    device: str = "auto"
    """Where the model computes: auto (a GPU if there is one), cpu, cuda, cuda:1."""
    json: str = ""
    """Write the metrics to this file; under `details` of each the number of queries, 95 % interval, chance, split, prompts and
    hash of the data."""

    def run(self) -> None:
        """Evaluate, and print the metrics."""
        from rich.progress import track

        from cornerstone.commands.terminal import show_results
        from cornerstone.evaluation.offline import evaluate_model, overlaps, stores_in_home, texts_cut
        from cornerstone.evaluation.sets import only_task, open_sets, requested_sets
        from cornerstone.inference.load import load
        from cornerstone.runtime.device import device_named

        open_sets(self.data)  # a wrong folder costs no loading of the model
        model = load(self.model, device_named(self.device))
        if self.task == model.judged_by:  # a task that no folder names
            sets = only_task(open_sets(self.data, self.task), self.task)
        else:
            sets = requested_sets(self.data, self.task)
        for warning in overlaps(model, sets):
            say(warning)
        if not self.features and (stores := stores_in_home(model, sets)):
            say(
                "This model's run was evaluated on stored features, which are rounded: from images the numbers differ a "
                f"little. For the same numbers: --features {shlex.join(stores)}"
            )

        def show(steps: Iterable[int], name: str) -> Iterable[int]:
            return track(steps, f"evaluating {name}", console=console, disable=not console.is_terminal)

        for name, (cut, total) in texts_cut(model, sets).items():
            if cut:
                most = model.text_input.max_tokens if model.text_input else 0
                say(f"{name}: {cut:,} of {total:,} texts are cut to {most} tokens ({100 * cut / total:.1f} %)")
        results = evaluate_model(model, sets, show, features=self.features, bad_row_limit=self.bad_row_limit)
        show_results(results, sets, self.json)
