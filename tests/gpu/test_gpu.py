"""What only a GPU can show: bf16, NCCL, DeepSpeed's CUDA path, evaluation and checkpoints there. Run by `make test-gpu`.

Every test takes a device. On `cpu`, on any machine, it shows only that the test itself runs.
"""

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
from cornerstone.evaluation.tasks import EvaluationInputs
from cornerstone.evaluation.tasks.pair_task import encode_texts
from cornerstone.models.image_tower import build_image_tower
from cornerstone.recipes.lotlip import LotlipConfig
from cornerstone.recipes.recipe import Optimization
from cornerstone.recipes.towers import CornerText, ImageTower

pytestmark = pytest.mark.gpu
GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0


def devices(gpus: int) -> list:
    """The CPU, and a GPU if there are as many."""
    reason = "needs a CUDA GPU" if gpus == 1 else f"needs {gpus} CUDA GPUs, found {GPUS}"
    return ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(gpus > GPUS, reason=reason))]


SIZE, BATCH = 32, 8
STAGES, TIMES = {"cpu": (3,), "cuda": (0, 1, 2, 3)}, {"cpu": 6, "cuda": 20}
# With a large eps AdamW's updates follow the gradients' sizes, so that a wrong scale or clipping cannot hide behind a sign.
OPTIMIZATION = Optimization(steps=4, warmup_steps=0, learning_rate=0.01, eps=1e-2, clip_norm=0.5, weight_decay=0.1)
RATE = OPTIMIZATION.learning_rate


def _script(name: str):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


worker, loss_worker = _script("gpu_worker"), _script("loss_worker")


def run_processes(
    script: str, folder: Path, device: torch.device, arguments: list[list[str]], *, hide_gpus: bool = True
) -> list:
    """Start a script once per list of arguments; returns what each process has saved."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "LOCAL_RANK": "0"}
    if device.type == "cpu" and hide_gpus:
        environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    commands = [[sys.executable, script, str(folder), *more, device.type] for more in arguments]
    started = [subprocess.Popen(command, env=environment) for command in commands]
    try:
        assert [process.wait(timeout=280) for process in started] == [0] * len(started)
    finally:
        for process in started:
            process.kill()
    return [torch.load(folder / f"result-{rank}.pt") for rank in range(len(started))]


def close(found: dict, wanted: dict, tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}")


@pytest.fixture(scope="module", params=devices(1))
def device(request) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(scope="module", autouse=True)
def plain_arithmetic():
    """No TF32, to which cuDNN's convolutions round by default: the patch embedding would differ in the third digit.

    And one thread: the models are too small for more.
    """
    before = torch.backends.cudnn.allow_tf32, torch.get_num_threads()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(1)
    yield
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.set_num_threads(before[1])


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
def reference(given, device) -> dict:
    """The steps by PyTorch alone, in fp32, on the device."""
    return worker.steps(worker.plain(given.config, OPTIMIZATION, device), given.spec, RATE)


def test_fp32_steps_are_those_of_the_cpu(given, reference, device):
    cpu = worker.steps(worker.plain(given.config, OPTIMIZATION, torch.device("cpu")), given.spec, RATE)
    assert reference["losses"] == pytest.approx(cpu["losses"], rel=1e-3)
    assert reference["norms"] == pytest.approx(cpu["norms"], rel=1e-2)
    close(reference["weights"], cpu["weights"], 1e-3)


def test_bf16_steps_are_near_those_in_fp32(given, reference, device):
    engine = worker.plain(given.config, OPTIMIZATION, device, "bf16")
    found = worker.steps(engine, given.spec, RATE)
    assert all((p.dtype, p.device.type) == (torch.float32, device.type) for p in engine.model.parameters())
    assert all(math.isfinite(value) for value in [*found["losses"], *found["norms"]])
    assert found["losses"] == pytest.approx(reference["losses"], rel=0.05)
    assert found["losses"] != reference["losses"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_falls(given, device, precision):
    """On the same batch."""
    optimization = replace(OPTIMIZATION, learning_rate=1e-3, eps=1e-8)
    engine = worker.plain(given.config, optimization, device, precision)
    found = worker.repeated(engine, given.spec, optimization.learning_rate, TIMES[device.type])
    assert all(map(math.isfinite, found))
    assert found[-1] < 0.9 * found[0], found


def test_micro_batches_give_the_steps_of_the_whole_batch(given, reference, device):
    engine = worker.plain(given.config, OPTIMIZATION, device, micro_batch=worker.MICRO_BATCH)
    found = worker.steps(engine, given.spec, RATE)
    assert found["losses"] == pytest.approx(reference["losses"], rel=1e-4)
    assert found["norms"] == pytest.approx(reference["norms"], rel=1e-3)
    close(found["weights"], reference["weights"], 1e-4)


def test_dropout_is_the_same_in_both_passes(given, device):
    """The GPU has a random generator of its own, whose state the second pass restores."""
    config = replace(given.config, text=replace(given.config.text, dropout=0.3))
    engine, found = worker.plain(config, OPTIMIZATION, device, micro_batch=worker.MICRO_BATCH), []
    engine.model.train()
    forward = engine._forward
    engine._forward = lambda micro: found.append(forward(micro)) or found[-1]
    worker.repeated(engine, given.spec, RATE, 1)
    first, second = found[: len(found) // 2], found[len(found) // 2 :]
    assert len(first) == BATCH // worker.MICRO_BATCH
    assert (first[0].long_BMD - first[1].long_BMD).abs().max() > 1e-3
    for one, other in zip(first, second, strict=True):
        for name, value in one._asdict().items():
            torch.testing.assert_close(value, getattr(other, name).detach(), rtol=0, atol=1e-5, msg=name)


def test_a_checkpoint_is_saved_and_loaded(given, reference, device, tmp_path):
    first, second = (worker.plain(given.config, OPTIMIZATION, device, seed=seed) for seed in (0, 1))
    found = worker.resumed(first, second, given.spec, RATE, tmp_path / "checkpoint")
    assert found["losses"] == pytest.approx(reference["losses"][1:], rel=1e-4)
    close(found["weights"], reference["weights"], 1e-4)


@pytest.fixture(scope="module")
def zero(given, device, tmp_path_factory) -> dict:
    """By ZeRO stage, what one DeepSpeed worker gives."""
    folder = tmp_path_factory.mktemp("zero")
    stages = {"stages": STAGES[device.type]}
    (folder / "given.pkl").write_bytes(pickle.dumps(vars(given) | stages))
    (found,) = run_processes(worker.__file__, folder, device, [[]])
    assert found.keys() == set(STAGES[device.type])
    return found


@pytest.mark.timeout(300)
def test_one_deepspeed_worker_equals_pytorch_alone(zero, reference, device):
    for found in zero.values():
        assert torch.device(found["device"]).type == device.type
        for way in ("whole", "micro_batches"):
            assert found[way]["losses"] == pytest.approx(reference["losses"], rel=1e-4)
            assert found[way]["norms"] == pytest.approx(reference["norms"], rel=1e-3)
            close(found[way]["weights"], reference["weights"], 1e-4)


@pytest.mark.timeout(300)
def test_a_step_with_an_infinite_gradient_changes_nothing(zero, given):
    initial = worker.build(given.config, torch.device("cpu")).state_dict()
    for found in zero.values():
        assert found["skipped"]["skipped"] == 1
        close(found["skipped"]["weights"], {name: value.float() for name, value in initial.items()}, 0)


@pytest.mark.timeout(300)
def test_a_trained_tower_encodes_at_every_stage(zero, given, device):
    """At stage 3 its parameters are sharded, and evaluation needs whole ones."""
    model = worker.build(given.config, device)
    batch = Stream.local(Layout(given.spec, 1), 0, 0).batch(0).to(device)
    with torch.no_grad():
        wanted = model.encode_image(batch.image).cpu()
    for found in zero.values():
        torch.testing.assert_close(found["evaluated"], wanted, rtol=0, atol=1e-4)


@pytest.mark.timeout(300)
@pytest.mark.skipif(GPUS == 0, reason="needs a CUDA GPU that a worker on the CPU could take by mistake")
def test_a_worker_on_the_cpu_uses_no_gpu_that_it_sees(given, tmp_path):
    (tmp_path / "given.pkl").write_bytes(pickle.dumps(vars(given) | {"stages": (1,)}))
    (found,) = run_processes(worker.__file__, tmp_path, torch.device("cpu"), [[]], hide_gpus=False)
    assert found[1]["device"] == "cpu"
    assert all(math.isfinite(value) for value in found[1]["whole"]["losses"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stored_features_are_those_of_the_cpu(tiny_tower, device, precision):
    tower = build_image_tower(ImageTower(tiny_tower, size=SIZE)).lock()
    images = torch.randint(0, 256, (8, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = tower(images).pooled
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            found = tower.to(device)(images.to(device)).pooled.float().cpu()
    torch.testing.assert_close(found, wanted, rtol=0, atol={"fp32": 1e-4, "bf16": 0.1}[precision])


@pytest.mark.timeout(300)
def test_deepspeed_in_bf16_is_near_fp32(zero, reference):
    for found in zero.values():
        assert all(math.isfinite(value) for value in [*found["bf16"]["losses"], *found["bf16"]["norms"]])
        assert found["bf16"]["losses"] == pytest.approx(reference["losses"], rel=0.05)
        assert found["bf16"]["losses"] != found["whole"]["losses"]


@pytest.mark.timeout(300)
def test_a_deepspeed_checkpoint_is_loaded(zero):
    for found in zero.values():
        assert found["resumed"]["losses"] == pytest.approx(found["whole"]["losses"][1:], rel=1e-4)
        close(found["resumed"]["weights"], found["whole"]["weights"], 1e-4)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", devices(2))
def test_shares_on_two_ranks_give_the_gradients_of_the_whole(tmp_path, name):
    """Over NCCL with two GPUs: the gather's gradient is reduce-scattered if the shares are even, otherwise all-reduced."""
    wanted = loss_worker.losses(torch.device("cpu"), 0, 8, uneven=False)
    for found in run_processes(loss_worker.__file__, tmp_path, torch.device(name), [["0"], ["1"]]):
        for way, shared in found.items():
            assert shared.keys() == wanted.keys() - ({"lotlip"} if way == "uneven" else set())
            for kind, (loss, gradients) in shared.items():
                torch.testing.assert_close(loss, wanted[kind][0], rtol=1e-10, atol=1e-12, msg=f"{kind}, {way}")
                for gradient, whole in zip(gradients, wanted[kind][1], strict=True):
                    assert whole.abs().max() > 1e-3
                    torch.testing.assert_close(gradient, whole, rtol=1e-8, atol=1e-10, msg=f"{kind}, {way}")


def test_evaluation_gives_the_features_and_metrics_of_the_cpu(given, pairs_folder, device):
    sets, train = open_sets((pairs_folder,)), given.spec.train
    evaluations = tuple(one.source(EvaluationInputs(DecodedImages(Transform(SIZE)), train.texts, "")) for one in sets)
    layout = Layout(StreamSpec(train, given.spec.plan, 1, evaluations), 1)
    model = worker.build(given.config, device).eval()

    def batches() -> list:
        stream = Stream.local(layout, 0, 0)
        stream.batch(0)
        return list(stream.evaluation(0))

    def evaluated(where: torch.device) -> tuple:
        model.to(where)
        _, batch = batches()[0]
        with torch.no_grad():
            images = model.encode_image(batch.image.to(where)).cpu()
            texts = encode_texts(model, batch.text_ids, batch.text_length, where)
        return images, texts, metrics_of(evaluate(model, batches(), sets, train.texts.open(), where))

    (*there, metrics), (*here, wanted) = evaluated(device), evaluated(torch.device("cpu"))
    for found, features in zip(there, here, strict=True):
        torch.testing.assert_close(found, features, rtol=0, atol=1e-4)
    assert metrics.keys() == wanted.keys()
    # In percent: two of fifty rows may change places if their scores are nearly equal.
    assert metrics == pytest.approx(wanted, abs=4.0)
