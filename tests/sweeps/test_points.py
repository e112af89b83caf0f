from __future__ import annotations

import pytest

from cornerstone.errors import CornerstoneError
from cornerstone.recipes import preset
from cornerstone.sweeps import Candidate, FollowUp, Point, Sweep, TransferOptions, with_transfers

RECIPE, LCL = preset("scenes"), preset("scenes-lcl")


def sweep(*names, baseline="0"):
    return Sweep([Point(name, RECIPE.with_text(corner_tokens=i)) for i, name in enumerate(names)], baseline)


def test_points_are_chosen_by_name_in_the_sweeps_order():
    points = sweep("0", "1", "2, no mask")
    assert [point.name for point in points.only(())] == ["0", "1", "2, no mask"]
    assert [point.name for point in points.only(("2, no mask", "0"))] == ["0", "2, no mask"]
    assert points.only(("1",))[0].recipe.method.text.corner_tokens == 1


def test_an_unknown_point_is_answered_with_the_nearest_name():
    with pytest.raises(
        CornerstoneError, match="--only '2, nomask' is not a point of this sweep; did you mean '2, no mask'"
    ):
        sweep("0", "1", "2, no mask").only(("0", "2, nomask"))


def test_the_baseline_is_one_of_the_points():
    with pytest.raises(CornerstoneError, match=r"baseline 'none' is not a point of this sweep\. Valid: 0, 1"):
        sweep("0", "1", baseline="none")


def test_two_points_with_the_same_name_are_refused():
    with pytest.raises(CornerstoneError, match="Two points of the sweep have the same name: 0, 1, 0"):
        sweep("0", "1", "0")


def test_candidates_and_the_metric_that_chooses_belong_together():
    with pytest.raises(CornerstoneError, match="Point '0' has candidates but no chosen_by"):
        Point("0", RECIPE, candidates=(Candidate("a", RECIPE),))
    with pytest.raises(CornerstoneError, match="Point '0' has chosen_by but no candidates"):
        Point("0", RECIPE, chosen_by="eval/validation/i2t_r1")


def test_rows_are_the_point_and_its_follow_ups():
    follow_ups = (FollowUp("imagenet", lambda model: RECIPE), FollowUp("coco", lambda model: RECIPE))
    names = ["2", "2 → imagenet", "2 → coco"]
    assert Point("2", RECIPE, follow_ups=follow_ups).rows == dict(zip(names, names, strict=True))


def test_a_follow_up_may_stand_beside_its_point_and_points_may_share_a_row():
    beside = FollowUp("imagenet", lambda model: RECIPE, row="2")
    assert Point("2", RECIPE, follow_ups=(beside,)).rows == {"2": "2", "2 → imagenet": "2"}
    one, other = Point("2: a", RECIPE, row="2"), Point("2: b", RECIPE, follow_ups=(beside,), row="2")
    assert one.rows | other.rows == {"2: a": "2", "2: b": "2", "2: b → imagenet": "2"}
    assert Sweep([one, other], baseline="2").only(("2: b",)) == [other]


@pytest.mark.parametrize("name", ["2 (a)", "2 → imagenet"])
def test_trials_with_the_same_name_are_refused(name):
    two = Point("2", RECIPE, (Candidate("a", RECIPE),), "eval/a/b", (FollowUp("imagenet", lambda model: RECIPE),))
    with pytest.raises(CornerstoneError, match="Two trials of the sweep are named '2 "):
        Sweep([two, Point(name, RECIPE)], "2")


def test_a_point_is_given_three_learning_rates_if_it_is_said_by_what_to_choose():
    assert RECIPE.evaluation.best
    point = Point.at_best_rate("LiT", RECIPE)
    assert (point.recipe, point.chosen_by) == (RECIPE, RECIPE.evaluation.best)
    rate = RECIPE.optimization.learning_rate
    assert {c.name: c.recipe.optimization.learning_rate / rate for c in point.candidates} == {
        "lr × 0.5": 0.5,
        "lr × 1": 1,
        "lr × 2": 2,
    }
    without = RECIPE.with_evaluation(best="")
    assert Point.at_best_rate("LiT", without) == Point("LiT", without)


def test_transfers_need_towers_of_one_architecture():
    one, other = Point("0", LCL), Point("1", LCL.with_image(width=64))
    options = TransferOptions(transfer=("classification",))
    assert with_transfers(Sweep([one, other], "0"), TransferOptions()).points == [one, other]
    with pytest.raises(CornerstoneError, match="differ in their architecture"):
        with_transfers(Sweep([one, other], "0"), options)
    other = Point("1", LCL.with_image(drop_path=0.1))  # no part of the architecture
    assert len(with_transfers(Sweep([one, other], "0"), options).points) == 4


def test_a_point_is_compared_with_a_point_that_there_is():
    with pytest.raises(CornerstoneError, match="A point is compared with '3', which is none"):
        Sweep([Point("0", RECIPE), Point("1", RECIPE, compared_with="3")], "0")
