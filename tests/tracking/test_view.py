"""The shared view of a sweep: what MLflow's page reads of it, and that it fits into an experiment's tag."""

from __future__ import annotations

import base64
import json
import zlib

from cornerstone.tracking.address import Address
from cornerstone.tracking.mlflow_pages import sweep_links
from cornerstone.tracking.mlflow_view import DEFLATED, LONGEST_TAG, SweepView

VIEW = SweepView(
    "20260131-142501-3f9a",
    "abc",
    ["point", "point.corner_tokens"],
    ["final/long/i2t_r1", "final/long/t2i_r1", "final/class/top1"],
)


def read(text):
    return json.loads(zlib.decompress(base64.b64decode(text.removeprefix(DEFLATED))) if text[0] != "{" else text)


def test_the_columns_are_the_settings_then_the_tables_in_their_order():
    state = read(VIEW.text())
    assert VIEW.tag == "mlflow.sharedViewState.20260131-142501-3f9a"
    assert state["selectedColumns"] == [
        "params.`point`",
        "params.`point.corner_tokens`",
        "metrics.`final/long/i2t_r1`",
        "metrics.`final/long/t2i_r1`",
        "metrics.`final/class/top1`",
    ]
    order = ["attributes.`Run Name`", "runDateAndNestInfo", *state["selectedColumns"], "duration"]
    assert state["columnOrder"] == order
    assert state["searchFilter"] == "tags.`mlflow.parentRunId` = 'abc'"
    assert (state["orderByKey"], state["orderByAsc"]) == ("tags.`cornerstone.place`", True)


def test_the_primary_metric_is_the_first_chart_and_all_are_in_one_section():
    state = VIEW.state()
    first, *rest = state["compareRunCharts"]
    assert (first["type"], first["metricKey"]) == ("BAR", "final/long/i2t_r1")
    assert [chart["type"] for chart in rest] == ["DIFFERENCE", "PARALLEL", "BAR", "BAR"]
    assert rest[1]["selectedParams"] == ["point.corner_tokens"]
    assert rest[1]["selectedMetrics"] == ["final/long/i2t_r1"]
    (section,) = state["compareRunSections"]
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == {section["uuid"]}
    assert len({chart["uuid"] for chart in state["compareRunCharts"]}) == 5


def test_a_sweep_without_evaluations_has_no_charts():
    assert SweepView("s", "abc", ["point"], []).state()["compareRunCharts"] == []


def test_a_long_view_is_compressed_and_of_too_many_columns_the_last_are_left_out():
    metrics = [f"final/a set of a long name, number {i}/i2t_r1" for i in range(60)]
    text = SweepView("s", "abc", ["point"], metrics).text()
    assert text.startswith(DEFLATED)
    assert len(text) <= LONGEST_TAG
    columns = [name for name in read(text)["selectedColumns"] if name.startswith("metrics.")]
    assert columns == [f"metrics.`{name}`" for name in metrics]

    import random

    draw = random.Random(0)
    names = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=240)) for _ in range(60)]
    text = SweepView("s", "abc", ["point"], names).text()
    assert len(text) <= LONGEST_TAG
    columns = [name for name in read(text)["selectedColumns"] if name.startswith("metrics.")]
    assert 0 < len(columns) < 60
    assert columns == [f"metrics.`{name}`" for name in names[: len(columns)]]


def test_links_open_the_view_and_its_charts():
    local = Address("sqlite:////h/mlflow.db")
    assert sweep_links(local, "3", "s 1", "abc", 5001) == {
        "the sweep": "http://127.0.0.1:5001/#/experiments/3/runs/abc?workflowType=machine_learning",
        "trials": "http://127.0.0.1:5001/#/experiments/3/runs?workflowType=machine_learning&viewStateShareKey=s%201",
        "comparison": "http://127.0.0.1:5001/#/experiments/3/runs?workflowType=machine_learning&viewStateShareKey=s%201&compareRunsMode=CHART",
    }
    server = Address.of("https://u:p@host:8443/")
    assert sweep_links(server, "3", "s1", "abc")["trials"].startswith("https://host:8443/#/")
