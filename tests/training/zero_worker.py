"""One worker under DeepSpeed: three steps at every ZeRO stage, a checkpoint, one more step, and the same step after loading.

zero_worker.py FOLDER RANK 2     trains and saves
zero_worker.py FOLDER 0 1        loads what two workers saved, and goes on
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from cornerstone.data.layout import Layout, StreamSpec
from cornerstone.data.stream import Stream
from cornerstone.errors import CornerstoneError
from cornerstone.models.lotlip import Lotlip
from cornerstone.models.method import Inputs
from cornerstone.recipes import LotlipConfig
from cornerstone.recipes.recipe import Optimization
from cornerstone.training.deepspeed_engine import DeepSpeedEngine

STAGES = range(4)
STEPS = 3
VOCABULARY = 4096
"""Of which the texts use little: a weight of more than 100,000 numbers, below which ZeRO-3 shards nothing."""


def build(config: LotlipConfig, spec: StreamSpec, seed: int = 0) -> Lotlip:
    return Lotlip.build(config, Inputs(VOCABULARY, spec.train.images.width), seed)


def recorded_gradients(engine: DeepSpeedEngine) -> list[dict[str, torch.Tensor]]:
    """A list that gets the whole gradients, before clipping, of every step from now on."""
    from deepspeed.utils import safe_get_full_grad

    found, step = [], engine.engine.step

    def look_and_step() -> None:
        if engine.engine.is_gradient_accumulation_boundary():
            found.append({name: safe_get_full_grad(p).clone() for name, p in engine.engine.module.named_parameters()})
        step()

    engine.engine.step = look_and_step
    return found


def trained(folder: Path, stage: int, config: LotlipConfig, spec: StreamSpec, optimization: Optimization) -> dict:
    """What two workers give, as this one sees it."""
    layout, rate = Layout(spec, dist.get_world_size()), optimization.learning_rate

    def engine(seed: int) -> DeepSpeedEngine:
        return DeepSpeedEngine(build(config, spec, seed), optimization, stage, layout.share)

    first = engine(seed=0)
    gradients = recorded_gradients(first)
    stream = Stream.local(layout, dist.get_rank(), 0)
    reports = [first.step(stream.batch(step), rate) for step in range(STEPS)]
    after, gradients = first.weights(), list(gradients)
    after = {name: value.clone() for name, value in after.items()}
    first.save(str(folder), STEPS)
    dist.barrier()
    last = stream.batch(STEPS)
    first.step(last, rate)
    second = engine(seed=1)
    step = second.load(str(folder))
    second.step(last, rate)
    whole = second.whole_module(lambda: build(config, spec, seed=2)).state_dict()
    return {
        "losses": [report.parts for report in reports],
        "grad_norms": [float(report.grad_norm) for report in reports],
        "cached": cached_steps(stage, config, spec, optimization),
        "bf16": {reduction: in_bf16(stage, config, spec, optimization, reduction) for reduction in ("fp32", "bf16")},
        "skipped": a_skipped_step(stage, config, spec, optimization),
        "gradients": gradients,
        "after": after,
        "step": step,
        "went_on": {name: value.clone() for name, value in first.weights().items()},
        "loaded": second.weights(),
        "whole": {name: value.clone() for name, value in whole.items()},
    }


def cached_steps(stage: int, config: LotlipConfig, spec: StreamSpec, optimization: Optimization) -> dict:
    """The same steps with micro-batches of 2 rows: exact gradient caching in two passes."""
    layout = Layout(spec, dist.get_world_size())
    engine = DeepSpeedEngine(build(config, spec), optimization, stage, layout.share, micro_batch=2)
    stream = Stream.local(layout, dist.get_rank(), 0)
    reports = [engine.step(stream.batch(step), optimization.learning_rate) for step in range(STEPS)]
    return {
        "after": {name: value.clone() for name, value in engine.weights().items()},
        "losses": [report.parts for report in reports],
        "grad_norms": [float(report.grad_norm) for report in reports],
    }


def in_bf16(stage: int, config: LotlipConfig, spec: StreamSpec, optimization: Optimization, reduction: str) -> dict:
    """One step in bf16: the gradients that the workers share, and the weights after it."""
    layout = Layout(spec, dist.get_world_size())
    model = build(config, spec)
    engine = DeepSpeedEngine(model, optimization, stage, layout.share, "bf16", gradient_reduction=reduction)
    gradients = recorded_gradients(engine)
    report = engine.step(Stream.local(layout, dist.get_rank(), 0).batch(0), optimization.learning_rate)
    return {
        "gradients": gradients[0],
        "norm": float(report.grad_norm),
        "weights": {name: value.clone() for name, value in engine.weights().items()},
    }


def a_skipped_step(stage: int, config: LotlipConfig, spec: StreamSpec, optimization: Optimization) -> dict:
    """A step, one with an infinite gradient and a finite loss on the first worker, and one more."""
    layout = Layout(spec, dist.get_world_size())
    engine = DeepSpeedEngine(build(config, spec), optimization, stage, layout.share)
    stream = Stream.local(layout, dist.get_rank(), 0)
    reports, weights = [], []
    for step in range(3):
        hook = None
        if step == 1 and dist.get_rank() == 0:
            hook = engine.engine.module.logit_scale.register_hook(lambda gradient: gradient * torch.inf)
        reports.append(engine.step(stream.batch(step), optimization.learning_rate))
        if hook is not None:
            hook.remove()
        weights.append({name: value.clone() for name, value in engine.weights().items()})
    return {"skipped": [r.skipped for r in reports], "losses": [float(r.loss) for r in reports], "weights": weights}


def refusal(engine: DeepSpeedEngine, folder: Path) -> str:
    """Why it does not load."""
    try:
        engine.load(str(folder))
    except CornerstoneError as error:
        return str(error)
    return ""


def loaded_alone(folder: Path, stage: int, config: LotlipConfig, spec: StreamSpec, optimization: Optimization) -> dict:
    """What one worker makes of a checkpoint of two."""
    layout = Layout(spec, 1)
    engine = DeepSpeedEngine(build(config, spec, seed=1), optimization, stage, layout.share)
    if stage == 3:
        return {"refused": refusal(engine, folder)}
    step = engine.load(str(folder))
    engine.step(Stream.local(layout, 0, step).batch(step), optimization.learning_rate)
    other = DeepSpeedEngine(build(config, spec, seed=1), optimization, (stage + 1) % 4, layout.share)
    return {
        "refused": refusal(other, folder),
        "weights": {name: value.clone() for name, value in engine.weights().items()},
    }


def main(folder: Path, rank: int, workers: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting-{workers}", rank=rank, world_size=workers)
    given = pickle.loads((folder / "given.pkl").read_bytes())
    results = {}
    for batch, spec in given["specs"].items():
        for stage in STAGES:
            kept = folder / f"checkpoint-{batch}-{stage}"
            kept.mkdir(exist_ok=True)
            run = trained if workers > 1 else loaded_alone
            results[batch, stage] = run(kept, stage, given["config"], spec, given["optimization"])
    torch.save(results, folder / f"result-{workers}-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
