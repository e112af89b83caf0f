"""Every zero-shot result carries its interval, its prompts, its split and the hash of its data, whatever its task."""

from __future__ import annotations

import io
import json

import pyarrow.parquet as pq
import pytest
import tiny_released

import cornerstone
from cornerstone.data.scenes.texts import PROMPTS
from cornerstone.data.scenes.write import write_evaluation_sets
from cornerstone.data.shards import DataSet
from cornerstone.evaluation.interval import clustered_interval
from cornerstone.evaluation.judged import (
    DETAILS,
    chance_of,
    details_of,
    intervals_of,
    metrics_of,
    per_query_table,
    queries_of,
)
from cornerstone.evaluation.offline import evaluate_model
from cornerstone.evaluation.sets import requested_sets
from cornerstone.evaluation.tasks import TASKS
from cornerstone.evaluation.tasks.pair_task import PairTask

ZERO_SHOT = {
    "retrieval": "short",
    "classification": "class",
    "lookalike": "lookalike",
    "sentence-swap": "sentence-swap",
    "attention": "long-human",
}
"""A set of the built-in scenes for each task."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_evaluation_sets(folder, images=24, sets=sorted(set(ZERO_SHOT.values())), seed=3, workers=1, pool=24)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return cornerstone.load(tiny_released.clip(tmp_path_factory.mktemp("clip")))


def test_every_zero_shot_task_is_here():
    assert {name for name, task in TASKS.items() if isinstance(task, PairTask)} | {"attention"} == set(ZERO_SHOT)


@pytest.mark.parametrize("task", ZERO_SHOT)
def test_a_result_carries_what_belongs_to_it(task, folder, model):
    place = str(folder / ZERO_SHOT[task])
    sets = requested_sets([place], task)
    results = evaluate_model(model, sets)
    metrics = metrics_of(results)
    details = details_of(sets, metrics, queries_of(results), intervals_of(results), chance_of(results))
    assert list(details) == list(metrics)
    assert set(metrics) <= {f"eval/{sets[0].name}/{metric.name}" for metric in TASKS[task].metrics}
    for name, of in details.items():
        assert of["low"] <= of["value"] == metrics[name] <= of["high"]
        assert of["low"] < of["high"]
        assert of["queries"] > 0
        assert 0 < of["chance"] < 100
        assert (of["task"], of["split"]) == (task, "seed 3")
        assert of["data"] == DataSet.open(place).manifest.content_hash
        assert of["prompts"] == (list(PROMPTS) if task == "classification" else [])
        assert bool(of["texts"]) == (task != "classification")
    kept = io.BytesIO()
    pq.write_table(per_query_table(results, sets), kept)
    assert json.loads(pq.read_table(kept).schema.metadata[DETAILS]) == details


def test_the_interval_draws_images_and_not_texts(folder, model):
    """Five captions an image: the interval of text→image is that of its images."""
    sets = requested_sets([str(folder / "short")], "retrieval")
    results = evaluate_model(model, sets)
    measured = results[0].measured
    assert len(measured.correct["t2i_r5"]) == 5 * 24
    assert measured.cluster["t2i_r5"].unique().tolist() == list(range(24))
    values = 100.0 * measured.correct["t2i_r5"].double().numpy()
    expected = clustered_interval(values, [i // 5 for i in range(120)])
    assert intervals_of(results)["eval/short/t2i_r5"] == expected
