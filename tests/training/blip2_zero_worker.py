"""One of two workers that train BLIP-2 for two steps under DeepSpeed at some ZeRO stages.

blip2_zero_worker.py FOLDER RANK
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.append(str(Path(__file__).parents[1] / "support"))
import tiny_blip2 as tiny

from cornerstone.recipes.recipe import Optimization
from cornerstone.training.deepspeed_engine import DeepSpeedEngine

OPTIMIZATION = Optimization(steps=4, warmup_steps=0, learning_rate=0.01, eps=1e-2, clip_norm=0.5, batch_size=6)
ROWS, SHARE = 6, 3
STAGES = (1, 3)


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    share, found = tiny.batch().rows(rank * SHARE, (rank + 1) * SHARE), {}
    for stage in STAGES:
        engine = DeepSpeedEngine(tiny.method(wide=True), OPTIMIZATION, stage, SHARE)
        reports = [engine.step(share, 0.01) for _ in range(2)]
        found[stage] = {
            "norms": [float(report.grad_norm) for report in reports],
            "losses": [float(report.loss) for report in reports],
            "weights": {name: value.clone() for name, value in engine.weights().items()},
        }
    torch.save(found, folder / f"result-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
