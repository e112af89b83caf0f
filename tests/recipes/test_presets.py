from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from cornerstone.errors import CornerstoneError
from cornerstone.recipes import PRESETS, preset

HASHES = "import json; from cornerstone.recipes import *; print(json.dumps({n: preset(n).hash({}) for n in PRESETS}))"


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_named_as_it_is_called_and_has_no_dropout(name):
    recipe = preset(name)
    assert recipe.name == name
    assert recipe.method.text_tower is None or recipe.method.text_tower.dropout == 0
    assert recipe.seed == 0
    assert recipe.verdicts in ("", *PRESETS)
    assert preset(name) == recipe
    assert preset(name).hash({}) == recipe.hash({})


def test_hashes_are_the_same_in_every_process():
    expected = {name: preset(name).hash({}) for name in PRESETS}
    assert len(set(expected.values())) == len(PRESETS)
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        output = subprocess.run([sys.executable, "-c", HASHES], env=environment, capture_output=True, check=True).stdout
        assert json.loads(output) == expected


def test_an_unknown_preset_is_met_with_the_nearest():
    with pytest.raises(CornerstoneError, match=r"Unknown preset 'lotlip3m'; did you mean 'lotlip-3m'.*photos"):
        preset("lotlip3m")


PAIRS = {  # LoTLIP, Table 6
    "lotlip-3m": 3_018_175,
    "lotlip-12m": 10_445_969,
    "lotlip-30m": 3_018_175 + 10_445_969 + 14_772_456,
    "lotlip-100m": 102_571_723,
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_papers_scales_are_ten_epochs_of_one_method(name):
    recipe = preset(name)
    assert recipe.method == preset("lotlip-3m").method
    assert recipe.optimization.batch_size == (16_384 if name == "lotlip-100m" else 2_560)
    epochs = recipe.optimization.steps * recipe.optimization.batch_size / PAIRS[name]
    assert epochs == pytest.approx(10, rel=1e-3)
