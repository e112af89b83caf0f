"""Experiments from the command line to the table. A stand-in gives the trials' results, so that no Ray is needed."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from cornerstone.recipes import Recipe
from cornerstone.sweeps import Point, Sweep, main
from cornerstone.sweeps.state import SweepState


def corners(recipe: Recipe) -> Sweep:
    """Two points."""
    return Sweep([Point(f"{m}", recipe.with_text(corner_tokens=m)) for m in (0, 2)], baseline="0")


def failed(capsys, *arguments, status=1):
    with pytest.raises(SystemExit) as exit:
        main(corners, arguments)
    assert exit.value.code == status
    output = capsys.readouterr()
    return " ".join((output.out + output.err).split())


def sweep_of(tmp_path):
    (folder,) = (tmp_path / "sweeps").iterdir()
    return SweepState.of(folder.name)


@pytest.fixture
def parents(tracking):
    """The MLflow runs that a sweep opened for itself."""
    from mlflow import MlflowClient

    def found(state):
        client = MlflowClient(tracking)
        experiment = client.get_experiment_by_name("test_main")
        return client.search_runs([experiment.experiment_id], f"tags.`cornerstone.parent_of` = '{state.sweep}'")

    return found


def test_a_sweep_ends_with_its_table(trials, options, capsys, tmp_path, tracking, parents):
    from mlflow import MlflowClient

    main(corners, [*options, "--seeds", "2", "--workers", "3"])
    text = capsys.readouterr().out
    assert "4 trials = 2 points × 2 seeds, 4 steps × 8 rows each, 3 workers a trial" in text
    assert "pairs i→t R@1" in text
    assert [(t.point, t.seed, t.job.recipe.seed) for t in trials.asked] == [
        *(("0", 0, 0), ("2", 0, 0), ("0", 1, 1), ("2", 1, 1))
    ]
    assert [t.job.recipe.method.text.corner_tokens for t in trials.asked] == [0, 2, 0, 2]
    assert len({t.job.identity.run for t in trials.asked}) == 4
    assert {t.job.placement.workers for t in trials.asked} == {3}
    state = sweep_of(tmp_path)
    assert [(r.point, r.seed) for r in state.read("test_main")] == [("0", 0), ("2", 0), ("0", 1), ("2", 1)]
    assert (tmp_path / "sweeps" / state.sweep / "table.md").exists()
    (parent,) = parents(state)
    assert parent.info.status == "FINISHED"
    assert parent.data.params["seeds"] == "2"
    assert parent.data.tags["cornerstone.sweep"] == state.sweep
    artifacts = {file.path for file in MlflowClient(tracking).list_artifacts(parent.info.run_id)}
    assert artifacts == {"recipe.json", "table.md", "table.csv", "plot.png"}


def test_points_can_be_chosen(trials, options, capsys):
    main(corners, [*options, "--only", "2"])
    assert [t.point for t in trials.asked] == ["2"]
    assert "1 trials = 1 points" in capsys.readouterr().out


def test_a_failed_trial_ends_with_the_command_that_runs_it_again(trials, options, capsys, tmp_path):
    trials.fail = (("2", 0),)
    said = failed(capsys, *options, "--seeds", "2")
    assert "out of memory" in said
    assert f"--continue {sweep_of(tmp_path).sweep}" in said


def test_a_continued_sweep_keeps_its_identities_and_its_other_points(trials, options, capsys, tmp_path, parents):
    trials.fail = (("2", 0),)
    failed(capsys, *options, "--seeds", "2")
    state, first = sweep_of(tmp_path), {(t.point, t.seed): t.job.identity.run for t in trials.asked}
    trials.fail = ()
    main(corners, [*options, "--only", "2", "--continue", state.sweep])
    assert [(t.point, t.seed, t.job.identity.run) for t in trials.asked] == [("2", 0, first["2", 0])]
    assert {(r.point, r.seed): r.run for r in state.read("test_main")} == first
    assert len(parents(state)) == 1
    assert "cannot be reached" not in capsys.readouterr().out  # MLflow's params stay as they were logged


def test_a_continued_sweep_is_one_of_the_same_recipes(trials, options, capsys, tmp_path):
    main(corners, options)
    sweep = sweep_of(tmp_path).sweep
    capsys.readouterr()
    said = failed(capsys, *options, "--recipe.optimization.learning-rate", "1", "--continue", sweep)
    assert "ran '0' with another recipe" in said
    assert "start a new sweep without --continue" in said


def test_a_continued_sweep_is_one_of_the_same_seeds(trials, options, capsys, tmp_path):
    """The hash does not contain the seed, yet another seed draws other rows: old weights must not go on with them."""
    main(corners, options)
    said = failed(capsys, *options, "--recipe.seed", "5", "--continue", sweep_of(tmp_path).sweep)
    assert "ran '0' with another recipe" in said
    assert "seed 0; now" in said


def test_an_unknown_sweep_is_named(trials, options, capsys):
    assert "No sweep 'yesterday'" in failed(capsys, *options, "--continue", "yesterday")


def test_an_interrupted_sweep_prints_the_command_that_continues_it(trials, options, capsys, tmp_path):
    trials.interrupt = True
    said = failed(capsys, *options, status=130)
    assert f"ablate.py --seeds 2 --continue {sweep_of(tmp_path).sweep}" in said


def test_an_interrupt_during_preparation_leaves_no_sweep_to_continue(trials, options, capsys, monkeypatch):
    def interrupted(*given, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr("cornerstone.training.prepare.Preparer.prepare", interrupted)
    said = failed(capsys, *options, status=130)
    assert "Stopped during preparation. What is prepared is kept: run the same command again." in said
    assert "--continue" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "3"], "Error: --only '3' is not a point of this sweep"),
        (["--only", "[/bold] 3"], "Error: --only '[/bold] 3' is not a point of this sweep"),
        (["--seeds", "0"], "Error: 0 seeds: expected 1 or more (--seeds)."),
        (["--preset", "scene"], "Error: Unknown preset 'scene'; did you mean 'scenes'?"),
        (["--workers", "0"], "Error: 0 workers: expected 1 or more (--workers)."),
        (["--train", "/nowhere"], "Error: No data set at /nowhere: the folder does not exist."),
        (["--recipe.optimization.batch-size", "51"], "larger than the 50 rows to train on"),
    ],
)
def test_a_mistake_ends_with_status_1_and_a_clear_message(trials, options, capsys, arguments, message):
    assert message in failed(capsys, *options, *arguments)
    assert trials.asked == []


def test_a_misspelt_option_ends_with_status_2(capsys):
    assert "--seeds" in failed(capsys, "--seed", "3", status=2)


def test_a_dry_run_counts_all_trials_and_starts_none(trials, options, capsys, monkeypatch):
    given = {}

    def dry_run(recipe, placement, **told):
        given.update(told)
        yield "said [so]"

    monkeypatch.setattr("cornerstone.training.dry_run.dry_run", dry_run)
    main(corners, [*options, "--seeds", "3", "--dry-run"])
    assert given == {"trials": 6, "experiment": "test_main"}
    assert "said [so]" in capsys.readouterr().out
    assert trials.asked == []


def test_help_shows_the_docstring_of_the_experiment(capsys):
    said = failed(capsys, "--help", status=0)
    assert "Experiments from the command line to the table" in said
    for option in ("--only", "--continue", "--seeds", "--dry-run", "--eval"):
        assert option in said


@dataclass(frozen=True)
class Own:
    """An experiment's own options."""

    corners: tuple[int, ...] = (0, 2)
    """How many."""


def own_corners(recipe: Recipe, options: Own = Own()) -> Sweep:
    """As many points as the options say."""
    points = [Point(f"{m}", recipe.with_text(corner_tokens=m)) for m in options.corners]
    return Sweep(points, baseline=points[0].name)


def test_an_experiment_may_have_options_and_a_number_of_seeds_of_its_own(trials, options, capsys):
    main(own_corners, [*options, "--corners", "1", "3"], options=Own, seeds=2)
    assert [(t.point, t.seed) for t in trials.asked] == [("1", 0), ("3", 0), ("1", 1), ("3", 1)]
    main(own_corners, [*options, "--seeds", "1"], options=Own, seeds=2)
    assert [(t.point, t.seed) for t in trials.asked] == [("0", 0), ("2", 0)]
    with pytest.raises(SystemExit):
        main(own_corners, ["--help"], options=Own)
    said = capsys.readouterr().out
    assert "--corners" in said
    assert "How many." in said
    assert "--only" in said
    assert "--recipe.optimization.steps" not in said
