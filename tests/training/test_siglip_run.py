"""SigLIP as a whole run through Ray Train: it learns, is evaluated, and leaves a model that gives the same numbers."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

import cornerstone
from cornerstone.evaluation.judged import metrics_of
from cornerstone.evaluation.offline import evaluate_model
from cornerstone.models.siglip import Siglip
from cornerstone.recipes import BertText, Evaluation, ImageTower, Optimization, PairData, Placement, Recipe
from cornerstone.recipes.siglip import SiglipConfig
from cornerstone.tracking.journal import read_journal
from cornerstone.training.job import Identity, Job
from cornerstone.training.launch import launch
from cornerstone.training.prepare import prepare

STEPS = 10


@pytest.mark.timeout(240)
def test_a_run_of_siglip(ray_cluster, shards):
    method = SiglipConfig(
        image=ImageTower(name=shards.tower, size=32),
        text=BertText(name="", width=32, layers=1, heads=2, token_limit=24),
    )
    recipe = Recipe(
        "small",
        method,
        PairData(train=shards.train, bad_row_limit=0.2),
        Optimization(steps=STEPS, batch_size=11, learning_rate=5e-3, warmup_steps=2),
        Evaluation(sets=(shards.retrieval, shards.classes)),
    )
    placement = Placement(workers=2, cpus_per_worker=0.25, cpus_per_decode_actor=0.25, micro_batch=3)
    job = Job(prepare(recipe), placement, Identity())
    outcome = launch(job, print)

    folder = Path(job.identity.folder.uri)
    written = {}
    for line in read_journal(folder / "journal.jsonl"):
        written.setdefault(line.step, {}).update(line.metrics)
    losses = [metrics["train/loss_sigmoid"] for metrics in written.values()]
    assert losses[-1] < losses[0]
    first = written[1]
    assert first["train/loss"] == first["train/loss_sigmoid"]
    assert first["train/logit_scale"] == pytest.approx(10)
    assert first["train/logit_bias"] == pytest.approx(-10)
    assert first["train/logit_scale_at_cap"] == 0
    assert first["train/grad_norm"] > 0
    assert written[2]["train/learning_rate"] == 5e-3

    model = cornerstone.load(outcome.model)
    assert isinstance(model.module, Siglip)
    assert outcome.metrics == pytest.approx(
        metrics_of(evaluate_model(model, job.prepared.sets, bad_row_limit=0.2)), abs=1e-3
    )
    table = pq.read_table(folder / "evaluations" / f"step-{STEPS:09d}.parquet").to_pylist()
    for metric, queries in outcome.queries.items():
        _, of_set, name = metric.split("/")
        answers = [row["correct"] for row in table if (row["set"], row["metric"]) == (of_set, name)]
        assert len(answers) == queries
        assert 100 * sum(answers) / queries == pytest.approx(outcome.metrics[metric])
