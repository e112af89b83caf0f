"""What the GPU tests run, on a given device; as a program, the process of those that need DeepSpeed.

gpu_worker.py FOLDER cuda|cpu      DeepSpeed at some ZeRO stages, one process
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cornerstone.data.layout import Layout, StreamSpec
from cornerstone.data.stream import Stream
from cornerstone.models.image_tower import build_image_tower
from cornerstone.models.lotlip import Lotlip
from cornerstone.models.method import Inputs
from cornerstone.recipes.lotlip import LotlipConfig
from cornerstone.recipes.recipe import Optimization
from cornerstone.training.deepspeed_engine import DeepSpeedEngine
from cornerstone.training.engine import PlainEngine, Precision

VOCABULARY, STEPS, MICRO_BATCH = 512, 3, 4


def build(config: LotlipConfig, device: torch.device, seed: int = 0) -> Lotlip:
    """The method with a trained image tower; its weights are drawn on the CPU, so they are the same on every device."""
    tower = build_image_tower(config.image, seed=seed)
    return Lotlip.build(config, Inputs(VOCABULARY, tower.width, tower), seed).to(device)


def plain(
    config: LotlipConfig,
    optimization: Optimization,
    device: torch.device,
    precision: Precision = "fp32",
    micro_batch: int = 0,
    seed: int = 0,
) -> PlainEngine:
    """The method under PyTorch alone."""
    return PlainEngine(build(config, device, seed), optimization, precision, micro_batch)


def steps(engine: Any, spec: StreamSpec, learning_rate: float, start: int = 0) -> dict[str, Any]:
    """Loss, gradient norm and weights of the steps from `start` to STEPS."""
    stream = Stream.local(Layout(spec, 1), 0, start)
    reports = [
        engine.step(stream.batch(step).to(engine.device), learning_rate)  # as the loop does
        for step in range(start, STEPS)
    ]
    return {
        "losses": [float(report.loss) for report in reports],
        "norms": [float(report.grad_norm) for report in reports],
        "weights": {name: value.detach().float().cpu() for name, value in engine.weights().items()},
    }


def repeated(engine: Any, spec: StreamSpec, learning_rate: float, times: int) -> list[float]:
    """The losses of as many steps on the first batch."""
    batch = Stream.local(Layout(spec, 1), 0, 0).batch(0).to(engine.device)
    return [float(engine.step(batch, learning_rate).loss) for _ in range(times)]


def resumed(first: Any, second: Any, spec: StreamSpec, learning_rate: float, folder: Path) -> dict[str, Any]:
    """`steps` by `first`, whose checkpoint after one step `second` loads and resumes."""
    folder.mkdir()
    first.step(Stream.local(Layout(spec, 1), 0, 0).batch(0).to(first.device), learning_rate)
    first.save(str(folder), 1)
    return steps(second, spec, learning_rate, start=second.load(str(folder)))


def skipped(engine: DeepSpeedEngine, spec: StreamSpec, learning_rate: float) -> dict[str, Any]:
    """A step with an infinite gradient, and the features of a whole module after it."""
    batch = Stream.local(Layout(spec, 1), 0, 0).batch(0).to(engine.device)
    hook = engine.engine.module.logit_scale.register_hook(lambda gradient: gradient * torch.inf)
    report = engine.step(batch, learning_rate)
    hook.remove()
    return {"skipped": report.skipped, "weights": {n: v.detach().float().cpu() for n, v in engine.weights().items()}}


def evaluated(engine: DeepSpeedEngine, config: LotlipConfig, spec: StreamSpec) -> torch.Tensor:
    """Image features of a whole module, as evaluation makes them: at stage 3 with a tower of its own."""
    batch = Stream.local(Layout(spec, 1), 0, 0).batch(0).to(engine.device)
    with torch.no_grad():
        return engine.whole_module(lambda: build(config, engine.device, seed=9)).encode_image(batch.image).cpu()


def run_zero(folder: Path, device: torch.device) -> dict[int, dict[str, Any]]:
    """By stage: all steps, all steps with micro-batches, in bf16, and with a checkpoint after the first step."""
    given = pickle.loads((folder / "given.pkl").read_bytes())
    config, spec, optimization = given["config"], given["spec"], given["optimization"]
    results = {}
    for stage in given["stages"]:

        def engine(seed: int = 0, stage: int = stage, **options: Any) -> DeepSpeedEngine:
            model = build(config, device, seed)
            return DeepSpeedEngine(model, optimization, stage, Layout(spec, 1).share, device=device, **options)

        def run(**options: Any) -> dict[str, Any]:
            return steps(engine(**options), spec, optimization.learning_rate)

        results[stage] = {
            "whole": run(),
            "micro_batches": run(micro_batch=MICRO_BATCH),
            "bf16": run(precision="bf16"),
            "resumed": resumed(
                engine(), engine(seed=1), spec, optimization.learning_rate, folder / f"checkpoint-{stage}"
            ),
            "skipped": skipped(engine(), spec, optimization.learning_rate),
            "evaluated": evaluated(engine(), config, spec),
            "device": str(device),
        }
    return results


def main(folder: Path, device: str) -> None:
    """Join a group of one, run, and save the result."""
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False  # as in the tests
    backend = {"cuda": "nccl", "cpu": "gloo"}[device]
    dist.init_process_group(backend, init_method=f"file://{folder}/meeting", rank=0, world_size=1)
    place = torch.device(device, 0) if device == "cuda" else torch.device(device)
    torch.save(run_zero(folder, place), folder / "result-0.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
