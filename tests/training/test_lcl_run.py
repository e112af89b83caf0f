"""LCL as a whole run through Ray Train: documents are packed, it learns, is judged on documents, and leaves a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import cornerstone
from cornerstone.data.documents import PackingConfig
from cornerstone.data.parallel import map_here
from cornerstone.data.scenes.tokenizer import texts_of, train_wordpiece
from cornerstone.data.scenes.write import write_documents
from cornerstone.data.shards import DataSet
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.judged import metrics_of
from cornerstone.evaluation.offline import evaluate_model
from cornerstone.jobs.packing import write_packing
from cornerstone.models.lcl import Lcl
from cornerstone.recipes import DocumentData, Evaluation, Optimization, PairData, Placement, Recipe, preset
from cornerstone.tracking.journal import read_journal
from cornerstone.training.job import Identity, Job
from cornerstone.training.launch import launch
from cornerstone.training.prepare import prepare

STEPS = 8


@pytest.fixture(scope="module")
def packings(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("lcl")
    config, tokenizer, made = PackingConfig(token_budget=256, image_tokens=16), "", {}
    for name, of_scenes in (("train", "documents"), ("held-out", "documents-validation")):
        write_documents(folder / name, documents=60, set=of_scenes, workers=1)
        tokenizer = tokenizer or train_wordpiece(texts_of(DataSet.open(folder / name)), 300)
        write_packing(folder / name, folder / f"{name}-packed", tokenizer, config, mapped=map_here)
        made[name] = str(folder / f"{name}-packed")
    return made


@pytest.fixture
def recipe(packings) -> Recipe:
    scenes = preset("scenes-lcl")
    data = DocumentData(train=packings["train"], image_size=64, crop_scale=(1.0, 1.0))
    return Recipe(
        "small",
        scenes.method,
        data,
        Optimization(steps=STEPS, batch_size=7, learning_rate=2e-3, warmup_steps=2),
        Evaluation(sets=(f"held={packings['held-out']}",)),
    )


@pytest.mark.timeout(240)
def test_a_run_of_lcl(ray_cluster, recipe):
    placement = Placement(workers=2, cpus_per_worker=0.25, cpus_per_decode_actor=0.25, micro_batch=2, zero_stage=2)
    job = Job(prepare(recipe), placement, Identity())
    outcome = launch(job, print)
    written: dict[int, dict[str, float]] = {}
    for line in read_journal(Path(job.identity.folder.uri) / "journal.jsonl"):
        written.setdefault(line.step, {}).update(line.metrics)
    first, last = written[1], written[STEPS]
    assert last["train/generation"] < first["train/generation"]
    assert first["train/loss"] == pytest.approx(first["train/loss_contrastive"] + first["train/loss_generation"])
    assert first["train/loss_contrastive"] == pytest.approx(0.1 * first["train/contrastive"], rel=1e-4)
    assert first["train/bits_per_token"] == pytest.approx(first["train/generation"] / 0.6931, rel=1e-3)
    for name in ("token_accuracy", "image_variance", "infonce_bound", "logit_scale"):
        assert f"train/{name}" in first
    wanted = {"generation", "context_r1", "image_worth", "image_worth_share", "effective_rank", "token_accuracy"}
    assert {f"eval/held/{name}" for name in wanted} <= set(outcome.metrics)

    model = cornerstone.load(outcome.model)
    assert isinstance(model.module, Lcl)
    again = metrics_of(evaluate_model(model, job.prepared.sets))
    for name, value in outcome.metrics.items():
        assert again[name] == pytest.approx(value, rel=1e-3, abs=1e-3), name
    ids = model.module.ids
    tokens = torch.tensor([[ids.bos, 9, 10, ids.boi, *[ids.image] * 16, ids.eoi, 11, ids.eos, ids.pad]])
    found = model.encode_documents(torch.zeros(1, 3, 64, 64), tokens)
    assert {name: tuple(x.shape) for name, x in found.items()} == {
        "image_features": (1, 128),
        "text_features": (1, 128),
        "logits": (5, model.module.vocabulary),
        "labels": (5,),
    }
    assert found["labels"].tolist() == [9, 10, ids.boi, 11, ids.eos]
    with pytest.raises(CornerstoneError, match="'lcl' is no dual encoder"):
        model.encode_text(["one"])


def test_sets_of_another_kind_are_refused(recipe, pairs_folder, packings):
    with pytest.raises(
        CornerstoneError, match="The method 'lcl' is no dual encoder, so no evaluation set of pairs suits it"
    ):
        prepare(recipe.with_evaluation(sets=(pairs_folder,)))
    with pytest.raises(CornerstoneError, match="holds pairs, but packed documents"):
        prepare(recipe.with_data(train=pairs_folder))
    with pytest.raises(CornerstoneError, match="'lcl' is trained on documents, the recipe's data are pairs"):
        Recipe("wrong", recipe.method, PairData())
    manifest = json.loads((Path(packings["train"]) / "manifest.json").read_text())
    assert manifest["kind"] == "packing"
