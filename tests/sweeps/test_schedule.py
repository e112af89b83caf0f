"""The order of a sweep's trials, without Ray: candidates, the choice, the other seeds, follow-ups, and going on."""

from __future__ import annotations

import math

import pytest

from cornerstone.errors import CornerstoneError
from cornerstone.recipes import preset
from cornerstone.sweeps import Candidate, FollowUp, Point
from cornerstone.sweeps.schedule import Schedule
from cornerstone.sweeps.state import STOPPED, TrialResult

RECIPE = preset("scenes").with_seed(10)
BY = "eval/validation/i2t_r1"
RATES = {"low": 1e-4, "middle": 1e-3, "high": 1e-2}


def candidates():
    return tuple(Candidate(name, RECIPE.with_optimization(learning_rate=rate)) for name, rate in RATES.items())


def tuned(**changes):
    return Point("2", RECIPE, **({"candidates": candidates(), "chosen_by": BY} | changes))


def transfer(name="imagenet"):
    return FollowUp(name, lambda model: RECIPE.with_image(name=f"{model}/tower"))


def run(schedule, values=(), errors=()):
    """Run what is ready once: with `values` and `errors` by row; returns the trials."""
    ready = schedule.ready()
    for planned in ready:
        run = f"run-{planned.row}-{planned.seed}"
        error = dict(errors).get(planned.row, "")
        metrics = {} if error else {BY: dict(values).get(planned.row, 50.0)}
        model = "" if error else f"/models/{run}"
        schedule.add(planned, TrialResult(planned.row, planned.seed, run, metrics, model, error=error))
    return [(p.row, p.seed) for p in ready]


def test_points_without_candidates_are_ready_at_all_seeds():
    schedule = Schedule([Point("0", RECIPE), Point("1", RECIPE)], 2)
    assert [p.recipe.seed for p in schedule.ready()] == [10, 10, 11, 11]
    assert run(schedule) == [("0", 0), ("1", 0), ("0", 1), ("1", 1)]
    assert schedule.ready() == []
    assert [(r.point, r.seed) for r in schedule.results()] == [("0", 0), ("1", 0), ("0", 1), ("1", 1)]
    assert (schedule.trials, schedule.notes(), schedule.choices) == (4, [], {})


def test_the_best_candidate_becomes_the_points_recipe_and_is_not_run_again():
    schedule = Schedule([Point("0", RECIPE), tuned()], 3)
    assert schedule.trials == 3 + 3 + 2
    first = [("0", 0), ("2 (low)", 0), ("2 (middle)", 0), ("2 (high)", 0), ("0", 1), ("0", 2)]
    assert run(schedule, {"2 (low)": 11.0, "2 (middle)": 13.5, "2 (high)": 12.0}) == first
    ready = schedule.ready()
    assert [(p.row, p.seed, p.recipe.seed) for p in ready] == [("2", 1, 11), ("2", 2, 12)]
    assert {p.recipe.optimization.learning_rate for p in ready} == {RATES["middle"]}
    assert run(schedule)
    assert schedule.ready() == []
    found = {(r.point, r.seed): r.run for r in schedule.results()}
    assert found == {
        **{("0", seed): f"run-0-{seed}" for seed in range(3)},
        ("2", 0): "run-2 (middle)-0",
        ("2", 1): "run-2-1",
        ("2", 2): "run-2-2",
    }
    assert list(schedule.rows) == ["0", "2"]
    assert schedule.notes() == [
        "'2' uses candidate 'middle', chosen at the first seed by eval/validation/i2t_r1 (low: 11.00, middle: 13.50, "
        "high: 12.00)."
    ]


def test_nothing_is_chosen_before_all_candidates_have_ended():
    schedule = Schedule([tuned()], 2)
    for planned, value in zip(schedule.ready()[:2], (1.0, 2.0), strict=True):
        schedule.add(planned, TrialResult(planned.row, 0, "run", {BY: value}))
    assert [p.row for p in schedule.ready()] == ["2 (high)"]
    assert schedule.choices == {}
    assert schedule.results() == []


def test_of_equal_candidates_the_first_is_chosen():
    schedule = Schedule([tuned()], 1)
    run(schedule, {"2 (low)": 1.0, "2 (middle)": 2.0, "2 (high)": 2.0})
    assert [r.run for r in schedule.results()] == ["run-2 (middle)-0"]


def test_a_candidate_that_failed_or_has_no_number_is_not_chosen():
    schedule = Schedule([tuned()], 2)
    run(schedule, {"2 (low)": 1.0, "2 (middle)": math.nan}, {"2 (high)": "loss is not finite"})
    assert run(schedule) == [("2", 1)]
    assert schedule.choices == {"2": "low"}
    assert "(low: 1.00, middle: no value, high: failed, loss is not finite)" in schedule.notes()[0]


def test_if_all_candidates_fail_the_point_fails_with_their_reasons():
    schedule = Schedule([tuned(follow_ups=(transfer(),))], 2)
    run(schedule, errors={f"2 ({name})": "out of memory" for name in RATES})
    assert schedule.ready() == []
    (result,) = schedule.results()
    assert (result.point, result.seed, result.finished) == ("2", 0, False)
    assert result.error.startswith(f"no candidate was chosen by {BY} (low: failed, out of memory; ")
    assert schedule.choices == {}
    assert "has chosen no candidate" in schedule.notes()[0]


def test_a_candidate_that_was_interrupted_delays_the_choice():
    """It has not failed: a continued sweep runs it to its end and then chooses."""
    schedule = Schedule([tuned()], 2)
    run(schedule, {"2 (low)": 1.0}, {"2 (high)": STOPPED})
    assert schedule.ready() == []
    assert schedule.choices == {}
    assert "stopped before it had a result" in schedule.results()[0].error


def test_follow_ups_start_from_the_model_of_their_seed():
    schedule = Schedule([Point("0", RECIPE, follow_ups=(transfer("a"), transfer("b"))), Point("1", RECIPE)], 2)
    assert list(schedule.rows) == ["0", "0 → a", "0 → b", "1"]
    assert schedule.trials == 8
    assert run(schedule) == [("0", 0), ("1", 0), ("0", 1), ("1", 1)]
    ready = schedule.ready()
    assert [(p.row, p.seed, p.recipe.seed, p.recipe.method.image.name) for p in ready] == [
        (f"0 → {name}", seed, 10 + seed, f"/models/run-0-{seed}/tower") for seed in (0, 1) for name in "ab"
    ]
    run(schedule)
    assert schedule.ready() == []
    assert len(schedule.results()) == 8


def test_a_follow_up_of_a_follow_up_starts_from_its_model():
    chain = FollowUp("a", transfer().recipe, "0", (transfer("b"), transfer("c")))
    schedule = Schedule([Point("0", RECIPE, follow_ups=(chain,))], 2)
    assert schedule.rows == {"0": "0", "0 → a": "0", "0 → a → b": "0 → a → b", "0 → a → c": "0 → a → c"}
    assert schedule.trials == 8
    run(schedule)
    assert run(schedule, errors={("0 → a"): ""}) == [("0 → a", 0), ("0 → a", 1)]
    found = {(p.row, p.seed): p.recipe.method.image.name for p in schedule.ready()}
    assert found == {(f"0 → a → {n}", s): f"/models/run-0 → a-{s}/tower" for s in (0, 1) for n in "bc"}
    run(schedule)
    assert schedule.ready() == []
    assert len(schedule.results()) == 8


def test_follow_ups_of_a_point_with_candidates_start_from_the_chosen_one():
    schedule = Schedule([tuned(follow_ups=(transfer(),))], 2)
    run(schedule, {"2 (low)": 1.0, "2 (middle)": 0.0, "2 (high)": 2.0})
    ready = schedule.ready()
    assert [(p.row, p.seed) for p in ready] == [("2 → imagenet", 0), ("2", 1)]
    assert ready[0].recipe.method.image.name == "/models/run-2 (high)-0/tower"
    run(schedule)
    assert [(p.row, p.seed) for p in schedule.ready()] == [("2 → imagenet", 1)]
    assert schedule.trials == 3 + 1 + 2


def test_a_failed_trial_has_no_follow_up_at_its_seed():
    schedule = Schedule([Point("0", RECIPE, follow_ups=(transfer(),))], 1)
    run(schedule, errors={"0": "out of memory"})
    assert schedule.ready() == []
    assert [r.point for r in schedule.results()] == ["0"]


def test_a_follow_up_that_cannot_be_made_fails_alone():
    def impossible(model):
        raise CornerstoneError("no such tower")

    schedule = Schedule([Point("0", RECIPE, follow_ups=(FollowUp("x", impossible), transfer()))], 1)
    run(schedule)
    assert [p.row for p in schedule.ready()] == ["0 → imagenet"]
    assert [(r.point, r.error) for r in schedule.results()] == [("0", ""), ("0 → x", "no such tower")]


def test_a_choice_of_an_earlier_start_stays():
    """Even if another candidate is better now: the other seeds have already run with the chosen one."""
    schedule = Schedule([tuned()], 2, {"2": "low"})
    candidates = [p for p in schedule.ready() if p.candidate]
    assert [schedule.is_superseded(p) for p in candidates] == [False, True, True]
    assert [(p.row, p.seed) for p in schedule.ready()] == [*((f"2 ({name})", 0) for name in RATES), ("2", 1)]
    run(schedule, {"2 (low)": 1.0, "2 (middle)": 9.0})
    assert schedule.choices == {"2": "low"}
    assert schedule.results()[0].run == "run-2 (low)-0"
    fresh = Schedule([tuned()], 2)
    assert not any(fresh.is_superseded(p) for p in fresh.ready())


def test_a_recorded_choice_that_is_not_a_candidate_is_refused():
    with pytest.raises(
        CornerstoneError, match="chose candidate 'huge' for point '2', whose candidates are now low, middle"
    ):
        Schedule([tuned()], 1, {"2": "huge"})
    with pytest.raises(CornerstoneError, match="whose candidates are now none"):
        Schedule([Point("2", RECIPE)], 1, {"2": "low"})
