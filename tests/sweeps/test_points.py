from __future__ import annotations

import pytest

from cornerstone.errors import CornerstoneError
from cornerstone.recipes import preset
from cornerstone.sweeps import Point, Sweep

RECIPE = preset("scenes")


def sweep(*names, baseline="0"):
    return Sweep([Point(name, RECIPE.with_text(corner_tokens=i)) for i, name in enumerate(names)], baseline)


def test_points_are_chosen_by_name_in_the_sweeps_order():
    points = sweep("0", "1", "2, no mask")
    assert [point.name for point in points.only(())] == ["0", "1", "2, no mask"]
    assert [point.name for point in points.only(("2, no mask", "0"))] == ["0", "2, no mask"]
    assert points.only(("1",))[0].recipe.method.text.corner_tokens == 1


def test_an_unknown_point_is_met_with_the_nearest():
    with pytest.raises(
        CornerstoneError, match="--only '2, nomask' is no point of this sweep; did you mean '2, no mask'"
    ):
        sweep("0", "1", "2, no mask").only(("0", "2, nomask"))


def test_the_baseline_is_one_of_the_points():
    with pytest.raises(CornerstoneError, match=r"baseline 'none' is none of the points\. Valid: 0, 1"):
        sweep("0", "1", baseline="none")


def test_two_points_of_one_name_are_refused():
    with pytest.raises(CornerstoneError, match="Two points of the sweep have one name: 0, 1, 0"):
        sweep("0", "1", "0")
