"""Every method with a tower of its own: one worker with the whole batch, and several with a share each.

`python -m shares gradients|zero FOLDER RANK WORKERS` is one worker. All methods take their turn in the same processes, since
importing them takes longer than their steps.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import tiny_blip2
import tiny_documents
import tiny_pairs
import torch
import torch.distributed as dist

import cornerstone.models  # noqa: F401 - repairs torchvision before timm imports it
from cornerstone.data.pairs.batch import PairBatch
from cornerstone.data.source import MASKED
from cornerstone.recipes.recipe import Optimization

OPTIMIZATION = Optimization(steps=4, warmup_steps=0, learning_rate=0.02, eps=1e-2, clip_norm=0.5)
STEPS = 2
Found = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A method and its batches. A `wide` one has weights of more than 100,000 numbers, below which ZeRO-3 shards nothing."""

    method: Callable[[bool], Any]
    share: Callable[[int, int], Any]
    """By rank and number of workers, in float64: for gradients. (0, 1) is the whole."""
    step: Callable[[int, int, int], Any]
    """By step, rank and number of workers: for training under ZeRO on two workers."""
    zero: tuple[tuple[int, int], ...] = ()
    """ZeRO stages with their micro-batches."""
    rate: float = 0.02
    used: tuple[str, ...] = ()
    """Parameters whose gradient must not vanish; `ALL`: every one but a key's bias, which no softmax depends on."""
    tolerance: float = 1e-8
    """Relative, of gradients."""


def _documents(kind: str) -> Case:
    rows, images = 6, (0, 0, 0, 3, 1, 2)  # at ZeRO the first worker has no image
    ends = {1: (0, rows), 2: (0, 1, rows), 3: (0, 1, 4, rows)}  # the first worker's only document has no image

    def share(rank: int, workers: int) -> Any:
        return tiny_documents.double(tiny_documents.some(rows)).rows(*ends[workers][rank : rank + 2])

    def step(number: int, rank: int, workers: int) -> Any:
        each = rows // workers
        return tiny_documents.some(rows, seed=number, images=images).rows(rank * each, (rank + 1) * each)

    stages = (0, 1, 2, 3) if kind == "lcl" else (0, 3)  # the others differ from LCL in what ZeRO-3 has to gather
    zero = tuple((stage, micro) for stage in stages for micro in (0, 2))
    used = ("logit_scale", "visual.model.patch_embed.proj.weight")
    return Case(lambda wide: tiny_documents.method(kind=kind, wide=wide), share, step, zero, used=used)


def _pairs(kind: str) -> Case:
    rows = 12  # of three workers' rows one in four, less and more have no caption: the counts of targets differ

    def share(rank: int, workers: int) -> Any:
        each = rows // workers
        batch = tiny_pairs.double(tiny_pairs.some(rows)).rows(rank * each, (rank + 1) * each)
        raw, long = (int(lengths.max()) for lengths in (batch.raw_length, batch.long_length))
        return replace(batch, raw_ids=batch.raw_ids[:, :raw], long_ids=batch.long_ids[:, :long])

    def step(number: int, rank: int, workers: int) -> Any:
        each = rows // workers
        return tiny_pairs.some(rows, seed=number).rows(rank * each, (rank + 1) * each)

    zero = ((0, 0), (3, 0), (3, 4)) if kind in ("coca", "filip") else ()
    used = ("logit_scale", "visual.model.patch_embed.proj.weight", "head.weight")
    tolerance = 1e-5 if kind == "lotlip-t5" else 1e-8  # transformers computes T5's norm in float32
    return Case(lambda wide: tiny_pairs.method(kind=kind, wide=wide), share, step, zero, used=used, tolerance=tolerance)


def _blip2() -> Case:
    """With texts of other lengths, the same rows and the same texts on different workers, and masked rows."""

    def share(rank: int, workers: int) -> PairBatch:
        each = -(-tiny_blip2.ROWS // workers)
        mine = tiny_blip2.batch().rows(rank * each, min((rank + 1) * each, tiny_blip2.ROWS))
        missing = each - len(mine)  # filled with masked rows as the layout fills them
        filled = {
            f.name: torch.cat([x, torch.zeros_like(x[:1]).expand(missing, *x.shape[1:])])
            for f in fields(mine)
            if isinstance(x := getattr(mine, f.name), torch.Tensor)
        }
        filled["row"][len(mine) :] = MASKED
        return tiny_blip2.double(replace(mine, **filled))

    def step(number: int, rank: int, workers: int) -> PairBatch:
        each = 6 // workers
        return tiny_blip2.batch().rows(rank * each, (rank + 1) * each)

    return Case(lambda wide: tiny_blip2.method(wide=wide), share, step, ((1, 0), (3, 0)), rate=0.01, used=("ALL",))


CASES: dict[str, Case] = {
    **{kind: _documents(kind) for kind in tiny_documents.KINDS},
    **{kind: _pairs(kind) for kind in tiny_pairs.KINDS},
    "blip2": _blip2(),
}


def backward(case: Case, rank: int, workers: int) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """The parts of the loss and its reports on a share, and every parameter's gradient."""
    model, batch = case.method(False).double(), case.share(rank, workers)
    losses = model.losses(model(batch), batch)
    sum(losses.parts.values()).backward()
    parts = [*losses.parts.values(), *losses.reports.values()]
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return [part.detach().double() for part in parts], gradients


def trained(engine: Any, case: Case, rank: int, workers: int) -> Found:
    """What an engine's steps report, and the weights after them."""
    reports = [engine.step(case.step(number, rank, workers), case.rate) for number in range(STEPS)]
    return {
        "norms": [float(report.grad_norm) for report in reports],
        "losses": [float(report.loss) for report in reports],
        "weights": {name: value.clone() for name, value in engine.weights().items()},
    }


def together(mode: str, folder: Path, workers: int) -> None:
    """Run so many workers to their end. What they found lies in the folder, by the method's name."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LOCAL_RANK": "0", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "shares", mode, str(folder)]
    started = [subprocess.Popen([*command, str(rank), str(workers)], env=environment) for rank in range(workers)]
    try:
        for process in started:
            process.wait(timeout=280)
    finally:
        for process in started:
            process.kill()


def found(folder: Path, kind: str, rank: int = 0) -> Any:
    """What a worker found of a method; AssertionError if it ended before."""
    file = folder / f"{kind}-{rank}.pt"
    assert file.exists(), f"the workers ended before {kind}: see their output"
    return torch.load(file)


def _gradients(kind: str, case: Case, folder: Path, rank: int, workers: int) -> None:
    parts, gradients = backward(case, rank, workers)
    for value in [*parts, *gradients.values()]:
        dist.all_reduce(value)
        value /= workers
    if rank == 0:
        torch.save((parts, gradients), folder / f"{kind}-0.pt")


def _zero(kind: str, case: Case, folder: Path, rank: int, workers: int) -> None:
    from cornerstone.training.deepspeed_engine import DeepSpeedEngine

    results = {}
    for stage, micro in case.zero:
        rows = len(case.step(0, rank, workers))
        engine = DeepSpeedEngine(case.method(True), OPTIMIZATION, stage, rows, micro_batch=micro)
        results[stage, micro] = trained(engine, case, rank, workers)
    torch.save(results, folder / f"{kind}-{rank}.pt")


def main(mode: str, folder: Path, rank: int, workers: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=workers)
    for kind, case in CASES.items():
        (_gradients if mode == "gradients" else _zero)(kind, case, folder, rank, workers)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
