"""Output of commands: one console, plain lines, and progress bars if the output is a terminal."""

from __future__ import annotations

import atexit
import json
import sys
import time
from collections.abc import Callable
from functools import partial

from rich.console import Console
from rich.table import Table

LINE_EVERY = 30.0  # seconds between progress lines in a log
console = Console() if sys.stdout.isatty() else Console(soft_wrap=True, width=200)  # a log has no width
say = partial(console.print, markup=False, highlight=False)  # names and paths may contain brackets


def show_metrics(metrics: dict[str, float], path: str) -> None:
    """Print metrics as a table; with a path, write them to a JSON file too."""
    from cornerstone.evaluation.judged import LEFT_OUT

    table = Table(box=None)
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.0f}" if name.endswith(LEFT_OUT) else f"{value:.2f} %")
    console.print(table)
    if path:
        from cornerstone.data.storage import Location

        Location.of(path).write_text(json.dumps(metrics, indent=1) + "\n")  # creates the folder if it is missing


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
