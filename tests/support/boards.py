"""`dashboards/`, and its program that draws boards, as a module."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

DASHBOARDS = Path(__file__).resolve().parents[2] / "dashboards"


def _loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DASHBOARDS / f"{name}.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


draw = _loaded("draw")
