"""Output of commands: one console, plain lines, and progress bars if the output is a terminal."""

from __future__ import annotations

import atexit
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from cornerstone.evaluation.judged import Judged
    from cornerstone.evaluation.tasks import EvaluationSet

LINE_EVERY = 30.0  # seconds between progress lines in a log
console = (
    Console() if sys.stdout is not None and sys.stdout.isatty() else Console(soft_wrap=True, width=200)
)  # a log has no width
say = partial(console.print, markup=False, highlight=False, soft_wrap=True)  # names and paths may contain brackets


def show_metrics(metrics: dict[str, float], path: str) -> None:
    """Print metrics as a table; with a path, write them to a JSON file too."""

    table = Table(box=None)
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        table.add_row(name, _shown(name, value))
    console.print(table)
    if path:
        write_json(path, metrics)


def _shown(name: str, value: float) -> str:
    """A metric with its task's unit; the count of rows that were left out as a whole number."""
    from cornerstone.evaluation.judged import LEFT_OUT
    from cornerstone.evaluation.tasks import TASKS

    if name.endswith(LEFT_OUT):
        return f"{value:.0f}"
    units = {metric.name: metric.unit for task in TASKS.values() for metric in task.metrics}
    return f"{value:.2f} {units.get(name.rpartition('/')[2], '%')}".strip()


def show_results(results: Sequence[Judged], sets: Sequence[EvaluationSet], path: str) -> None:
    """Print each metric with its 95 % interval, its queries and what a random choice would reach; below it, of what sets.

    The interval's queries are drawn by image or group, since those of one image are not independent. With a path, the metrics
    are written to a JSON file, the rest under `details`: also every prompt, the split and the hash of the data. Of several sets
    with long texts the average is shown too, as LoTLIP's Table 4 does.
    """
    from cornerstone.evaluation.averages import LONG_TEXTS, average, averaged, long_text_retrieval
    from cornerstone.evaluation.judged import chance_of, details_of, intervals_of, metrics_of, queries_of

    metrics = metrics_of(results)
    details = details_of(sets, metrics, queries_of(results), intervals_of(results), chance_of(results))
    table = Table(box=None)
    table.add_column("metric")
    for header in ("value", "95 % interval", "queries", "by chance"):
        table.add_column(header, justify="right")
    for name, value in metrics.items():
        of = details.get(name, {})
        ends = f"{of['low']:.2f} to {of['high']:.2f}" if "low" in of else ""
        queries = f"{of['queries']:,}" if "queries" in of else ""
        lucky = f"{of['chance']:.3g} %" if "chance" in of else ""
        table.add_row(name, _shown(name, value), ends, queries, lucky)
    names = long_text_retrieval(sets)
    between = {name: (of["low"], of["high"]) for name, of in details.items() if "low" in of}
    if averaged(names) and (mean := average(names, metrics, between)) is not None and mean.interval is not None:
        metrics, (low, high) = {**metrics, LONG_TEXTS: mean.value}, mean.interval
        details[LONG_TEXTS] = {"value": mean.value, "low": low, "high": high, "mean of": names}
        table.add_row(LONG_TEXTS, f"{mean.value:.2f} %", f"{low:.2f} to {high:.2f}")
    console.print(table)
    for judged in sets:
        say(_measured_on(judged))
        for note in judged.task.notes(judged):
            say(note)
    if path:
        write_json(path, {**metrics, "details": details})


def _measured_on(judged: EvaluationSet) -> str:
    """`photos: 1,000 rows (split=test), data 3f2a…, 80 prompts, "a photo of a {}." first`."""
    said = f"{judged.name}: {judged.rows:,} rows ({judged.split}), data {judged.content_hash}"
    if judged.lost:
        said += f", {judged.lost:,} left out at import"
    prompts = judged.task.prompts(judged)
    if prompts:
        said += f", {len(prompts)} prompt{'s' if len(prompts) > 1 else ''}, {prompts[0]!r} first"
    return said


def write_json(path: str, content: Mapping[str, Any]) -> None:
    """Write a JSON file, to a path or URI."""
    from cornerstone.data.storage import Location

    Location.of(path).write_text(json.dumps(content, indent=1) + "\n")  # creates the folder if it is missing


def _lines(what: str) -> Callable[..., None]:
    start = last = time.monotonic()

    def show(done: int, total: int, *rest: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < LINE_EVERY or not done:
            return
        last = now
        left = (now - start) / done * (total - done)
        say(f"{what}: {done:,} of {total:,}, about {left:.0f} s left")

    return show


def bar(what: str) -> Callable[..., None]:
    """A function that shows progress, called with done and total: a bar in a terminal, a line every 30 seconds in a log."""
    if not console.is_terminal:
        return _lines(what)
    from rich.progress import Progress

    progress = Progress(console=console)
    task = progress.add_task(what, total=None)
    progress.start()
    atexit.register(progress.stop)  # restore the terminal after an error

    def show(done: int, total: int, *rest: int) -> None:
        progress.update(task, completed=done, total=total)
        if done >= total:
            progress.stop()

    return show
