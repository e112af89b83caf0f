"""What only a GPU can show: bf16, NCCL, DeepSpeed's CUDA path, evaluation and checkpoints there. Run by `make test-gpu`."""

from __future__ import annotations

import importlib.util
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sources import pair_source

from cornerstone.data.images import Transform
from cornerstone.data.layout import Layout, StreamSpec
from cornerstone.data.pairs.image_input import DecodedImages
from cornerstone.data.plan import Plan
from cornerstone.data.stream import Stream
from cornerstone.evaluation.evaluator import evaluate
from cornerstone.evaluation.judged import metrics_of
from cornerstone.evaluation.sets import open_sets
from cornerstone.recipes.lotlip import LotlipConfig
from cornerstone.recipes.recipe import Optimization
from cornerstone.recipes.towers import CornerText, ImageTower

GPUS = torch.cuda.device_count()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch finds no CUDA device"),
]
SIZE, BATCH = 32, 8
# With a large eps AdamW's updates follow the gradients' sizes, so that a wrong scale or clipping cannot hide behind a sign.
OPTIMIZATION = Optimization(steps=4, warmup_steps=0, learning_rate=0.01, eps=1e-2, clip_norm=0.5, weight_decay=0.1)


def _worker_module():
    spec = importlib.util.spec_from_file_location("gpu_worker", Path(__file__).with_name("gpu_worker.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


worker = _worker_module()


def run_workers(folder: Path, workers: int, what: str) -> list:
    """Start the script in one process a worker; what each has saved."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, worker.__file__, str(folder)]
    started = [subprocess.Popen([*command, str(rank), str(workers), what], env=environment) for rank in range(workers)]
    try:
        assert [process.wait(timeout=280) for process in started] == [0] * workers
    finally:
        for process in started:
            process.kill()
    return [torch.load(folder / f"result-{rank}.pt") for rank in range(workers)]


def close(found: dict, wanted: dict, tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}")


@pytest.fixture(scope="module")
def given(pairs_folder, wordpiece, tiny_tower) -> SimpleNamespace:
    """A small LoTLIP with a trained image tower, and batches of decoded images."""
    config = LotlipConfig(
        image=ImageTower(tiny_tower, locked=False, size=SIZE),
        text=CornerText(name="", width=32, layers=2, heads=2, corner_tokens=2, token_limit=32),
    )
    train = pair_source(pairs_folder, wordpiece.read_text(), Transform(SIZE, train=True))
    plan = Plan(train.parts, BATCH, seed=1)
    return SimpleNamespace(config=config, spec=StreamSpec(train, plan, worker.STEPS), optimization=OPTIMIZATION)


@pytest.fixture(scope="module")
def reference(given) -> dict:
    """The steps by PyTorch alone, in fp32."""
    return worker.steps(worker.plain(given.config, OPTIMIZATION), given.spec, OPTIMIZATION.learning_rate)


def test_bf16_steps_are_near_those_in_fp32(given, reference):
    engine = worker.plain(given.config, OPTIMIZATION, "bf16")
    found = worker.steps(engine, given.spec, OPTIMIZATION.learning_rate)
    assert all(p.dtype == torch.float32 for p in engine.model.parameters())
    assert all(math.isfinite(value) for value in [*found["losses"], *found["norms"]])
    assert found["losses"] == pytest.approx(reference["losses"], rel=0.05)
    assert found["losses"] != reference["losses"]
    assert engine.model.logit_scale.device.type == worker.pick_device().type


@pytest.mark.skipif(GPUS < 2, reason=f"needs two GPUs for NCCL, found {GPUS}")
def test_the_gather_over_nccl(tmp_path):
    """Every worker has all rows in rank order; a row's gradient is the sum of what all workers' losses say of it."""
    workers = 2
    everything = torch.cat([worker.share_of(rank) for rank in range(workers)])
    weights = sum(rank + 1 for rank in range(workers)) * torch.arange(float(workers * worker.ROWS))
    for rank, found in enumerate(run_workers(tmp_path, workers, "gather")):
        torch.testing.assert_close(found["gathered"], everything, rtol=0, atol=0)
        own = weights[rank * worker.ROWS : (rank + 1) * worker.ROWS, None].expand(-1, worker.WIDTH)
        torch.testing.assert_close(found["gradient"], own, rtol=0, atol=0)


@pytest.fixture(scope="module")
def zero(given, tmp_path_factory) -> dict:
    """By ZeRO stage, what one DeepSpeed worker gives."""
    folder = tmp_path_factory.mktemp("zero")
    (folder / "given.pkl").write_bytes(pickle.dumps(vars(given)))
    return run_workers(folder, 1, "zero")[0]


@pytest.mark.parametrize("stage", worker.STAGES)
def test_one_deepspeed_worker_equals_pytorch_alone(zero, reference, stage):
    found = zero[stage]["whole"]
    assert zero[stage]["device"] == str(worker.pick_device())
    assert found["losses"] == pytest.approx(reference["losses"], rel=1e-4)
    assert found["norms"] == pytest.approx(reference["norms"], rel=1e-3)
    close(found["weights"], reference["weights"], 1e-4)


@pytest.mark.parametrize("stage", worker.STAGES)
def test_a_deepspeed_checkpoint_is_loaded(zero, stage):
    found = zero[stage]
    assert found["resumed"]["losses"] == pytest.approx(found["whole"]["losses"][1:], rel=1e-4)
    close(found["resumed"]["weights"], found["whole"]["weights"], 1e-4)


def test_a_checkpoint_is_saved_and_loaded(given, reference, tmp_path):
    first = worker.plain(given.config, OPTIMIZATION)
    stream = Stream.local(Layout(given.spec, 1), 0, 0)
    first.step(stream.batch(0).to(first.device), OPTIMIZATION.learning_rate)
    first.save(str(tmp_path), 1)
    second = worker.PlainEngine(worker.build(given.config, seed=1), OPTIMIZATION)
    assert second.load(str(tmp_path)) == 1
    resumed = worker.steps(second, given.spec, OPTIMIZATION.learning_rate, start=1)
    assert resumed["losses"] == pytest.approx(reference["losses"][1:], rel=1e-4)
    close(resumed["weights"], reference["weights"], 1e-4)


def test_evaluation_on_the_gpu_gives_the_metrics_of_the_cpu(given, pairs_folder):
    sets, train = open_sets((pairs_folder,)), given.spec.train
    evaluations = tuple(one.source(DecodedImages(Transform(SIZE)), train.texts) for one in sets)
    layout = Layout(StreamSpec(train, given.spec.plan, 1, evaluations), 1)
    model = worker.build(given.config).eval()

    def metrics(device: torch.device) -> dict[str, float]:
        stream = Stream.local(layout, 0, 0)
        stream.batch(0)
        return metrics_of(evaluate(model.to(device), stream.evaluation(0), sets, train.texts.open(), device))

    there, here = metrics(worker.pick_device()), metrics(torch.device("cpu"))
    assert there.keys() == here.keys()
    # In percent: two of fifty rows may change places where scores are nearly equal.
    assert there == pytest.approx(here, abs=4.0)
