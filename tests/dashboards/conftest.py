"""`dashboards/`, and its program that draws boards."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DASHBOARDS = REPOSITORY / "dashboards"


def _loaded():
    spec = importlib.util.spec_from_file_location("draw", DASHBOARDS / "draw.py")
    sys.modules["draw"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


draw = _loaded()
