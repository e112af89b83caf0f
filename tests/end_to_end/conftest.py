"""What whole sweeps and jobs share: the scenes of the preset `smoke`, made once, and the experiments as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def experiment(name: str) -> ModuleType:
    """An experiment file as a module of its own name, as `python experiments/NAME.py` would load it."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "experiments" / f"{name}.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Jobs come last: they start a Ray of their own, and end the one that all other tests share."""
    items.sort(key=lambda item: item.path.name == "test_jobs.py")


@pytest.fixture(scope="session")
def smoke_scenes() -> Path:
    """The folder `scenes` of the tests' home, with all that `smoke` needs: shards, evaluation sets, a pretrained tower."""
    from cornerstone.jobs.built_in_scenes import prepare_scenes
    from cornerstone.recipes import preset
    from cornerstone.runtime.home import home

    recipe = preset("smoke")
    prepare_scenes(recipe.data.scenes, recipe.method.image.size, print)
    return Path(home().join("scenes").uri)
