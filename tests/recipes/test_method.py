from __future__ import annotations

import sys

import pytest

from cornerstone.errors import CornerstoneError
from cornerstone.recipes.method import method_config

ELSEWHERE = """
from dataclasses import dataclass
from typing import ClassVar
from cornerstone.recipes.method import MethodConfig

@dataclass(frozen=True)
class Config(MethodConfig):
    kind: ClassVar[str] = "towers"  # cornerstone.recipes has a module of this name, which defines no method
    implementation: ClassVar[str] = "elsewhere:Module"
    width: int = 3
"""


def test_a_method_from_elsewhere_may_be_called_like_a_module_of_recipes(tmp_path, monkeypatch):
    (tmp_path / "elsewhere_towers.py").write_text(ELSEWHERE)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(CornerstoneError, match="'towers' is not known here"):
        method_config({"kind": "towers", "width": 4})
    assert method_config({"kind": "towers", "width": 4}, "elsewhere_towers:Config").width == 4
    assert "elsewhere_towers" in sys.modules


def test_a_broken_module_of_a_method_is_not_an_unknown_method(tmp_path, monkeypatch):
    import cornerstone.recipes

    (tmp_path / "brittle.py").write_text("import a_package_that_is_not_installed")
    monkeypatch.setattr(cornerstone.recipes, "__path__", [*cornerstone.recipes.__path__, str(tmp_path)])
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_installed"):
        method_config({"kind": "brittle"})
