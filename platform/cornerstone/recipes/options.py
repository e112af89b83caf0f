"""The command line of a run: a preset, shortcuts for the most common options, and every field of recipe and placement.

tyro makes it from the dataclasses; it rejects a misspelt option with the nearest valid one.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, TypeVar

import tyro

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.placement import Placement
from cornerstone.recipes.presets import PRESETS, preset
from cornerstone.recipes.recipe import Recipe

T = TypeVar("T", bound="RunOptions")
HELP_ALL = "--help-all"


@dataclass(frozen=True)
class Shortcuts:
    """The options that are typed most: what `--help` lists. `--help-all` lists every field of recipe and placement too."""

    preset: Annotated[str, tyro.conf.arg(metavar="NAME", help=f"{', '.join(PRESETS)}.")] = "scenes"
    train: str = ""
    """Folder or URI of training shards; empty for the built-in scenes."""
    eval: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME=]DIR ..")] = ()
    """Evaluation sets, `[NAME=]DIR`; empty for the built-in scenes' own."""
    steps: int | None = None
    """Optimizer steps; the warmup follows in proportion."""
    epochs: float | None = None
    """Passes over the training data, in place of --steps."""
    workers: int | None = None
    """Ray Train workers."""
    zero_stage: int | None = None
    """DeepSpeed ZeRO stage, 0 to 3."""
    tokenizer: str | None = None
    """A Hugging Face tokenizer by name or folder."""
    image_tower: str | None = None
    """A timm model name, or a folder in timm's layout."""
    features: tuple[str, ...] = ()
    """Feature stores made by `cornerstone features`, for training and evaluation sets."""
    limit_rows: int | None = None
    """Train on the first N rows only."""
    lr: float | None = None
    """Learning rate after the warmup."""
    batch_size: int | None = None
    """Rows of one step, over all workers."""
    dry_run: bool = False
    """Resolve everything, run one step on one batch, print what would happen, and stop."""


@dataclass(frozen=True)
class RunOptions(Shortcuts):
    """The options of every run. A shortcut overrides the same field under `recipe` or `placement`."""

    recipe: Recipe = field(kw_only=True)
    placement: Placement = field(kw_only=True)

    def resolved(self) -> tuple[Recipe, Placement]:
        """The recipe and the placement, with the shortcuts applied."""
        recipe, placement = self.recipe, self.placement
        if self.train:
            recipe = recipe.with_data(train=self.train)
        if self.eval:
            recipe = recipe.with_evaluation(sets=self.eval)
        if (self.train or self.eval) and recipe.evaluation.best == preset(self.preset).evaluation.best:
            recipe = recipe.with_evaluation(best="")  # the preset's validation set is not among the user's
        if self.steps is not None:
            recipe = recipe.with_steps(self.steps)
        if self.lr is not None:
            recipe = recipe.with_optimization(learning_rate=self.lr)
        if self.batch_size is not None:
            recipe = recipe.with_optimization(batch_size=self.batch_size)
        if self.tokenizer is not None:
            recipe = recipe.with_data(tokenizer=self.tokenizer)
        if self.image_tower is not None:
            recipe = recipe.with_image(name=self.image_tower)
        if self.features:
            recipe = recipe.with_data(features="stored", feature_stores=self.features, crop_scale=(1.0, 1.0))
        if self.limit_rows is not None:
            recipe = recipe.with_data(limit_rows=self.limit_rows)
        return recipe, _placed(placement, self.workers, self.zero_stage)


@dataclass(frozen=True)
class _PlacementOptions:
    workers: int | None = None
    zero_stage: int | None = None
    placement: Placement = field(default_factory=Placement)


def placement_of(arguments: Sequence[str]) -> Placement:
    """The placement that the command line of an experiment or of a run gives, whatever other options it has."""
    try:
        found, _ = tyro.cli(_PlacementOptions, args=list(arguments), return_unknown_args=True, console_outputs=False)
    except SystemExit:
        raise CornerstoneError(f"Cannot read the placement of: {shlex.join(arguments)}. See --help-all.") from None
    return _placed(found.placement, found.workers, found.zero_stage)


def _placed(placement: Placement, workers: int | None, zero_stage: int | None) -> Placement:
    """The placement with the shortcuts applied."""
    if workers is not None:
        placement = replace(placement, workers=workers)
    if zero_stage is not None:
        placement = replace(placement, zero_stage=zero_stage)
    return placement


def parse(
    options: type[T], arguments: Sequence[str], prog: str, description: str, short: type[Shortcuts] = Shortcuts
) -> T:
    """Parse a command line of which `--preset` gives every other option its default. `short` is what `--help` lists."""
    arguments = short_help(short, arguments, prog, description)
    defaults = preset_defaults(options, arguments)
    return tyro.cli(options, args=list(arguments), default=defaults, prog=prog, description=description)


def short_help(short: type[Shortcuts], arguments: Sequence[str], prog: str, description: str) -> list[str]:
    """Print the short help and exit if it is asked for. Otherwise the arguments, `--help-all` as tyro's `--help`."""
    if HELP_ALL in arguments:
        return ["--help" if argument == HELP_ALL else argument for argument in arguments]
    if {"-h", "--help"} & set(arguments):
        more = f"{HELP_ALL} lists every field of the recipe and the placement as well."
        default = short(preset=chosen_preset(arguments))
        tyro.cli(short, args=["--help"], default=default, prog=prog, description=f"{description}\n\n{more}")
    return list(arguments)


def preset_defaults(options: type[T], arguments: Sequence[str]) -> T:
    """The options with the values of the preset that the arguments name: the `default` of `tyro.cli`.

    That is tyro's mechanism for overriding parts of a base config. The base must be known before the parser is made, so
    `--preset` is parsed first. Raises CornerstoneError if there is no such preset.
    """
    name = chosen_preset(arguments)
    return options(recipe=preset(name), placement=Placement(), preset=name)


def chosen_preset(arguments: Sequence[str]) -> str:
    """The name that `--preset` gives."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="scenes")
    chosen, _ = first.parse_known_args([a for a in arguments if a not in ("-h", "--help", HELP_ALL)])
    return str(chosen.preset)


_IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it for the command of a submitted job."""


def again_with(command: Sequence[str], option: str, value: str) -> str:
    """The command line as it was typed, with `option value` in place of an earlier value of that option."""
    given = [part for part in command if not part.startswith(f"{option}=")]
    if option in given:
        place = given.index(option)
        del given[place : place + 2]
    if os.path.basename(given[0]) == "__main__.py":  # python -m PACKAGE
        return shlex.join([_python(), "-m", os.path.basename(os.path.dirname(given[0])), *given[1:], option, value])
    program = os.path.relpath(given[0]) if given and os.path.exists(given[0]) else given[0]
    return shlex.join([*([_python()] if program.endswith(".py") else []), program, *given[1:], option, value])


def _python() -> str:
    """This Python as it can be typed in the current folder, whatever PATH is; in a Ray job that of the cluster."""
    relative = os.path.relpath(sys.executable)
    if not relative.startswith(".."):
        return relative
    return "python" if _IN_A_JOB in os.environ else sys.executable
