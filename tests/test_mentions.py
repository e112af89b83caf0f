"""Every option and command that a message, a docstring or the README names exists."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from cornerstone.cli import command_names, main
from cornerstone.sweeps import main as experiment

REPOSITORY = Path(__file__).resolve().parents[1]
FOREIGN = {
    *("--host", "--show-current", "--experiment-id", "--sort", "--runtime-env"),
    *("--all", "--short", "--porcelain", "--input", "--output", "--inject", "--num"),
    *("--env", "--device", "--dashboard-host", "--generate", "--now", "--homepath"),
}
"""Options of other programs that are named: mlflow, tar, ray, git, docker, systemctl, Grafana, DeepSpeed (with underscores),
and of `make demo`."""


def helped(run, *arguments) -> str:
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream), contextlib.suppress(SystemExit):
        run([*arguments, "--help"])
    return stream.getvalue()


def experiment_help(arguments) -> None:
    """The help of an experiment whose options are those of every one and these of its own, by module and class."""
    from cornerstone.recipes.options import parse
    from cornerstone.sweeps.main import options_with

    *own, _ = arguments  # the last one is --help
    options = getattr(loaded(own[0]), own[1]) if own else None
    every, short = options_with(options)
    parse(every, ["--help-all"], "x.py", "", short)


def loaded(name: str) -> ModuleType:
    """An experiment file as a module."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "experiments" / f"{name}.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TRANSFERS = ("lcl-classification", "lcl-caption", "lcl-dialogue")


@cache
def options() -> set[str]:
    """Every option of every command; the recipe's of all methods."""
    texts = [helped(main, *name.split()) for name in command_names()]
    trained = (
        "scenes",
        "scenes-siglip",
        "scenes-longclip",
        "scenes-filip",
        "scenes-blip2",
        "photos",
        "scenes-lcl",
        "scenes-flamingo",
        "scenes-emu",
        "scenes-coca",
        "scenes-beit3",
    )
    for preset in (*trained, *TRANSFERS):
        stream = io.StringIO()
        with contextlib.redirect_stdout(stream), contextlib.suppress(SystemExit):
            main(["train", "--preset", preset, "--help-all"])
        texts.append(stream.getvalue())
    texts += [helped(experiment_help, *arguments) for arguments in ((), *own_options())]
    found = set(re.findall(r"--[a-z][a-z0-9.\-]*", " ".join(texts)))
    return found | {"--help", "--help-all", "--version"}


def own_options() -> list[tuple[str, str]]:
    """The experiments that have a class of options of their own."""
    files = {path.stem: path.read_text() for path in (REPOSITORY / "experiments").glob("*.py")}
    found = {name: re.search(r"main\(.*options=(\w+)", text) for name, text in files.items()}
    return [(name, named[1]) for name, named in found.items() if named and f"class {named[1]}" in files[name]]


def mentions() -> list[tuple[str, str]]:
    """Where an option is named, and the option."""
    found = []
    for path in [*(REPOSITORY / "platform").rglob("*.py"), *(REPOSITORY / "experiments").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found += [(f"{path.name}:{node.lineno}", o) for o in named(node.value)]
    for line, text in enumerate((REPOSITORY / "README.md").read_text().splitlines(), 1):
        found += [(f"README.md:{line}", option) for option in named(text)]
    return found


def named(text: str) -> list[str]:
    return [found.rstrip(".-") for found in re.findall(r"(?<![\w\-])--[a-z][a-z0-9.\-]*[a-z0-9]", text)]


def test_options_exist():
    known = options() | FOREIGN
    unknown = sorted({f"{where}: {option}" for where, option in mentions() if not exists(option, known)})
    assert unknown == []


def exists(option: str, known: set[str]) -> bool:
    """An option, or a group of options (`--recipe.optimization`)."""
    return option in known or any(other.startswith(f"{option}.") for other in known)


def test_commands_exist():
    """After `cornerstone`, in code, comes a command."""
    names = {name.split()[0] for name in command_names()}
    unknown = []
    for path in [*(REPOSITORY / "platform").rglob("*.py"), REPOSITORY / "README.md"]:
        for line, text in enumerate(path.read_text().splitlines(), 1):
            for command in re.findall(r"`cornerstone ([a-z]+)", text):
                if command not in names:
                    unknown.append(f"{path.name}:{line}: cornerstone {command}")
    assert unknown == []


@pytest.mark.parametrize("text", ["--no-such-option", "see --lr and --no-such.option."])
def test_a_wrong_option_would_be_found(text):
    assert [option for option in named(text) if not exists(option, options())] != []
    assert callable(experiment)
