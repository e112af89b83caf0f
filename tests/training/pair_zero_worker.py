"""One of two workers that train a method on pairs for two steps under DeepSpeed at some ZeRO stages.

pair_zero_worker.py FOLDER KIND RANK
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.append(str(Path(__file__).parents[1] / "support"))
import tiny_pairs as tiny

from cornerstone.recipes.recipe import Optimization
from cornerstone.training.deepspeed_engine import DeepSpeedEngine

OPTIMIZATION = Optimization(steps=4, warmup_steps=0, learning_rate=0.02, eps=1e-2, clip_norm=0.5, batch_size=12)
ROWS = 12
CASES = ((0, 0), (3, 0), (3, 4))
"""ZeRO stages, and micro-batches of so many rows."""


def main(folder: Path, kind: str, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found, share = {}, ROWS // 2
    for stage, micro in CASES:
        engine = DeepSpeedEngine(tiny.method(kind=kind, wide=True), OPTIMIZATION, stage, share, micro_batch=micro)
        shares = [tiny.some(ROWS, seed=step).rows(rank * share, (rank + 1) * share) for step in range(2)]
        reports = [engine.step(one, 0.02) for one in shares]
        found[stage, micro] = {
            "norms": [float(report.grad_norm) for report in reports],
            "losses": [float(report.loss) for report in reports],
            "weights": {name: value.clone() for name, value in engine.weights().items()},
        }
    torch.save(found, folder / f"result-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
