"""What distinguishes a sweep's points: the settings that differ, their short names, and each trial's place in the table."""

from __future__ import annotations

import pytest

from cornerstone.recipes import preset
from cornerstone.sweeps import Candidate, FollowUp, Point
from cornerstone.sweeps.schedule import Planned
from cornerstone.sweeps.settings import MOST_SETTINGS, PointSettings, differing, shown

RECIPE = preset("smoke")


def planned(point, row="", recipe=None, seed=0, candidate=""):
    return Planned(point, row or point.name, seed, recipe or point.recipe, candidate)


def test_only_what_differs_is_named_by_its_last_part():
    recipes = [{"method": {"text": {"corner_tokens": n, "width": 96}}, "seed": n} for n in (0, 2)]
    assert differing(recipes) == {"corner_tokens": "method.text.corner_tokens"}
    assert differing(recipes[:1]) == {}
    assert differing([]) == {}


def test_equal_ends_are_told_apart_by_as_little_as_possible():
    recipes = [{"a": {"loss": {"weight": n}}, "b": {"text": {"weight": n}}, "c": {"other_weight": n}} for n in (0, 1)]
    assert list(differing(recipes)) == ["loss.weight", "text.weight", "other_weight"]
    nested = [{"raw_weight": n, "a": {"raw_weight": n}} for n in (0, 1)]
    assert differing(nested) == {"recipe.raw_weight": "raw_weight", "a.raw_weight": "a.raw_weight"}


def test_a_single_word_is_named_with_the_part_before_it():
    recipes = [{"name": n, "method": {"image": {"name": n, "size": n}}, "data": {"train": n}} for n in (0, 1)]
    assert list(differing(recipes)) == ["recipe.name", "image.name", "image.size", "data.train"]
    towers = [RECIPE, RECIPE.with_image(name="hf:a/b")]
    assert differing(recipe.as_dict() for recipe in towers) == {"image.name": "method.image.name"}


def test_a_field_that_some_points_do_not_have_counts_if_it_differs_among_the_others():
    kinds = [
        {"method": {"kind": "a", "corners": 1}},
        {"method": {"kind": "b"}},
        {"method": {"kind": "a", "corners": 2}},
    ]
    assert list(differing(kinds)) == ["method.kind", "method.corners"]
    assert list(differing(kinds[:2])) == ["method.kind"]


def test_unequal_types_and_lists_are_compared_as_values():
    assert list(differing([{"a": [1, 2]}, {"a": [1, 2]}])) == []
    assert list(differing([{"a": [1, 2]}, {"a": [2, 1]}])) == ["recipe.a"]
    assert list(differing([{"a": None}, {"a": 0}])) == ["recipe.a"]


@pytest.mark.parametrize(
    ("value", "text"), [(["a", "b"], "a, b"), ([], "none"), (None, "none"), ("", "none"), (0, "0"), (True, "True")]
)
def test_values_are_shown_as_people_read_them(value, text):
    assert shown(value) == text


def test_trials_have_the_points_name_and_its_settings():
    points = [Point(str(n), RECIPE.with_text(corner_tokens=n)) for n in (0, 2)]
    settings = PointSettings(points)
    assert settings.columns(points) == ["point", "point.corner_tokens"]
    assert settings.params(planned(points[1])) == {"point": "2", "point.corner_tokens": "2"}


def test_one_point_has_no_settings():
    points = [Point("0", RECIPE)]
    assert PointSettings(points).columns(points) == ["point"]


def test_columns_are_what_differs_among_the_points_that_run_and_params_do_not_depend_on_these():
    rates = [RECIPE.with_optimization(learning_rate=rate) for rate in (1e-4, 1e-3)]
    points = [Point("a", RECIPE.with_text(corner_tokens=0)), *(Point(f"{i}", rate) for i, rate in enumerate(rates))]
    settings = PointSettings(points)
    assert settings.columns(points) == ["point", "point.corner_tokens", "point.learning_rate"]
    assert settings.columns(points[1:]) == ["point", "point.learning_rate"]
    assert list(settings.params(planned(points[1]))) == settings.columns(points)


def test_candidates_differ_and_follow_ups_have_the_settings_of_the_chosen_one():
    rates = {"low": 1e-4, "high": 1e-2}
    candidates = tuple(Candidate(name, RECIPE.with_optimization(learning_rate=rate)) for name, rate in rates.items())
    follow_up = FollowUp("transfer", lambda model: RECIPE.with_steps(3))
    point = Point("a", RECIPE, candidates, "eval/x/top1", (follow_up,))
    settings = PointSettings([point])
    assert settings.columns([point]) == ["point", "point.learning_rate"]
    low = planned(point, "a (low)", candidates[0].recipe, candidate="low")
    assert settings.params(low) == {"point": "a (low)", "point.learning_rate": "0.0001"}
    after = planned(point, "a → transfer", RECIPE.with_steps(3))
    assert settings.params(after, "high")["point.learning_rate"] == "0.01"
    assert settings.params(after)["point.learning_rate"] == str(RECIPE.optimization.learning_rate)


def test_settings_are_bounded():
    recipes = [{f"field{i}": n for i in range(50)} for n in (0, 1)]
    assert len(differing(recipes)) == 50
    one, other = RECIPE, preset("scenes-siglip")
    assert len(differing([one.as_dict(), other.as_dict()])) > 3
    points = [Point("a", one), Point("b", other)]
    assert len(PointSettings(points).params(planned(points[0]))) <= 1 + MOST_SETTINGS


def test_places_sort_trials_by_row_and_seed():
    follow_up = FollowUp("t", lambda model: RECIPE)
    candidates = (Candidate("low", RECIPE),)
    points = [Point("z", RECIPE, candidates, "m", (follow_up,)), *(Point(str(n), RECIPE) for n in range(10, 0, -1))]
    settings = PointSettings(points)
    trials = [
        planned(points[0], "z (low)", candidate="low"),
        planned(points[0], seed=1),
        planned(points[0], seed=10),
        planned(points[0], "z → t"),
        *(planned(point) for point in points[1:]),
    ]
    places = [settings.place(trial) for trial in trials]
    assert places == sorted(places)
    assert len(set(places)) == len(places)
