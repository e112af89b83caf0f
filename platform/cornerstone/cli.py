"""The command line `cornerstone`: its commands, and how an error ends a program."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Annotated, Any, get_args

import tyro
from rich.markup import escape
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, subcommand

from cornerstone.commands.attention import AttentionCommand
from cornerstone.commands.convert import ConvertCommand
from cornerstone.commands.dashboards import DashboardsCommand
from cornerstone.commands.data import DeriveCommand, ImportCommand, MixCommand, ScenesCommand
from cornerstone.commands.embed import EmbedCommand
from cornerstone.commands.export import ExportCommand
from cornerstone.commands.features import FeaturesCommand
from cornerstone.commands.inspect import StatsCommand, VerifyCommand
from cornerstone.commands.models import TRAIN_HELP, EvaluateCommand, TrainCommand, TrainShortcuts
from cornerstone.commands.pack import PackCommand
from cornerstone.commands.questions import QuestionsCommand
from cornerstone.commands.recaption import RecaptionCommand
from cornerstone.commands.submit import SubmitCommand
from cornerstone.commands.terminal import console
from cornerstone.commands.transfer import TransferCommand
from cornerstone.commands.ui import UiCommand
from cornerstone.errors import CornerstoneError, did_you_mean
from cornerstone.recipes.options import preset_defaults, short_help
from cornerstone.runtime.terminal import any_terminal

DataCommands = (
    Annotated[ScenesCommand, subcommand("scenes")]
    | Annotated[ImportCommand, subcommand("import")]
    | Annotated[DeriveCommand, subcommand("derive")]
    | Annotated[MixCommand, subcommand("mix")]
    | Annotated[PackCommand, subcommand("pack")]
    | Annotated[QuestionsCommand, subcommand("questions")]
    | Annotated[VerifyCommand, subcommand("verify")]
    | Annotated[StatsCommand, subcommand("stats")]
)


@dataclass(frozen=True)
class DataCommand:
    """Make, import, derive, mix, pack, verify and count data sets, and make evaluation sets of questions."""

    command: OmitArgPrefixes[OmitSubcommandPrefixes[DataCommands]]

    def run(self) -> None:
        """Run the command below `data`."""
        self.command.run()


OTHER_COMMANDS = (
    Annotated[DataCommand, subcommand("data")]
    | Annotated[RecaptionCommand, subcommand("recaption")]
    | Annotated[FeaturesCommand, subcommand("features")]
    | Annotated[EvaluateCommand, subcommand("evaluate")]
    | Annotated[AttentionCommand, subcommand("attention")]
    | Annotated[TransferCommand, subcommand("transfer")]
    | Annotated[EmbedCommand, subcommand("embed")]
    | Annotated[ConvertCommand, subcommand("convert")]
    | Annotated[ExportCommand, subcommand("export")]
    | Annotated[SubmitCommand, subcommand("submit")]
    | Annotated[DashboardsCommand, subcommand("dashboards")]
    | Annotated[UiCommand, subcommand("ui")]
)
"""All except `train`, whose defaults depend on its `--preset`."""
DESCRIPTION = """Language-image pre-training on Ray.

Every command has --help. Experiments are started as files: python experiments/ablate_corner_tokens.py --help"""


def command_names() -> list[str]:
    """Every command as it is typed: `data scenes`, `train`."""
    other = [name for name in _names(OTHER_COMMANDS) if name != "data"]
    return [*(f"data {name}" for name in _names(DataCommands)), "train", *other]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. Exits with 0, or with an error message and 1, or 2 if the command line is not valid."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with any_terminal():
        try:
            _parse(given).run()
        except CornerstoneError as error:
            console.print(f"[bold red]Error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
            raise SystemExit(1) from None
        except KeyboardInterrupt:
            raise SystemExit(130) from None


def _parse(given: list[str]) -> Any:
    if given == ["--version"]:
        console.print(f"cornerstone {version('cornerstone')}", highlight=False)
        raise SystemExit(0)
    if given in ([], ["data"]):
        given = [*given, "--help"]
    _refuse_unknown_command(given)
    if given[0] == "train":
        given = ["train", *short_help(TrainShortcuts, given[1:], "cornerstone train", TRAIN_HELP)]
    # The preset's values are the defaults of `train`, see `parse` in recipes/options.py.
    train = subcommand("train", default=preset_defaults(TrainCommand, given if given[0] == "train" else []))
    commands: Any = OTHER_COMMANDS | Annotated[TrainCommand, train]
    return tyro.cli(commands, args=given, prog="cornerstone", description=DESCRIPTION)


def _refuse_unknown_command(given: list[str]) -> None:
    """Raise CornerstoneError with the nearest command: tyro has such hints for options only."""
    words = given[: 2 if given[0] == "data" else 1]
    if words[-1] not in ("-h", "--help") and " ".join(words) not in command_names():
        raise CornerstoneError(f"Unknown command {' '.join(words)!r}{did_you_mean(' '.join(words), command_names())}")


def _names(commands: Any) -> list[str]:
    return [get_args(command)[1].name for command in get_args(commands)]


if __name__ == "__main__":
    main()
