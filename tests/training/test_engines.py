"""Two DeepSpeed workers with half of a batch each against PyTorch alone with the whole one."""

from __future__ import annotations

import importlib.util
import math
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from cornerstone.data.layout import Layout, StreamSpec
from cornerstone.data.manifest import Manifest
from cornerstone.data.pairs.drawing import TextDraws
from cornerstone.data.pairs.feature_store import feature_schema
from cornerstone.data.pairs.image_input import StoredFeatures
from cornerstone.data.pairs.source import PairSource
from cornerstone.data.plan import Plan
from cornerstone.data.records import Caption
from cornerstone.data.shards import DataSet, write_row_groups
from cornerstone.data.source import Part
from cornerstone.data.storage import Location
from cornerstone.data.stream import Stream
from cornerstone.data.texts import TextInput
from cornerstone.errors import CornerstoneError
from cornerstone.models.method import Group
from cornerstone.recipes import CornerText, ImageTower, LotlipConfig
from cornerstone.recipes.recipe import Optimization
from cornerstone.training.engine import PlainEngine
from cornerstone.training.resharding import resharded
from cornerstone.training.schedule import build_optimizer

WORKER = Path(__file__).with_name("zero_worker.py")
STAGES, STEPS, WIDTH = range(4), 3, 24
BATCHES = {"even": 12, "odd": 11}  # 11 rows over 2 workers: the last place of the second one is masked

# With a large eps AdamW's updates follow the gradients' sizes, so that a wrong scale or clipping cannot hide behind a sign.
OPTIMIZATION = Optimization(steps=4, warmup_steps=0, learning_rate=0.05, eps=1e-2, clip_norm=0.5, weight_decay=0.1)


def row(small_data, i: int):
    """Every fifth row has no long text, another fifth no raw one, and row 7 none at all."""
    captions = small_data.pair(i).captions
    kept = {1: captions[:1], 2: captions[1:]}.get(i % 5, captions)
    return small_data.pair(i, captions=(Caption("web", "raw", ""),) if i == 7 else kept)


def store_of(folder: Path, data: DataSet) -> str:
    """Random vectors; the image of row 4 could not be decoded."""
    schema, drawn, first = feature_schema(WIDTH, "float32"), np.random.default_rng(0), 0
    files = []
    for shard in data.manifest.shards:
        groups = []
        for rows in shard.row_groups:
            vectors = pa.array(drawn.normal(size=rows * WIDTH).astype(np.float32))
            reasons = ["a torn file" if first + i == 4 else "" for i in range(rows)]
            columns = [pa.FixedSizeListArray.from_arrays(vectors, WIDTH), pa.array(reasons)]
            groups.append(pa.Table.from_arrays(columns, schema=schema))
            first += rows
        files.append(write_row_groups(Location.of(folder), shard.file, groups))
    Manifest("features", data.name, tuple(files)).write(Location.of(folder))
    return str(folder)


@pytest.fixture(scope="module")
def given(tmp_path_factory, small_data, wordpiece) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("zero")
    data = DataSet.open(small_data.write(folder / "pairs", (row(small_data, i) for i in range(24))))
    (folder / "store").mkdir()
    config = LotlipConfig(
        image=ImageTower(size=16),
        text=CornerText(name="", width=32, layers=2, heads=2, corner_tokens=2, token_limit=32),
    )
    train = PairSource(
        (data.location.uri,),
        (Part(tuple(shard.row_groups for shard in data.manifest.shards)),),
        StoredFeatures((store_of(folder / "store", data),), WIDTH),
        TextInput("sentences", wordpiece.read_text(), 30),
        TextDraws(1, sub_captions=2),
    )
    specs = {
        name: StreamSpec(train, Plan(train.parts, batch_size, seed=1), STEPS + 1)
        for name, batch_size in BATCHES.items()
    }
    return SimpleNamespace(folder=folder, config=config, specs=specs, optimization=OPTIMIZATION)


def run_workers(given, workers: int) -> list[dict]:
    """Start the script on each worker; what each has saved."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LOCAL_RANK": "0", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(WORKER), str(given.folder)]
    started = [subprocess.Popen([*command, str(i), str(workers)], env=environment) for i in range(workers)]
    try:
        assert [process.wait(timeout=240) for process in started] == [0] * workers
    finally:
        for process in started:
            process.kill()
    return [torch.load(given.folder / f"result-{workers}-{rank}.pt") for rank in range(workers)]


@pytest.fixture(scope="module")
def two(given) -> list[dict]:
    """By (batch, stage), as the first and as the second worker see it."""
    (given.folder / "given.pkl").write_bytes(pickle.dumps(vars(given)))
    return run_workers(given, 2)


@pytest.fixture(scope="module")
def alone(given, two) -> dict:
    """By (batch, stage): the checkpoints of two workers, opened by one."""
    return run_workers(given, 1)[0]


def worker_module():
    spec = importlib.util.spec_from_file_location("zero_worker", WORKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plain(given, batch: str, optimization=OPTIMIZATION, micro_batch=0) -> SimpleNamespace:
    """The same steps with the whole batch, by PyTorch alone."""
    model = worker_module().build(given.config, given.specs[batch])
    engine = PlainEngine(model, optimization, micro_batch=micro_batch)
    stream = Stream.local(Layout(given.specs[batch], 1), 0, 0)
    gradients, losses, norms, masked = [], [], [], []
    clip = torch.nn.utils.clip_grad_norm_

    def look_and_clip(parameters, norm):
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
        return clip(parameters, norm)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", look_and_clip)
        for step in range(STEPS):
            whole = stream.batch(step)
            masked.append(int((~whole.valid).sum()))
            report = engine.step(whole, optimization.learning_rate)
            losses.append(report.parts)
            norms.append(float(report.grad_norm))
        after = {name: value.clone() for name, value in engine.weights().items()}
        engine.step(stream.batch(STEPS), optimization.learning_rate)
    return SimpleNamespace(
        gradients=gradients[:STEPS], losses=losses, norms=norms, after=after, went_on=engine.weights(), bad=masked
    )


@pytest.fixture(scope="module")
def reference(given) -> dict:
    return {batch: plain(given, batch) for batch in BATCHES}


def close(found, wanted, tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}")


def distance(a, b) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


CASES = [(batch, stage) for batch in BATCHES for stage in STAGES]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("batch", "stage"), CASES)
def test_two_workers_give_the_gradients_of_the_whole_batch(two, reference, batch, stage):
    wanted = reference[batch]
    for worker in two:
        for found, gradients in zip(worker[batch, stage]["gradients"], wanted.gradients, strict=True):
            largest = max(float(g.abs().max()) for g in gradients.values())
            assert all(gradients[name].abs().max() > 1e-2 * largest for name in ("logit_scale", "text.corners"))
            close(found, gradients, 1e-5 * largest)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("batch", "stage"), CASES)
def test_two_workers_give_the_parameters_and_the_loss_of_the_whole_batch(two, reference, batch, stage):
    wanted, (first, second) = reference[batch], (worker[batch, stage] for worker in two)
    close(first["after"], wanted.after, 1e-5)
    for losses, *theirs in zip(wanted.losses, first["losses"], second["losses"], strict=True):
        close({name: sum(part[name] for part in theirs) / 2 for name in losses}, losses, 1e-5)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("batch", "stage"), CASES)
def test_micro_batches_give_the_step_of_the_whole_batch(two, reference, batch, stage):
    """Exact: two passes, in which every row is compared with all rows of all workers."""
    wanted, (first, second) = reference[batch], (worker[batch, stage]["cached"] for worker in two)
    close(first["after"], wanted.after, 1e-5)
    assert first["grad_norms"] == pytest.approx(wanted.norms, rel=1e-4)
    for losses, *theirs in zip(wanted.losses, first["losses"], second["losses"], strict=True):
        close({name: sum(part[name] for part in theirs) / 2 for name in losses}, losses, 1e-5)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("batch", "stage"), CASES)
def test_the_gradients_norm_is_that_of_the_whole_before_clipping(two, reference, batch, stage):
    assert min(reference[batch].norms) > 2 * OPTIMIZATION.clip_norm
    for worker in two:
        assert worker[batch, stage]["grad_norms"] == pytest.approx(reference[batch].norms, rel=1e-4)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("batch", "stage"), CASES)
def test_weights_are_whole_and_the_same_on_every_worker(two, reference, batch, stage):
    first, second = (worker[batch, stage] for worker in two)
    assert first["after"].keys() == reference[batch].after.keys()
    close(first["after"], second["after"], 0)
    close(first["whole"], first["loaded"], 0)  # what evaluation encodes with


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("batch", "stage"), CASES)
def test_a_step_after_loading_is_the_step_without(two, batch, stage):
    for worker in (worker[batch, stage] for worker in two):
        assert worker["step"] == STEPS
        close(worker["loaded"], worker["went_on"], 0)
        assert distance(worker["went_on"], worker["after"]) > 1e-3


@pytest.mark.timeout(300)
@pytest.mark.parametrize("stage", STAGES)
def test_in_bf16_the_stage_changes_no_number(two, stage):
    """Gradients of two workers are summed in fp32 at every stage."""
    first, second = (worker["even", stage]["bf16"]["fp32"] for worker in two)
    wanted = two[0]["even", 0]["bf16"]["fp32"]
    largest = max(float(g.abs().max()) for g in wanted["gradients"].values())
    close(first["gradients"], wanted["gradients"], 1e-6 * largest)
    close(first["weights"], wanted["weights"], 1e-6)
    close(first["weights"], second["weights"], 0)
    assert rounded(wanted["gradients"]) > 0.03  # a sum in bf16 would be a number of bf16


@pytest.mark.timeout(300)
@pytest.mark.parametrize("stage", STAGES)
def test_gradients_may_be_reduced_in_bf16(two, stage):
    found = two[0]["even", stage]["bf16"]["bf16"]["gradients"]
    assert rounded(found) == 0
    exact = two[0]["even", 0]["bf16"]["fp32"]["gradients"]
    largest = max(float(g.abs().max()) for g in exact.values())
    close(found, exact, 0.02 * largest)


def rounded(gradients) -> float:
    """Share of the numbers that are no numbers of bf16."""
    flat = torch.cat([g.flatten() for g in gradients.values()])
    return float((flat != flat.bfloat16().float()).float().mean())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("stage", STAGES)
def test_a_step_with_an_infinite_gradient_is_skipped_by_all_and_counted(two, stage):
    for worker in two:
        found = worker["even", stage]["skipped"]
        assert found["skipped"] == [0, 1, 1]
        assert all(map(math.isfinite, found["losses"]))
        close(found["weights"][1], found["weights"][0], 0)
        assert distance(found["weights"][2], found["weights"][1]) > 1e-4
        close(found["weights"][2], two[0]["even", 1]["skipped"]["weights"][2], 1e-5)


def test_the_plain_engine_skips_such_a_step_too(given):
    model = worker_module().build(given.config, given.specs["even"])
    engine = PlainEngine(model, OPTIMIZATION)
    batch = Stream.local(Layout(given.specs["even"], 1), 0, 0).batch(0)
    before = {name: value.clone() for name, value in engine.weights().items()}
    hook = model.logit_scale.register_hook(lambda gradient: gradient * torch.inf)
    assert engine.step(batch, 0.1).skipped == 1
    close(engine.weights(), before, 0)
    hook.remove()
    assert engine.step(batch, 0.1).skipped == 1
    assert distance(engine.weights(), before) > 1e-4


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("batch", "stage"), [case for case in CASES if case[1] < 3])
def test_another_number_of_workers_goes_on(alone, reference, batch, stage):
    """With the optimizer's state: without it the next step would be another one."""
    close(alone[batch, stage]["weights"], reference[batch].went_on, 1e-5)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_another_stage_than_before_is_refused(alone, stage):
    assert alone["even", stage]["refused"].endswith(f"give --zero-stage {stage} as before.")


@pytest.mark.timeout(300)
def test_another_number_of_workers_is_refused_at_stage_3(alone):
    assert "is sharded over 2 workers by ZeRO stage 3, and this run has 1" in alone["even", 3]["refused"]
    assert "resume with --workers 2" in alone["even", 3]["refused"]


def test_a_checkpoint_that_cannot_be_cut_anew_says_so(tmp_path):
    (tmp_path / "deepspeed").mkdir()
    with (
        pytest.raises(CornerstoneError, match="cannot be resharded for another number of workers"),
        resharded(str(tmp_path)),
    ):
        pass


def test_the_rows_are_as_hard_as_they_should_be(given, reference):
    """Bad rows take part, and without clipping or with a batch of another size the parameters would be others."""
    assert sum(reference["odd"].bad) > 0
    unclipped = plain(given, "even", replace(OPTIMIZATION, clip_norm=1e9))
    assert distance(unclipped.after, reference["even"].after) > 1e-3
    assert distance(reference["odd"].after, reference["even"].after) > 1e-3


@pytest.mark.parametrize("micro_batch", [1, 2, 5, 11, 100])
def test_micro_batches_alone_change_nothing(given, reference, micro_batch):
    cached = plain(given, "odd", micro_batch=micro_batch)
    close(cached.after, reference["odd"].after, 1e-5)
    assert cached.norms == pytest.approx(reference["odd"].norms, rel=1e-5)


def test_dropout_is_the_same_in_both_passes(given):
    """Only if the second pass draws what the first one drew are its gradients those of the features compared."""
    config = replace(given.config, text=replace(given.config.text, dropout=0.3))
    spec, found = given.specs["even"], []
    batch = Stream.local(Layout(spec, 1), 0, 0).batch(0)
    method = worker_module().build(config, spec).train()
    torch.manual_seed(0)
    engine = PlainEngine(method, OPTIMIZATION, micro_batch=4)
    forward = engine._forward
    engine._forward = lambda micro: found.append(forward(micro)) or found[-1]
    engine.step(batch, 0.0)
    for first, second in zip(found[:3], found[3:], strict=True):
        for name, value in first._asdict().items():
            torch.testing.assert_close(value, getattr(second, name).detach(), rtol=0, atol=0, msg=name)


def test_groups_have_their_own_learning_rate_and_may_be_frozen(given):
    model = worker_module().build(given.config, given.specs["even"])
    slow, frozen = [model.text.project.weight], [model.text.corners]
    rest = [p for p in model.parameters() if p is not slow[0] and p is not frozen[0]]
    model.parameter_groups = lambda: [Group(slow, lr_scale=0.1), Group(frozen, frozen=True), Group(rest, decays=False)]
    engine = PlainEngine(model, OPTIMIZATION)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    engine.step(Stream.local(Layout(given.specs["even"], 1), 0, 0).batch(0), 0.05)
    assert [(g["lr"], g["weight_decay"]) for g in engine.optimizer.param_groups] == [(0.05 * 0.1, 0.1), (0.05, 0.0)]
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert "text.corners" not in moved
    assert {"text.project.weight", "logit_scale"} <= moved


def test_plain_goes_on_after_loading(given, tmp_path):
    build, spec = worker_module().build, given.specs["odd"]
    batches = [Stream.local(Layout(spec, 1), 0, step).batch(step) for step in range(STEPS)]
    first = PlainEngine(build(given.config, spec), OPTIMIZATION)
    for step, batch in enumerate(batches[:2]):
        first.step(batch, 0.05 / (step + 1))
    first.save(str(tmp_path), 2)
    second = PlainEngine(build(given.config, spec, seed=1), OPTIMIZATION)
    assert second.load(str(tmp_path)) == 2
    for engine in (first, second):
        engine.step(batches[2], 0.05)
    close(second.weights(), first.weights(), 0)


def test_norms_biases_and_the_temperature_do_not_decay(given):
    model = worker_module().build(given.config, given.specs["odd"])
    decaying, others = build_optimizer(model, OPTIMIZATION).param_groups
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in others["params"]} == {name for name, p in model.named_parameters() if p.ndim < 2}
    assert "logit_scale" in {names[id(p)] for p in others["params"]}
