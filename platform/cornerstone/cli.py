"""The command line `cornerstone`: finds the command, runs it, and turns errors into one clear message."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import tyro
from rich.table import Table

from cornerstone.commands.data import DeriveCommand, ImportCommand, MixCommand, ScenesCommand
from cornerstone.commands.features import FeaturesCommand
from cornerstone.commands.inspect import StatsCommand, VerifyCommand
from cornerstone.commands.models import EvaluateCommand, TrainCommand
from cornerstone.commands.pack import PackCommand
from cornerstone.commands.recaption import RecaptionCommand
from cornerstone.commands.terminal import console
from cornerstone.errors import CornerstoneError, did_you_mean
from cornerstone.recipes.options import parse

COMMANDS: dict[tuple[str, ...], tuple[type[Any], str]] = {
    ("data", "scenes"): (ScenesCommand, "write the embedded data set as shards"),
    ("data", "import"): (ImportCommand, "bring other layouts into shards"),
    ("data", "derive"): (DeriveCommand, "documents of pairs, or pairs of documents"),
    ("data", "mix"): (MixCommand, "train on several data sets, each by its weight"),
    ("data", "pack"): (PackCommand, "documents into sequences of a fixed number of tokens"),
    ("data", "verify"): (VerifyCommand, "check shards against their manifest"),
    ("data", "stats"): (StatsCommand, "rows, images, texts, tokens and sub-captions per text"),
    ("recaption",): (RecaptionCommand, "long captions by a vision-language model"),
    ("features",): (FeaturesCommand, "run a locked image tower over shards once"),
    ("train",): (TrainCommand, "train one recipe"),
    ("evaluate",): (EvaluateCommand, "judge a saved model zero-shot"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exits with 0, or with a clear error and another status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _dispatch(given)
    except CornerstoneError as error:
        console.print(f"[bold red]Error:[/] {_escaped(error)}", highlight=False)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _dispatch(given: list[str]) -> None:
    if (
        not given
        or given[0] in ("-h", "--help")
        or given == ["data"]
        or given[:2] in (["data", "-h"], ["data", "--help"])
    ):
        _help()
        return
    words = tuple(given[:2]) if given[0] == "data" else (given[0],)
    if words not in COMMANDS:
        raise CornerstoneError(
            f"Unknown command {' '.join(words)!r}{did_you_mean(' '.join(words), [' '.join(c) for c in COMMANDS])}"
        )
    command, _ = COMMANDS[words]
    rest, prog = given[len(words) :], f"cornerstone {' '.join(words)}"
    if command is TrainCommand:
        parse(TrainCommand, rest, prog, TrainCommand.__doc__ or "").run()
    else:
        tyro.cli(command, args=rest, prog=prog, description=command.__doc__).run()


def _help() -> None:
    table = Table(box=None, show_header=False, padding=(0, 2))
    for words, (_, purpose) in COMMANDS.items():
        table.add_row(f"cornerstone {' '.join(words)}", purpose)
    console.print("Language-image pre-training on Ray. Each command has --help.\n")
    console.print(table)
    console.print("\nExperiments: python experiments/ablate_corner_tokens.py --help")


def _escaped(error: Exception) -> str:
    return str(error).replace("[", r"\[")


if __name__ == "__main__":
    main()
