"""One process of the GPU tests that need `torch.distributed`.

gpu_worker.py FOLDER 0 1 zero        DeepSpeed at every ZeRO stage on one GPU
gpu_worker.py FOLDER RANK 2 gather   the gather and its gradient, one process a GPU

NCCL on GPUs, gloo elsewhere.
"""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cornerstone.data.layout import Layout, StreamSpec
from cornerstone.data.stream import Stream
from cornerstone.models.image_tower import build_image_tower
from cornerstone.models.lotlip import Lotlip
from cornerstone.models.method import Inputs
from cornerstone.objectives.gather import gather
from cornerstone.recipes.lotlip import LotlipConfig
from cornerstone.recipes.recipe import Optimization
from cornerstone.training.deepspeed_engine import DeepSpeedEngine
from cornerstone.training.engine import PlainEngine, Precision, pick_device

STAGES = range(4)
VOCABULARY, STEPS, ROWS, WIDTH = 512, 3, 3, 5


def build(config: LotlipConfig, seed: int = 0) -> Lotlip:
    """The method, its image tower trained too, on this process's device."""
    tower = build_image_tower(config.image, seed=seed)
    return Lotlip.build(config, Inputs(VOCABULARY, tower.width, tower), seed).to(pick_device())


def steps(engine: Any, spec: StreamSpec, learning_rate: float, start: int = 0) -> dict[str, Any]:
    """Loss, gradient norm and weights of the steps from `start` to STEPS."""
    stream = Stream.local(Layout(spec, 1), 0, start)
    reports = [
        engine.step(stream.batch(step).to(engine.device), learning_rate)  # as the loop does
        for step in range(start, STEPS)
    ]
    return {
        "losses": [float(sum(report.parts.values())) for report in reports],
        "norms": [float(report.grad_norm) for report in reports],
        "weights": {name: value.detach().float().cpu() for name, value in engine.weights().items()},
    }


def plain(config: LotlipConfig, optimization: Optimization, precision: Precision = "fp32") -> PlainEngine:
    """The method under PyTorch alone."""
    return PlainEngine(build(config), optimization, precision)


def run_zero(folder: Path) -> dict[int, dict[str, Any]]:
    """By stage: all steps, and all steps with a checkpoint after the first one, loaded by another engine."""
    given = pickle.loads((folder / "given.pkl").read_bytes())
    config, spec, optimization = given["config"], given["spec"], given["optimization"]
    results = {}
    for stage in STAGES:

        def engine(seed: int, stage: int = stage) -> DeepSpeedEngine:
            return DeepSpeedEngine(build(config, seed), optimization, stage, Layout(spec, 1).share)

        whole = steps(engine(0), spec, optimization.learning_rate)
        first, second = engine(0), engine(1)
        stream = Stream.local(Layout(spec, 1), 0, 0)
        first.step(stream.batch(0).to(first.device), optimization.learning_rate)
        checkpoint = folder / f"checkpoint-{stage}"
        checkpoint.mkdir()
        first.save(str(checkpoint), 1)
        resumed = steps(second, spec, optimization.learning_rate, start=second.load(str(checkpoint)))
        results[stage] = {"whole": whole, "resumed": resumed, "device": str(first.device)}
    return results


def share_of(rank: int) -> Tensor:
    """A worker's rows."""
    return torch.arange(ROWS * WIDTH, dtype=torch.float32).reshape(ROWS, WIDTH) + 100 * rank


def run_gather(rank: int, workers: int) -> dict[str, Tensor]:
    """What a worker gathers, and the gradient of its rows; worker w weighs row i of all with (w + 1) · i."""
    local = share_of(rank).to(pick_device()).requires_grad_()
    everything = gather(local)
    weights = (rank + 1) * torch.arange(workers * ROWS, device=local.device)
    (everything * weights[:, None]).sum().backward()
    return {"gathered": everything.detach().cpu(), "gradient": local.grad.cpu()}


def main(folder: Path, rank: int, workers: int, what: str) -> None:
    """Join the group, run, and save what came out."""
    os.environ["LOCAL_RANK"] = str(rank)
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/meeting", rank=rank, world_size=workers)
    result = run_zero(folder) if what == "zero" else run_gather(rank, workers)
    torch.save(result, folder / f"result-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
