"""Table 3 of LoTLIP at its smallest, through the experiment's own door: what is shown, recorded, kept and gone on with."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from recording import RecordedConfig

from cornerstone.data.manifest import Manifest
from cornerstone.recipes import Recipe
from cornerstone.sweeps import Point, Sweep
from cornerstone.tracking.address import tracking_address

from .conftest import Swept, run


@pytest.fixture(scope="module")
def client(swept):
    from mlflow import MlflowClient

    return MlflowClient(tracking_address().full)


def runs_of(client, swept: Swept) -> tuple:
    """The sweep's own run, and those of its trials by point."""
    number = client.get_experiment_by_name(swept.experiment).experiment_id
    found = client.search_runs([number], f"tags.`cornerstone.sweep` = '{swept.state.sweep}'")
    (parent,) = [run for run in found if run.data.tags.get("cornerstone.parent")]
    return parent, {run.data.tags["cornerstone.point"]: run for run in found if run is not parent}


@pytest.mark.timeout(300)
def test_the_table_and_the_plot_lie_where_the_output_says(swept):
    assert swept.status == 0, swept.output
    for name in ("table.md", "table.csv", "plot.png"):
        assert f"{swept.folder / name}\n" in swept.output
    rows = list(csv.DictReader((swept.folder / "table.csv").open()))
    assert [row[next(iter(row))] for row in rows] == ["0", "2"]
    markdown = (swept.folder / "table.md").read_text()
    for point in ("0", "2"):
        found = swept.result(point).metrics
        assert {"eval/long-human/i2t_r1", "eval/short/t2i_r1", "eval/class/top1"} <= set(found)
        assert all(math.isfinite(value) for value in found.values())
        assert re.search(rf"^\| *\**{point}\** ", markdown, re.MULTILINE)
        assert f"{found['eval/long-human/i2t_r1']:.2f}"[:-1] in markdown
    assert "49.46" in markdown  # the paper's, beside
    from PIL import Image

    assert min(Image.open(swept.folder / "plot.png").size) > 200


@pytest.mark.timeout(300)
def test_each_trial_is_a_child_of_the_sweeps_run(client, swept):
    parent, children = runs_of(client, swept)
    assert set(children) == {"0", "2"}
    assert {item.path for item in client.list_artifacts(parent.info.run_id)} >= {"table.md", "table.csv", "plot.png"}
    for point, child in children.items():
        trial, tags = swept.trial(point), child.data.tags
        assert tags["mlflow.parentRunId"] == parent.info.run_id
        assert tags["cornerstone.run"] == trial.run
        assert tags["cornerstone.recipe_hash"] == trial.recipe_hash
        assert len(tags["cornerstone.git_commit"]) >= 12
        assert tags["cornerstone.seed"] == "0"
        assert tags["cornerstone.model"] == swept.result(point).model
        assert child.data.params["method.text.corner_tokens"] == point
        assert child.data.params["optimization.steps"] == "4"
        with (Path(client.download_artifacts(child.info.run_id, "recipe.json"))).open() as file:
            assert json.load(file)["method"]["text"]["corner_tokens"] == int(point)
        (given,) = child.inputs.dataset_inputs
        source = json.loads(given.dataset.source)["uri"]
        assert given.dataset.digest == tags["cornerstone.data_hash"] == Manifest.read(source).content_hash
    assert {run.info.status for run in (parent, *children.values())} == {"FINISHED"}
    assert children["0"].data.tags["cornerstone.recipe_hash"] != children["2"].data.tags["cornerstone.recipe_hash"]


@pytest.mark.timeout(300)
def test_metrics_arrive_under_their_agreed_names(client, swept):
    _, children = runs_of(client, swept)
    for point, child in children.items():
        metrics = child.data.metrics
        agreed = {"loss", "loss_raw", "loss_long", "samples_per_second", "data_wait_share"}
        assert {f"train/{name}" for name in agreed} <= set(metrics)
        history = client.get_metric_history(child.info.run_id, "train/loss")
        assert [(m.step, m.value) for m in history] == [
            (line.step, line.metrics["train/loss"]) for line in swept.journal(point) if "train/loss" in line.metrics
        ]
        assert [m.step for m in history] == [1, 2, 3, 4]
        measured = {name: value for name, value in metrics.items() if name.startswith("eval/")}
        assert measured == swept.result(point).metrics


@pytest.mark.timeout(300)
def test_a_continued_sweep_runs_what_is_missing_and_nothing_else(client, corner_tokens, swept):
    before = {point: (swept.result(point), len(swept.journal(point))) for point in ("0", "2")}
    (swept.folder / "trials" / f"{swept.trial('2').run}.json").unlink()
    again = run(corner_tokens, "--only", "0", "2", "--continue", swept.state.sweep)
    assert again.status == 0, again.output
    assert "[2/2] 2, seed 0: done" in again.output
    assert "[1/2]" not in again.output
    assert again.result("0") == before["0"][0]
    assert again.result("2").metrics == before["2"][0].metrics
    assert again.trial("2") == swept.trial("2")
    for point in ("0", "2"):  # its last checkpoint was its end: nothing is trained twice
        assert len(again.journal(point)) == before[point][1]
    parent, children = runs_of(client, again)
    assert set(children) == {"0", "2"}
    assert {run.info.status for run in (parent, *children.values())} == {"FINISHED"}


@pytest.mark.timeout(120)
def test_another_recipe_does_not_go_on(corner_tokens, swept):
    other = run(
        corner_tokens, "--only", "0", "--recipe.optimization.learning-rate", "0.5", "--continue", swept.state.sweep
    )
    assert other.status == 1
    assert f"Sweep {swept.state.sweep} ran '0' with another recipe" in other.output.replace("\n", " ")
    nobody = run(corner_tokens, "--only", "0", "--continue", swept.state.sweep[:-1])
    assert nobody.status == 1
    assert f"did you mean '{swept.state.sweep}'" in nobody.output.replace("\n", " ")


SEEN: list[str] = []
"""The folder of the records of the point that breaks."""


def one_breaks(recipe: Recipe) -> Sweep:
    """A point that raises in its second step, and the baseline of Table 3."""
    method = recipe.method
    breaking = RecordedConfig(image=method.image, text=method.text, loss=method.loss, seen=SEEN[0], raise_at=1)
    whole = Point("0", recipe.with_text(corner_tokens=0))
    return Sweep([Point("breaks", replace(recipe, method=breaking)), whole], baseline="0")


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_a_point_that_fails_stops_no_other_and_numbers_repeat(client, swept, tmp_path):
    SEEN[:] = [str(tmp_path)]
    broken = run(one_breaks)
    assert broken.status == 1
    assert "breaks, seed 0: FAILED: ArithmeticError: no way on from step 1" in broken.output
    assert f"--continue {broken.state.sweep}" in broken.output
    assert re.search(r"breaks.*failed", (broken.folder / "table.md").read_text())
    assert "failed" in (broken.folder / "table.csv").read_text()

    again, once = broken.result("0"), swept.result("0")
    assert again.metrics == once.metrics  # started again; equal to the last bit
    assert broken.trial("0").recipe_hash == swept.trial("0").recipe_hash
    losses = [[line.metrics.get("train/loss") for line in s.journal("0")] for s in (broken, swept)]
    assert losses[0] == losses[1]

    parent, children = runs_of(client, broken)
    assert (parent.info.status, children["0"].info.status, children["breaks"].info.status) == (
        "FAILED",
        "FINISHED",
        "FAILED",
    )
    assert "no way on from step 1" in children["breaks"].data.tags["cornerstone.error"]
