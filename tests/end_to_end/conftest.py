"""What whole sweeps and jobs share: the scenes of the preset `smoke`, one finished sweep, the experiments as modules."""

from __future__ import annotations

import importlib.util
import io
import re
import shlex
import signal
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from cornerstone.recipes.options import parse
from cornerstone.sweeps import main
from cornerstone.sweeps.main import _with_preset, options_with
from cornerstone.sweeps.state import SweepState, TrialRecord, TrialResult
from cornerstone.tracking.journal import read_journal
from cornerstone.training.job import Identity

REPOSITORY = Path(__file__).resolve().parents[2]
DEFINE = {
    "ablate_captioners": "captioners",
    "ablate_contrastive_weight": "contrastive_weight",
    "ablate_initialisation": "initialisation",
    "ablate_learnable_tokens": "learnable_tokens",
    "ablate_loss": "losses",
    "ablate_corner_tokens": "corner_tokens",
    "ablate_sub_captions": "sub_captions",
    "ablate_token_limit": "token_limit",
    "compare_long_text_methods": "long_text_methods",
    "compare_losses": "losses",
    "compare_methods": "methods",
    "compare_pretraining": "pretraining",
    "compare_pretraining_data": "pretraining_data",
    "probe_overshadowing": "overshadowing",
    "scale_data": "scale_data",
    "transfer": "transfer",
}
"""What each experiment file defines, by the name of its function."""


def experiment(name: str) -> ModuleType:
    """An experiment file as a module of its own name, as `python experiments/NAME.py` would load it."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "experiments" / f"{name}.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands(text: str) -> list[list[str]]:
    """What is typed after `python`, of every command that runs an experiment; notes stand two spaces or a # behind."""
    joined = re.sub(r"\\+\n\s*", "", text)
    found = [line.partition("python experiments/")[2] for line in joined.splitlines() if "python experiments/" in line]
    return [shlex.split(re.split(r"\s{2,}|\s#|`", command)[0]) for command in found]


def documents() -> list[tuple[str, list[str]]]:
    files = [
        *sorted((REPOSITORY / "experiments").glob("*.py")),
        REPOSITORY / "README.md",
        REPOSITORY / "docs" / "guide.md",
    ]
    found = [(path.name, command) for path in files for command in commands(path.read_text())]
    return [(name, command) for name, command in found if "..." not in command]


def jobs() -> list[tuple[str, list[str]]]:
    """The job files of experiments, and what they run after `python experiments/`."""
    files = sorted((REPOSITORY / "ray_jobs" / "jobs").glob("*.yaml"))
    entrypoints = [yaml.safe_load(path.read_text())["spec"]["entrypoint"] for path in files]
    return [(path.name, *commands(words)) for path, words in zip(files, entrypoints, strict=True)]


def usual_preset(file: str) -> str:
    """The preset that an experiment uses if none is given."""
    named = re.search(r'main\(.*preset="(.*?)"', (REPOSITORY / "experiments" / file).read_text())
    return named[1] if named else "scenes"


def options_of(name: str) -> type | None:
    """The class of an experiment's own options, if it has some."""
    named = re.search(r"main\(.*options=(\w+)", (REPOSITORY / "experiments" / f"{name}.py").read_text())
    return getattr(experiment(name), named[1]) if named else None


def defined(name: str, arguments: list[str]):
    """Recipe, placement and sweep of a command, as `main` makes them."""
    own = options_of(name)
    options = parse(options_with(own)[0], _with_preset(usual_preset(f"{name}.py"), arguments), name, "")
    recipe, placement = options.resolved()
    define = getattr(experiment(name), DEFINE[name])
    return options, recipe, placement, define(recipe) if own is None else define(recipe, options)


@pytest.fixture(scope="session")
def smoke_scenes() -> Path:
    """The folder `scenes` of the tests' home, with all that `smoke` needs: shards, evaluation sets, a pretrained tower."""
    from cornerstone.jobs.built_in_scenes import prepare_scenes
    from cornerstone.recipes import preset
    from cornerstone.runtime.home import home

    recipe = preset("smoke")
    prepare_scenes(recipe.data.scenes, recipe.method.image.size, print)
    return Path(home().join("scenes").uri)


NAME = "ablate_corner_tokens"
SMALL = ["--preset", "smoke", "--steps", "4", "--placement.cpus-per-worker", "0.25"]
SMALL += ["--placement.cpus-per-decode-actor", "0.25", "--placement.max-failures", "0"]  # two trials at a time


@dataclass(frozen=True)
class Swept:
    """What a start of an experiment left behind."""

    experiment: str
    status: int
    output: str

    @property
    def state(self) -> SweepState:
        return SweepState.of(re.search(r"^sweep (\S+):", self.output, re.MULTILINE)[1])

    @property
    def folder(self) -> Path:
        return Path(self.state.folder.uri)

    def trial(self, point: str) -> TrialRecord:
        return next(t for t in self.state.read(self.experiment) if t.point == point)

    def result(self, point: str) -> TrialResult:
        return self.state.result(self.trial(point).run)

    def journal(self, point: str) -> list:
        return read_journal(Path(Identity(run=self.trial(point).run).folder.uri) / "journal.jsonl")


def run(define, *arguments: str) -> Swept:
    """Run an experiment in this process; its exit status, and all that it printed."""
    output, status, before = io.StringIO(), 0, signal.getsignal(signal.SIGTERM)
    arguments = (*SMALL, *arguments)
    with redirect_stdout(output), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(REPOSITORY / "experiments" / f"{NAME}.py"), *arguments])
        try:
            main(define, arguments)
        except SystemExit as end:
            status = end.code or 0
        finally:
            signal.signal(signal.SIGTERM, before)
    return Swept(define.__module__.rpartition(".")[2], status, output.getvalue())


@pytest.fixture(scope="session")
def corner_tokens(ray_cluster, smoke_scenes):
    return experiment(NAME).corner_tokens


@pytest.fixture(scope="session")
def swept(corner_tokens) -> Swept:
    return run(corner_tokens, "--only", "0", "2")
