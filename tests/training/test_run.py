from __future__ import annotations

from types import SimpleNamespace

import pytest

from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError
from cornerstone.training.run import _check_same_recipe


def test_a_run_is_resumed_with_its_recipe_and_its_seed(tmp_path):
    def check(recipe_hash, seed, resume=""):
        identity = SimpleNamespace(folder=Location.of(str(tmp_path)), run="one")
        prepared, recipe = SimpleNamespace(recipe_hash=recipe_hash), SimpleNamespace(seed=seed)
        _check_same_recipe(SimpleNamespace(identity=identity, prepared=prepared, recipe=recipe), resume)

    with pytest.raises(CornerstoneError, match="No run 'one' under"):
        check("abc", 0, "one")
    check("abc", 0)
    check("abc", 0, "one")
    for other in (("abd", 0), ("abc", 1)):
        with pytest.raises(CornerstoneError, match="started with another recipe or seed"):
            check(*other, "one")
