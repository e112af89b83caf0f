"""What a sweep shows at its end: table, plot, files, and where everything lies."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from cornerstone.evaluation.sets import EvaluationSet
from cornerstone.sweeps.plot import plot
from cornerstone.sweeps.points import Sweep
from cornerstone.sweeps.rendering import to_csv, to_markdown, to_rich
from cornerstone.sweeps.state import SweepState, TrialResult
from cornerstone.sweeps.table import ResultTable
from cornerstone.tracking.mlflow_records import Records
from cornerstone.training.prepared import Prepared

JUDGED = {
    "retrieval": (("i2t_r1", "i→t R@1"), ("t2i_r1", "t→i R@1")),
    "classification": (("top1", "top-1"),),
    "lookalike": (
        ("long_accuracy", "long text"),
        ("short_accuracy", "short text"),
        ("first_sentence_accuracy", "first sentence"),
    ),
}


def columns_of(sets: Sequence[EvaluationSet], chosen_by: str) -> list[tuple[str, str]]:
    """The table's columns: what is judged on every set, but for the one that chooses checkpoints."""
    validation = chosen_by.split("/")[1] if chosen_by.count("/") == 2 else ""
    return [
        (f"eval/{judged.name}/{metric}", f"{judged.name} {label}")
        for judged in sets
        if judged.name != validation
        for metric, label in JUDGED[judged.task]
    ]


class Results:
    """The results of a sweep, or of those of its points that were run."""

    def __init__(
        self, experiment: str, state: SweepState, sweep: Sweep, prepared: Prepared, results: Sequence[TrialResult]
    ) -> None:
        self.experiment, self.state, self.results = experiment, state, results
        recipe = prepared.recipe
        queries = {f"eval/{s.name}/{m}": s.source.rows for s in prepared.sets for m, _ in JUDGED[s.task]}
        self.table = ResultTable(
            title=f"{experiment}: {recipe.name}, {recipe.optimization.steps:,} steps × {recipe.optimization.batch_size:,}",
            records=results,
            columns=columns_of(prepared.sets, recipe.evaluation.best),
            baseline=sweep.baseline,
            paper=sweep.paper,
            points=[point.name for point in sweep.points if point.name in {r.point for r in results}],
            queries=queries,
            notes=[*sweep.notes, *self._notes(prepared)],
        )

    def _notes(self, prepared: Prepared) -> list[str]:
        recipe, notes = prepared.recipe, []
        if recipe.verdicts:
            command = f"python experiments/{self.experiment}.py --preset {recipe.verdicts} --seeds 8"
            notes.append(
                f"This table shows the path, not the trend: {recipe.optimization.steps:,} steps are too few for a verdict on "
                f"any row. For verdicts run: {command}"
            )
        if prepared.features:
            notes.append("Stored features: every image was seen through one fixed crop, never a random one.")
        pools = sorted({s.pool for s in prepared.sets if s.task == "retrieval" and s.pool})
        if pools:
            sizes = ", ".join(f"{pool:,}" for pool in pools)
            notes.append(f"Retrieval in pools of {sizes} images: R@1 by chance is {100 / pools[-1]:g} %.")
        return notes

    def show(self, console: Console) -> None:
        """Print the table; in a log it is given the room that it needs."""
        wide = console if console.is_terminal else Console(width=max(200, console.width), soft_wrap=True)
        wide.print()
        wide.print(to_rich(self.table))

    def write(self) -> list[Path]:
        """Table as Markdown and CSV, plot as PNG; the files' local paths."""
        folder = (
            Path(self.state.folder.uri) if self.state.folder.is_local else Path.cwd() / "cornerstone" / self.state.sweep
        )
        folder.mkdir(parents=True, exist_ok=True)
        markdown, csv = folder / "table.md", folder / "table.csv"
        markdown.write_text(to_markdown(self.table))
        csv.write_text(to_csv(self.table))
        paths = [markdown, csv]
        if any(result.finished for result in self.results):
            paths.append(plot(self.table, folder / "plot.png"))
        if not self.state.folder.is_local:
            for path in paths:
                self.state.folder.join(path.name).write_bytes(path.read_bytes())
        self.paths = paths
        return paths

    def say_where(self, console: Console, records: Records) -> None:
        """Where table, plot, models and the MLflow UI are, and the command that opens them."""
        rows = [("table", str(path)) for path in self.paths if path.suffix in (".md", ".csv")]
        rows += [("plot", str(path)) for path in self.paths if path.suffix == ".png"]
        model = next((r.model for r in self.results if r.model), "")
        if model:
            rows.append(("a model", f'{model}  (python -c "import cornerstone; cornerstone.load({model!r})")'))
        if records.problem:
            rows.append(("metrics", f"in the journals under {self.state.folder.uri.rpartition('/sweeps/')[0]}/runs"))
        elif records.uri.startswith("http"):
            rows.append(("MLflow", f"{records.uri}, experiment {self.experiment}, sweep {self.state.sweep}"))
        else:
            rows.append(
                ("MLflow", f"mlflow ui --backend-store-uri {shlex.quote(records.uri)}  then open http://127.0.0.1:5000")
            )
        unsent = sum(result.unsent for result in self.results)
        if unsent:
            rows.append(("not sent", f"{unsent} lines of metrics did not reach MLflow; the journals have them"))
        console.print()
        for name, text in rows:
            console.print(f"{name:>9}: {text}", highlight=False, markup=False, soft_wrap=True)
