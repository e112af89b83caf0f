"""A method on packed documents through the whole path: the same loop, stream, engine and store as for pairs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from recording import REPAIRED, counted, lines
from token_mean import TokenMeanConfig

import cornerstone
from cornerstone.data.documents import PackingConfig
from cornerstone.data.layout import Layout
from cornerstone.data.parallel import map_here
from cornerstone.data.records import Document, Segment
from cornerstone.data.shards import ShardWriter
from cornerstone.data.stream import Stream
from cornerstone.errors import CornerstoneError
from cornerstone.jobs.packing import write_packing
from cornerstone.recipes import DocumentData, LotlipConfig, Optimization, Placement, Recipe
from cornerstone.training.build import build_method, build_tower
from cornerstone.training.engine import PlainEngine
from cornerstone.training.job import Identity, Job
from cornerstone.training.launch import launch
from cornerstone.training.prepare import prepare

STEPS, BATCH = 8, 5


@pytest.fixture(scope="module")
def packing(tmp_path_factory, small_data, wordpiece) -> str:
    """About 20 sequences of 32 tokens."""
    folder = tmp_path_factory.mktemp("packed")
    with ShardWriter(
        str(folder / "docs"), kind="documents", name="docs", rows_per_shard=16, rows_per_group=4
    ) as writer:
        for i in range(40):
            images = [Segment(image=small_data.picture(i + 50 * n)) for n in range(i % 3)]
            writer.add(Document(str(i), (Segment(text="one two"), *images, Segment(text="three" * (1 + i % 2)))))
    config = PackingConfig(token_budget=32, image_tokens=3, rule="obelics")
    write_packing(str(folder / "docs"), str(folder / "packing"), wordpiece.read_text(), config, mapped=map_here)
    return str(folder / "packing")


@pytest.fixture
def recipe(packing, tmp_path) -> Recipe:
    return Recipe(
        "tiny",
        TokenMeanConfig(seen=str(tmp_path)),
        DocumentData(train=packing, image_size=8),
        Optimization(steps=STEPS, batch_size=BATCH, learning_rate=0.05, warmup_steps=0),
    )


def planned(prepared) -> dict[int, list[tuple[int, int]]]:
    return {step: list(zip(*map(list, prepared.plan.batch(step)), strict=True)) for step in range(STEPS)}


@pytest.mark.faults
@pytest.mark.timeout(240)
def test_it_trains_through_ray_resumes_and_sees_every_row_once(ray_cluster, recipe, tmp_path):
    """It fails for good in step 5, after a checkpoint, and is resumed by one worker instead of two."""
    failing = replace(recipe, method=replace(recipe.method, raise_at=5))
    placement = Placement(
        workers=2, cpus_per_worker=0.25, cpus_per_decode_actor=0.25, checkpoint_every=3, max_failures=0, zero_stage=0
    )
    job = Job(prepare(failing), placement, Identity())
    with pytest.raises(Exception, match="no way on from step 5"):
        launch(job, print)
    (tmp_path / REPAIRED).touch()
    outcome = launch(replace(job, placement=replace(placement, workers=1)), print)

    plan = planned(job.prepared)
    assert dict(counted(tmp_path)) == plan
    assert [line["step"] for line in lines(tmp_path, 0)] == [*range(5), *range(3, STEPS)]
    rows = Counter(row for of_step in plan.values() for row in of_step)
    assert set(rows.values()) == {1}  # (row, epoch)
    assert len([row for row, epoch in rows if epoch == 0]) == job.prepared.rows

    loaded = cornerstone.load(outcome.model)
    assert type(loaded.module).__name__ == "TokenMean"
    with pytest.raises(CornerstoneError, match="'token-mean' is no dual encoder"):
        loaded.encode_text(["one"])


def test_micro_batches_split_sequences_with_their_images(recipe):
    prepared = prepare(recipe)
    weights = []
    for micro_batch in (0, 2):
        engine = PlainEngine(
            build_method(prepared, build_tower(prepared)), recipe.optimization, micro_batch=micro_batch
        )
        stream = Stream.local(Layout(prepared.stream(), 1), 0, 0)
        reports = [engine.step(stream.batch(step), 0.05) for step in range(STEPS)]
        weights.append(engine.weights())
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=1e-6, msg=name)
    assert float(reports[-1].loss) < float(reports[0].loss)
    assert set(reports[0].reports) == {"mean_images"}


def test_a_method_and_data_of_different_kinds_are_refused():
    with pytest.raises(CornerstoneError, match="'lotlip' is trained on pairs, the recipe's data are documents"):
        Recipe("wrong", LotlipConfig(), DocumentData())
    with pytest.raises(CornerstoneError, match="'token-mean' is trained on documents"):
        Recipe("wrong", TokenMeanConfig())


def test_documents_need_a_packing(recipe, packing):
    docs = str(Path(packing).parent / "docs")
    with pytest.raises(
        CornerstoneError,
        match=r"holds documents, but packed documents are needed here\. Pack them: `cornerstone data pack",
    ):
        prepare(recipe.with_data(train=docs))
