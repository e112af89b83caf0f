"""The output of a sweep: table, plot and files, and where everything is stored."""

from __future__ import annotations

import math
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
from rich.console import Console

from cornerstone.evaluation.averages import LABEL, LONG_TEXTS, average, averaged, long_text_retrieval
from cornerstone.evaluation.judged import metric_name
from cornerstone.evaluation.sets import EvaluationSet
from cornerstone.runtime.home import home
from cornerstone.sweeps.plot import plot
from cornerstone.sweeps.points import Sweep, Variant
from cornerstone.sweeps.rendering import to_csv, to_markdown, to_rich
from cornerstone.sweeps.state import SweepState, TrialResult
from cornerstone.sweeps.table import Aside, Column, ResultTable
from cornerstone.sweeps.variants import not_in_rows
from cornerstone.sweeps.verdict import MEASURES, verdict
from cornerstone.tracking.mlflow_pages import command_path, links_on_page, sweep_links, ui_command
from cornerstone.tracking.mlflow_records import Records, translated
from cornerstone.tracking.mlflow_view import SweepView
from cornerstone.tracking.run_store import evaluations, read_evaluation, run_folder
from cornerstone.training.mlflow_run import final
from cornerstone.training.prepared import Prepared


def columns_of(sets: Sequence[EvaluationSet], chosen_by: Sequence[str]) -> list[Column]:
    """The columns of a row: the metrics that its tasks show, on all sets except those that choose something.

    `chosen_by` are the metrics that choose a checkpoint or a candidate. Results on their sets are biased upwards.
    """
    choosing = {metric.split("/")[1] for metric in chosen_by if metric.count("/") == 2}
    return [
        Column(metric_name(judged.name, metric.name), f"{judged.name} {metric.label}", metric.unit)
        for judged in sets
        if judged.name not in choosing
        for metric in judged.task.shown
    ]


def with_average(
    columns: Sequence[Column], results: Sequence[TrialResult], sets: Sequence[EvaluationSet]
) -> tuple[list[Column], list[TrialResult]]:
    """A last column, and the numbers, of the average over the columns of long-text retrieval, if two sets or more have some."""
    shown = {column.metric for column in columns}
    names = list(dict.fromkeys(name for name in long_text_retrieval(sets) if name in shown))
    if not averaged(names):
        return list(columns), list(results)
    records = []
    for result in results:
        if (found := average(names, result.metrics, result.intervals)) is not None:
            intervals = {LONG_TEXTS: found.interval} if found.interval else {}
            metrics, intervals = {**result.metrics, LONG_TEXTS: found.value}, {**result.intervals, **intervals}
            result = replace(result, metrics=metrics, intervals=intervals)
        records.append(result)
    return [*columns, Column(LONG_TEXTS, LABEL)], records


class Results:
    """The results of a sweep, or of those of its points that were run.

    `prepared` gives each row's recipe and evaluation sets, in the order of the table. Columns and notes are collected
    from all rows.
    """

    def __init__(
        self,
        experiment: str,
        state: SweepState,
        sweep: Sweep,
        prepared: Mapping[str, Prepared],
        results: Sequence[TrialResult],
        *,
        rows: Sequence[str] = (),
        notes: Sequence[str] = (),
    ) -> None:
        self.experiment, self.state, self.results = experiment, state, results
        self.paths: list[Path] = []
        sets = list(dict.fromkeys(judged for ready in prepared.values() for judged in ready.sets))
        chosen_by = [ready.recipe.evaluation.best for ready in prepared.values()]
        chosen_by += [point.chosen_by for point in sweep.points if point.name in prepared]
        in_columns = not_in_rows(sets, sweep.points)
        # A biased number is better than no number.
        columns = columns_of(in_columns, chosen_by) or columns_of(in_columns, ())
        columns, records = with_average(columns, results, in_columns)
        own_notes = [note for ready in prepared.values() for note in self._notes(ready)]
        self.table = ResultTable(
            title=f"{experiment}: {_title(list(prepared.values()))}",
            records=records,
            columns=list(dict.fromkeys(columns)),
            baseline=next((p.row or p.name for p in sweep.points if p.name == sweep.baseline), sweep.baseline),
            paper=sweep.paper,
            points=rows or list(prepared),
            baselines=_baselines(sweep),
            compared=_compared(sweep),
            notes=list(dict.fromkeys([*sweep.notes, *notes, *own_notes])),
            warnings=list(dict.fromkeys(warning for ready in prepared.values() for warning in self._warnings(ready))),
            verdict=self._verdict(sweep, sets, {column.metric for column in columns}),
            asides=_asides(sweep, prepared),
            places={p.row or p.name: p.places for p in sweep.points} | {v.name: v.places for v in _variants(sweep)},
            x_label=sweep.x_label,
        )

    def _warnings(self, prepared: Prepared) -> Iterator[str]:
        """What a reader must know before reading the numbers."""
        recipe = prepared.recipe
        yield from prepared.overlaps
        if recipe.verdicts:
            command = f"python experiments/{self.experiment}.py --preset {recipe.verdicts} --seeds 8"
            yield (
                f"{recipe.optimization.steps:,} steps show how the parts work together and the direction of large effects. "
                f"For conclusions run: {command}"
            )

    def _verdict(self, sweep: Sweep, sets: Sequence[EvaluationSet], shown: Container[str]) -> list[str]:
        if sweep.claim is None:
            return []
        metrics = [metric for metric in MEASURES[sweep.claim.measure](sets) if metric in shown]
        return verdict(sweep.claim, sweep.baseline, self.results, metrics, self._queries)

    def _queries(self, run: str) -> pa.Table | None:
        folder = run_folder(home(), run)
        return read_evaluation(folder) if evaluations(folder) else None

    def _notes(self, prepared: Prepared) -> Iterator[str]:
        if prepared.stored_features:
            yield "Stored features: every image was seen through one fixed crop, not through random crops."
        for judged in prepared.sets:
            yield from judged.task.notes(judged)

    def show(self, console: Console) -> None:
        """Print the table. In a log it is 200 characters wide, unless COLUMNS says how wide the reader's terminal is."""
        width = console.width if os.environ.get("COLUMNS") else max(200, console.width)
        wide = console if console.is_terminal else Console(width=width, soft_wrap=True)
        wide.print()
        wide.print(to_rich(self.table))

    def write(self) -> list[Path]:
        """Write the table as Markdown and CSV and the plot as PNG; returns the local paths."""
        folder = (
            Path(self.state.folder.uri) if self.state.folder.is_local else Path.cwd() / "cornerstone" / self.state.sweep
        )
        folder.mkdir(parents=True, exist_ok=True)
        markdown, csv = folder / "table.md", folder / "table.csv"
        markdown.write_text(to_markdown(self.table))
        csv.write_text(to_csv(self.table))
        self.paths = [markdown, csv]
        if any(result.finished for result in self.results):
            self.paths.append(plot(self.table, folder / "plot.png"))
        if not self.state.folder.is_local:
            for path in self.paths:
                self.state.folder.join(path.name).write_bytes(path.read_bytes())
        return self.paths

    def say_where(self, console: Console, records: Records, parent: str | None = None) -> None:
        """Print the paths of table, plot and a model, and how to see the runs in MLflow: the last line is a link."""
        rows = [("table", str(path)) for path in self.paths if path.suffix in (".md", ".csv")]
        rows += [("plot", str(path)) for path in self.paths if path.suffix == ".png"]
        model = next((r.model for r in self.results if r.model), "")
        if model:
            code = f'"import cornerstone; cornerstone.load({model!r})"'
            rows.append(("a model", f"{model}\n           {command_path('python')} -c {code}"))
        unsent = sum(result.unsent for result in self.results)
        if unsent:
            rows.append(("not sent", f"{unsent} lines of metrics did not reach MLflow; the journals have them"))
        rows += self._pages(records, parent)
        console.print()
        for name, text in rows:
            console.print(f"{name:>9}: {text}", highlight=False, markup=False, soft_wrap=True)

    def _pages(self, records: Records, parent: str | None) -> list[tuple[str, str]]:
        """How to see the sweep in MLflow."""
        if parent is None or records.experiment_id is None:
            return [("metrics", f"in the journals under {self.state.folder.uri.rpartition('/sweeps/')[0]}/runs")]
        links = sweep_links(records.address, records.experiment_id, self.state.sweep, parent)
        command = ui_command(records.address, self.state.sweep)
        return [*([] if records.address.is_server else [("MLflow", f"start it with: {command}")]), *links.items()]

    def share_view(self, records: Records, parent: str | None, params: Sequence[str]) -> None:
        """Make MLflow's page of the sweep's trials, which `trials_link` opens. `params` are its first columns."""
        if parent is not None:
            metrics = [translated(final(column.metric)) for column in self.table.named]
            view = SweepView(self.state.sweep, parent, params, metrics)
            records.tag_experiment(view.tag, view.text())

    @property
    def _names(self) -> list[str]:
        """The files that a reader of MLflow's pages wants: the plot first."""
        return [path.name for path in reversed(self.paths)]

    def record(self, records: Records, parent: str | None, model: tuple[str, str] | None = None) -> None:
        """Give the sweep's own MLflow run the table: as its description, as files, and its cells as metrics.

        `model` is the best model's name and version in the registry.
        """
        for path in self.paths:
            records.artifact(parent, path)
        verdict = [f"**{line}**" for line in self.table.verdict]
        links = links_on_page(records.experiment_id or "", self.state.sweep, parent or "", self._names, model)
        records.note(parent, "\n\n".join([links, *verdict, to_markdown(replace(self.table, verdict=()))]))
        records.metrics(
            parent,
            {
                f"{final(column.metric)}/{row.point}": cell.value.mean
                for row in self.table.rows
                for column, cell in zip(self.table.named, row.cells, strict=True)
                if not math.isnan(cell.value.mean)
            },
        )
        # Of rows with the same run the first one is the trial's own, the others are its variants.
        averages = {
            one.run: one.metrics[LONG_TEXTS] for one in reversed(self.table.records) if LONG_TEXTS in one.metrics
        }
        for run, value in averages.items():
            records.metrics(records.find("cornerstone.run", run), {final(LONG_TEXTS): value})


def _title(prepared: Sequence[Prepared]) -> str:
    """The rows' presets, steps and batch sizes, each combination once."""
    recipes = [ready.recipe for ready in prepared]
    parts = [f"{r.name}, {r.optimization.steps:,} steps × {r.optimization.batch_size:,}" for r in recipes]
    return "; ".join(dict.fromkeys(parts))


def _variants(sweep: Sweep) -> list[Variant]:
    return [variant for point in sweep.points for variant in point.variants]


def _asides(sweep: Sweep, prepared: Mapping[str, Prepared]) -> dict[str, Sequence[Aside]]:
    """What stands beside the rows of the points that were prepared, and of their variants."""
    found: dict[str, Sequence[Aside]] = {}
    for point in sweep.points:
        if sweep.asides is not None and (ready := prepared.get(point.name)) is not None:
            found[point.row or point.name] = sweep.asides(ready, 0)
            found |= {variant.name: sweep.asides(ready, variant.token_limit) for variant in point.variants}
    return found


def _compared(sweep: Sweep) -> dict[str, str]:
    """For each row that is not compared with the baseline, the row that it is compared with."""
    rows = {point.name: point.row or point.name for point in sweep.points}
    return {rows[point.name]: rows[point.compared_with] for point in sweep.points if point.compared_with}


def _baselines(sweep: Sweep) -> dict[str, str]:
    """For each row of a follow-up that of the same follow-up of the baseline, which it is compared with."""
    baseline = next((point for point in sweep.points if point.name == sweep.baseline), None)
    return {
        name: baseline.name + name.removeprefix(point.name)
        for point in sweep.points
        for name, follow_up in point.all_follow_ups.items()
        if baseline is not None and not follow_up.row
    }
