"""How commands speak: one console, plain lines, progress bars where there is a terminal."""

from __future__ import annotations

import atexit
import json
import sys
import time
from collections.abc import Callable
from functools import partial

from rich.console import Console
from rich.table import Table

LINE_EVERY = 30.0  # seconds between lines in a log
console = Console() if sys.stdout.isatty() else Console(soft_wrap=True, width=200)  # a log has no width of its own
say = partial(console.print, markup=False, highlight=False)  # names and paths may hold brackets


def show_metrics(metrics: dict[str, float], path: str) -> None:
    """Numbers as a table; with a path, as a JSON file too."""
    table = Table(box=None)
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.0f}" if name.endswith("rows_left_out") else f"{value:.2f} %")
    console.print(table)
    if path:
        from cornerstone.data.storage import Location

        Location.of(path).write_text(json.dumps(metrics, indent=1) + "\n")  # makes its folder: a long run has ended


def _lines(what: str) -> Callable[..., None]:
    begun = said = time.monotonic()

    def show(done: int, total: int, *rest: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said < LINE_EVERY or not done:
            return
        said = now
        left = (now - begun) / done * (total - done)
        say(f"{what}: {done:,} of {total:,}, some {left:.0f} s left")

    return show


def bar(what: str) -> Callable[..., None]:
    """A function that shows how much is done of how much there is: a bar in a terminal, a line now and then in a log."""
    if not console.is_terminal:
        return _lines(what)
    from rich.progress import Progress

    progress = Progress(console=console)
    task = progress.add_task(what, total=None)
    progress.start()
    atexit.register(progress.stop)  # an error in between leaves the terminal as it was

    def show(done: int, total: int, *rest: int) -> None:
        progress.update(task, completed=done, total=total)
        if done >= total:
            progress.stop()

    return show
