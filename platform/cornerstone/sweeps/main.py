"""The command line of every experiment file."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, make_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.markup import escape

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.options import RunOptions, Shortcuts, parse
from cornerstone.runtime.terminal import any_terminal
from cornerstone.sweeps.points import Sweep

Define = Callable[..., Sweep]
"""What an experiment file defines: the sweep of a recipe, and of its own options if it has some."""


@dataclass(frozen=True)
class ExperimentShortcuts(Shortcuts):
    """The options of an experiment file that are typed most."""

    seeds: int = 1
    """Seeds 0 to N-1 of every point. The table's errors are over seeds; the paper's effects need 5 to 8."""
    only: tuple[str, ...] = ()
    """Names of the points to run; all of them if none is given."""
    continue_: Annotated[str, tyro.conf.arg(name="continue", metavar="SWEEP")] = ""
    """Continue an interrupted sweep: keep the finished trials, resume or run the others."""


@dataclass(frozen=True)
class ExperimentOptions(ExperimentShortcuts, RunOptions):
    """The options of an experiment file: those of a single run, and those of a sweep."""


_BASES: tuple[type[ExperimentOptions], type[ExperimentShortcuts]] = (ExperimentOptions, ExperimentShortcuts)


def main(
    define: Define,
    arguments: Sequence[str] | None = None,
    *,
    preset: str = "",
    seeds: int = 1,
    options: type[Any] | None = None,
) -> None:
    """Run an experiment from the command line. Exits with status 0, or with an error message and 1.

    `preset` and `seeds` are used if none are given. `options` is a frozen dataclass of the experiment's own options, all with
    defaults; `define` then gets the options as its second argument.
    """
    own, shortcuts = options_with(options)
    file = Path(inspect.getfile(define))
    module_doc = inspect.getdoc(inspect.getmodule(define)) or ""
    with any_terminal():
        console = Console(file=sys.stdout, soft_wrap=not sys.stdout.isatty())
        try:
            given = _with_preset(preset, list(sys.argv[1:] if arguments is None else arguments))
            given = _with_default("--seeds", str(seeds), given)
            parsed = parse(own, given, file.name, module_doc, shortcuts)
            defined = define if options is None else partial(define, options=parsed)
            run_experiment(file.stem, defined, parsed, console)
        except CornerstoneError as error:
            console.print(f"[bold red]Error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
            raise SystemExit(1) from None
        except KeyboardInterrupt:  # before there is a sweep to continue
            console.print("\nStopped during preparation. What is prepared is kept: run the same command again.")
            raise SystemExit(130) from None


def options_with(own: type[Any] | None) -> tuple[type[ExperimentOptions], type[ExperimentShortcuts]]:
    """All options of an experiment, and those that `--help` lists, with its own among them."""
    if own is None:
        return ExperimentOptions, ExperimentShortcuts
    every, short = (make_dataclass(own.__name__, [], bases=(own, base), frozen=True) for base in _BASES)
    return every, short


def _with_preset(preset: str, arguments: list[str]) -> list[str]:
    return _with_default("--preset", preset, arguments) if preset else arguments


def _with_default(option: str, value: str, arguments: list[str]) -> list[str]:
    given = any(argument.partition("=")[0] == option for argument in arguments)
    return arguments if given else [option, value, *arguments]


def run_experiment(name: str, define: Define, options: ExperimentOptions, console: Console) -> None:
    """Run a sweep and show its table. `name` is the experiment's name in MLflow."""
    from cornerstone.training.epochs import resolved_options

    recipe, placement = resolved_options(options)
    if options.seeds < 1:
        raise CornerstoneError(f"{options.seeds} seeds: expected 1 or more (--seeds).")
    sweep = define(recipe)
    points = sweep.only(options.only)
    if options.dry_run:
        from cornerstone.sweeps.schedule import Schedule
        from cornerstone.training.dry_run import dry_run

        trials = Schedule(points, options.seeds).trials
        for line in dry_run(points[0].recipe, placement, trials=trials, experiment=name):
            console.print(line, highlight=False, markup=False)
        return
    from cornerstone.sweeps.run import SweepRun

    SweepRun(name, sweep, points, options, placement, console).run()
