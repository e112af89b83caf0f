"""Sweeps with candidates and follow-ups from the command line to the table, and what `--continue` keeps of them."""

from __future__ import annotations

import csv
import io

import pytest

from cornerstone.recipes import Recipe
from cornerstone.sweeps import Candidate, FollowUp, Point, Sweep, main
from cornerstone.sweeps.state import SweepState

BY = "eval/pairs/t2i_r1"
MODELS: list[str] = []
"""The models that follow-ups were asked to start from."""


def tuned(recipe: Recipe) -> Sweep:
    """A baseline, and a point that chooses its learning rate and is followed by a run of its own."""

    def transfer(model: str) -> Recipe:
        MODELS.append(model)
        return recipe.with_optimization(steps=2)

    rates = {"low": 1e-4, "high": 1e-2}
    candidates = tuple(Candidate(name, recipe.with_optimization(learning_rate=rate)) for name, rate in rates.items())
    two = Point("2", recipe, candidates, BY, (FollowUp("transfer", transfer),))
    return Sweep([Point("0", recipe.with_text(corner_tokens=0)), two], baseline="0")


def beside(recipe: Recipe) -> Sweep:
    """A point whose follow-up measures another set, whose numbers stand in the point's row."""

    def transfer(model: str) -> Recipe:
        (folder,) = recipe.evaluation.sets
        return recipe.with_evaluation(sets=(f"other={folder}",))

    return Sweep([Point("2", recipe, follow_ups=(FollowUp("transfer", transfer, row="2"),))], baseline="2")


def clashing(recipe: Recipe) -> Sweep:
    """A point whose follow-up measures the same set."""
    follow_up = FollowUp("transfer", lambda model: recipe, row="2")
    return Sweep([Point("2", recipe, follow_ups=(follow_up,))], baseline="2")


def misnamed(recipe: Recipe) -> Sweep:
    """A point that chooses by a metric that nothing measures."""
    return Sweep([Point("2", recipe, (Candidate("low", recipe),), "eval/pairs/i2t_r2")], baseline="2")


@pytest.fixture
def run(trials, options, capsys, tmp_path):
    """Run `tuned` with these arguments: the exit status, and all that was printed in one line."""
    trials.values = {"2 (low)": {BY: 3.0}, "2 (high)": {BY: 4.0}}
    trials.model = "/runs/some/model"
    MODELS.clear()

    def started(*arguments, define=tuned):
        trials.started.clear()
        status = 0
        try:
            main(define, [*options, *arguments])
        except SystemExit as end:
            status = end.code
        return status, " ".join(capsys.readouterr().out.split())

    return started


def sweep_of(tmp_path):
    (folder,) = (tmp_path / "sweeps").iterdir()
    return SweepState.of(folder.name)


def test_candidates_seeds_and_follow_ups_run_in_turn(run, trials, tmp_path):
    status, said = run("--seeds", "2")
    assert status == 0
    assert "7 trials = 2 points × 2 seeds + 1 more candidates + 2 follow-ups, 4 steps × 8 rows each" in said
    assert f"cornerstone ui --sweep {sweep_of(tmp_path).sweep}" in said.partition("in MLflow, while it runs:")[2]
    assert trials.started == [
        *(("0", 0), ("2 (low)", 0), ("2 (high)", 0), ("0", 1)),
        *(("2 → transfer", 0), ("2", 1)),
        ("2 → transfer", 1),
    ]
    assert set(MODELS) == {"/runs/some/model"}
    assert "'2' uses candidate 'high', chosen at the first seed by eval/pairs/t2i_r1 (low: 3.00, high: 4.00)" in said
    state = sweep_of(tmp_path)
    assert state.choices("test_run") == {"2": "high"}
    table = state.folder.join("table.csv").read_text()
    rows = {row["point"]: row for row in csv.DictReader(io.StringIO(table))}
    assert list(rows) == ["0", "2", "2 → transfer"]
    assert {row["seeds"] for row in rows.values()} == {"2"}
    assert BY not in rows["0"]  # the set that chose
    assert "eval/pairs-short/t2i_r1" in rows["0"]
    assert trials.asked[-1].job.recipe.seed == 1
    assert trials.asked[-1].job.recipe.optimization.steps == 2


def test_a_follow_up_beside_its_point_shares_its_row(run, trials, tmp_path):
    trials.values = {"2 → transfer": {"eval/other/i2t_r1": 31.0}}
    status, _ = run("--seeds", "2", define=beside)
    assert status == 0
    assert trials.started == [("2", 0), ("2", 1), ("2 → transfer", 0), ("2 → transfer", 1)]
    table = sweep_of(tmp_path).folder.join("table.csv").read_text()
    (row,) = csv.DictReader(io.StringIO(table))
    assert (row["point"], row["seeds"]) == ("2", "2")
    assert row["eval/other/i2t_r1"] == "31"
    assert row["eval/pairs-short/i2t_r1"] == ""  # not measured here, but a column of its own
    trials.fail = (("2 → transfer", 0),)
    (tmp_path / "sweeps").rename(tmp_path / "before")
    status, said = run("--seeds", "2", define=beside)
    assert status == 1
    assert "'2': failed (seed 0: out of memory)" in said


def test_two_trials_of_a_row_do_not_measure_the_same(run):
    status, said = run(define=clashing)
    assert status == 1
    assert "'2' and '2 → transfer' share a row of the table, and both measure eval/pairs" in said


def test_the_view_counts_the_trials_that_are_to_come_and_knows_the_tables_metric(run, trials):
    run("--seeds", "2")
    assert trials.rounds == [(4, 3), (2, 1), (1, 0)]
    assert trials.board.title.startswith("test_run 20")
    assert trials.board.primary == ("eval/pairs-short/i2t_r1", "pairs-short i→t R@1", "%")  # BY's set chooses


def test_a_trial_that_cannot_be_prepared_is_shown_as_failed(run, trials):
    def broken(recipe):
        def transfer(model):
            return recipe.with_evaluation(sets=("no-such-folder",))

        return Sweep([Point("2", recipe, follow_ups=(FollowUp("transfer", transfer),))], baseline="2")

    status, said = run(define=broken)
    assert status == 1
    assert trials.rounds == [(1, 1)]
    assert "[1/1] 2 → transfer, seed 0: FAILED: " in said
    assert "no-such-folder" in said


def test_the_chosen_recipe_is_that_of_the_other_seeds(run, trials):
    run("--seeds", "2", "--only", "2")
    assert trials.started == [("2 (low)", 0), ("2 (high)", 0), ("2 → transfer", 0), ("2", 1), ("2 → transfer", 1)]


def test_the_chosen_run_is_the_points_run_in_mlflow(run, trials, tracking, tmp_path):
    from mlflow import MlflowClient

    trials.opens_runs = True
    run("--only", "2", "--seeds", "2")
    client, state = MlflowClient(tracking), sweep_of(tmp_path)
    number = client.get_experiment_by_name("test_run").experiment_id
    (parent,) = client.search_runs([number], f"tags.`cornerstone.parent_of` = '{state.sweep}'")
    assert parent.data.params["points"] == "['2']"
    assert parent.info.status == "FINISHED"
    found = client.search_runs([number], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    points = {child.info.run_name: child.data.tags["cornerstone.point"] for child in found}
    assert points == {
        "2 (low), seed 0": "2 (low)",
        "2 (high), seed 0": "2",
        "2, seed 1": "2",
        "2 → transfer, seed 0": "2 → transfer",
        "2 → transfer, seed 1": "2 → transfer",
    }


def test_a_continued_sweep_keeps_choice_and_identities(run, trials, tmp_path):
    trials.fail = (("2", 1),)
    status, said = run("--seeds", "2")
    assert status == 1
    state = sweep_of(tmp_path)
    assert f"--continue {state.sweep}" in said
    before = {(t.point, t.seed): t for t in state.read("test_run")}
    assert ("2 → transfer", 1) not in before
    trials.fail = ()
    status, said = run("--seeds", "2", "--continue", state.sweep)
    assert status == 0, said
    assert trials.started == [("2", 1), ("2 → transfer", 1)]
    after = {(t.point, t.seed): t for t in state.read("test_run")}
    assert {key: after[key] for key in before} == before
    assert set(after) - set(before) == {("2 → transfer", 1)}
    assert "chosen at the first seed" in said


def test_a_losing_candidate_that_failed_is_not_run_again(run, trials, tmp_path):
    """The choice is made: a late result must not change the recipe between the seeds of a point."""
    trials.fail = (("2 (high)", 0), ("2", 1))
    status, said = run("--seeds", "2")
    assert status == 1
    assert "(low: 3.00, high: failed, out of memory)" in said
    trials.fail = ()
    status, said = run("--seeds", "2", "--continue", sweep_of(tmp_path).sweep)
    assert status == 0
    assert trials.started == [("2", 1), ("2 → transfer", 1)]
    assert "(low: 3.00, high: failed, out of memory)" in said


def test_a_candidate_that_lost_by_failing_leaves_the_sweep_complete(run, trials):
    trials.fail = (("2 (high)", 0),)
    status, said = run()
    assert status == 0
    assert "'2' uses candidate 'low'" in said


def test_a_point_without_any_candidate_fails(run, trials, tmp_path):
    trials.fail = (("2 (low)", 0), ("2 (high)", 0))
    status, said = run("--seeds", "2")
    assert status == 1
    assert "no candidate was chosen by eval/pairs/t2i_r1" in said
    trials.fail = ()
    status, _ = run("--seeds", "2", "--continue", sweep_of(tmp_path).sweep)
    assert status == 0
    assert trials.started[:2] == [("2 (low)", 0), ("2 (high)", 0)]


def test_a_choice_stays_if_its_point_is_left_out(run, tmp_path):
    run("--only", "2")
    state = sweep_of(tmp_path)
    status, _ = run("--only", "0", "--continue", state.sweep)
    assert status == 0
    assert state.choices("test_run") == {"2": "high"}
    assert [t.point for t in state.read("test_run")] == ["0", "2 (low)", "2 (high)", "2 → transfer"]


def test_other_candidates_do_not_continue_a_sweep(run, tmp_path):
    run("--only", "2")
    sweep = sweep_of(tmp_path).sweep
    status, said = run("--only", "2", "--recipe.optimization.weight-decay", "0.3", "--continue", sweep)
    assert status == 1
    assert "ran '2 (low)' with another recipe" in said


def test_the_metric_that_chooses_must_be_measured(run, trials):
    status, said = run(define=misnamed)
    assert status == 1
    assert (
        "'2' chooses a candidate by 'eval/pairs/i2t_r2', which is not measured; did you mean 'eval/pairs/i2t_r" in said
    )
    assert trials.started == []


def test_a_dry_run_counts_candidates_and_follow_ups(run, trials, monkeypatch):
    given = {}

    def dry_run(recipe, placement, **told):
        given.update(told)
        yield "a line"

    monkeypatch.setattr("cornerstone.training.dry_run.dry_run", dry_run)
    assert run("--seeds", "3", "--dry-run")[0] == 0
    assert given["trials"] == 3 + 3 + 1 + 3
    assert trials.started == []


def test_each_trial_is_told_apart_in_mlflow_by_its_settings_and_its_place(run, trials, tmp_path):
    """Over all rounds: candidates, the other seeds, follow-ups."""
    asked = {}
    play = trials.run

    def noting(given, *rest):
        asked.update({(trial.point, trial.seed): trial for trial in given})
        return play(given, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cornerstone.sweeps.driver.run_trials", noting)
        status, _ = run("--seeds", "2")
    assert status == 0
    params = {key: dict(trial.params) for key, trial in asked.items()}
    names = {name.removeprefix("point.") for found in params.values() for name in found}
    assert names == {"point", "corner_tokens", "learning_rate"}
    assert params["0", 0] == {"point": "0", "point.corner_tokens": "0", "point.learning_rate": "0.001"}
    assert [params[row, 0]["point.learning_rate"] for row in ("2 (low)", "2 (high)")] == ["0.0001", "0.01"]
    assert params["2", 1]["point.learning_rate"] == params["2 → transfer", 0]["point.learning_rate"] == "0.01"
    places = {key: trial.tags["cornerstone.place"] for key, trial in asked.items()}
    order = [("0", 0), ("0", 1), ("2 (low)", 0), ("2", 1), ("2 → transfer", 0), ("2 → transfer", 1)]
    assert [places[key] for key in order] == sorted(places[key] for key in order)
    assert all(trial.tags["mlflow.source.name"] == "ablate.py" for trial in asked.values())


def test_the_best_model_is_registered_and_linked(run, trials, tmp_path, tracking):
    from mlflow import MlflowClient

    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"method": {}, "build": {}, "image_tower": null}')
    (model / "recipe.json").write_text("{}")
    trials.opens_runs = True
    trials.values = {"1": {"eval/pairs/i2t_r1": 90.0}}

    def two(recipe):
        return Sweep([Point("0", recipe.with_text(corner_tokens=0)), Point("1", recipe)], baseline="0")

    trials.model = str(model)
    status, said = run("--seeds", "2", define=two)
    assert status == 0
    client = MlflowClient(tracking_uri=tracking)
    version = client.get_model_version_by_alias("test_run-photos", "best")
    assert (version.tags["cornerstone.point"], version.tags["cornerstone.seed"]) == ("1", "0")
    sweep = sweep_of(tmp_path).sweep
    experiment = client.get_experiment_by_name("test_run")
    assert f"mlflow.sharedViewState.{sweep}" in experiment.tags
    query = f"tags.`cornerstone.parent_of` = '{sweep}'"
    (parent,) = client.search_runs([experiment.experiment_id], query)
    page = f"#/models/test_run-photos/versions/{version.version}?workflowType=machine_learning"
    assert f"[best model]({page})" in parent.data.tags["mlflow.note.content"]
    assert parent.data.tags["mlflow.source.name"] == "ablate.py"

    # One point of a sweep, once more: neither is it the best now, nor does the view lose the other's columns.
    view = experiment.tags[f"mlflow.sharedViewState.{sweep}"]
    trials.values = {"0": {"eval/pairs/i2t_r1": 95.0}}
    SweepState.of(sweep).forget(next(t.run for t in SweepState.of(sweep).read("test_run") if t.point == "0"))
    status, _ = run("--seeds", "2", "--only", "0", "--continue", sweep, define=two)
    assert status == 0
    assert client.get_model_version_by_alias("test_run-photos", "best").version == version.version
    assert client.get_experiment_by_name("test_run").tags[f"mlflow.sharedViewState.{sweep}"] == view

    (model / "config.json").unlink()
    status, said = run("--seeds", "1", define=two)
    assert status == 0
    assert f"The best model is not registered in MLflow: {model} cannot be read" in said


def test_what_fails_while_the_table_is_written_ends_the_sweeps_run(run, monkeypatch, tracking):
    from mlflow import MlflowClient

    def broken(self):
        raise RuntimeError("no plot")

    monkeypatch.setattr("cornerstone.sweeps.results.Results.write", broken)
    with pytest.raises(RuntimeError, match="no plot"):
        run("--seeds", "1")
    client = MlflowClient(tracking_uri=tracking)
    experiment = client.get_experiment_by_name("test_run").experiment_id
    parents = client.search_runs([experiment], "tags.`cornerstone.parent` = 'true'", order_by=["start_time DESC"])
    assert parents[0].info.status == "FAILED"
