"""What whole sweeps and jobs share: the scenes of the preset `smoke`, made once, and the experiments as modules."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from cornerstone.recipes.options import parse
from cornerstone.sweeps.main import _with_preset, options_with

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
