"""`cornerstone train` and `evaluate`: one recipe, one model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from cornerstone.commands.terminal import console, say, show_metrics
from cornerstone.recipes.options import RunOptions


@dataclass(frozen=True)
class TrainCommand(RunOptions):
    """Train one recipe on Ray Train workers."""

    resume: Annotated[str, tyro.conf.arg(metavar="RUN")] = ""
    """The id of an interrupted run (it was printed at its start): go on from its last checkpoint."""
    json: str = ""
    """Write the result's numbers to this file."""

    def run(self) -> None:
        """Train, or say what training would do."""
        if self.dry_run:
            from cornerstone.training.dry_run import dry_run

            for line in dry_run(*self.resolved(), trials=1, experiment="train"):
                say(line)
            return
        from cornerstone.training.run import train_one

        outcome = train_one(self, self.resume, console)
        show_metrics(outcome.metrics, self.json)
        say(f"model: {outcome.model}")


def _task_names() -> Any:
    """The choices of `--task`, made when the parser of `evaluate` is: the tasks import torch."""
    from cornerstone.evaluation.tasks import TASKS

    return tyro.extras.literal_type_from_choices(tuple(TASKS))


@dataclass(frozen=True)
class EvaluateCommand:
    """Judge a saved model zero-shot."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """The folder `model` that a run left, or the run's folder."""
    data: tuple[str, ...]
    """Evaluation sets, `[NAME=]DIR`."""
    task: Annotated[str, tyro.conf.arg(constructor_factory=_task_names)] = "retrieval"
    """What the sets are judged by."""
    json: str = ""
    """Write the numbers to this file."""

    def run(self) -> None:
        """Encode, judge, print."""
        from rich.progress import track

        from cornerstone.evaluation.judged import metrics_of
        from cornerstone.evaluation.offline import evaluate_model
        from cornerstone.evaluation.sets import only_task, open_sets
        from cornerstone.inference.saved_model import load

        sets = only_task(open_sets(self.data), self.task)
        model = load(self.model)

        def show(steps: Iterable[int], name: str) -> Iterable[int]:
            return track(steps, f"evaluating {name}", console=console, disable=not console.is_terminal)

        results = evaluate_model(model, sets, show)
        show_metrics(metrics_of(results), self.json)
