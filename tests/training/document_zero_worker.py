"""One of two workers that train a method on documents for two steps under DeepSpeed at some ZeRO stages.

document_zero_worker.py FOLDER KIND RANK
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.append(str(Path(__file__).parents[1] / "support"))
import tiny_documents as tiny

from cornerstone.recipes.recipe import Optimization
from cornerstone.training.deepspeed_engine import DeepSpeedEngine

OPTIMIZATION = Optimization(steps=4, warmup_steps=0, learning_rate=0.02, eps=1e-2, clip_norm=0.5, batch_size=6)
ROWS = 6
ENDS = ((0, 3), (3, 6))
IMAGES = (0, 0, 0, 3, 1, 2)
"""Of each document: the first worker has none."""
STAGES = {"lcl": (0, 1, 2, 3)}
OF_OTHERS = (0, 3)
"""The other methods differ from LCL in what ZeRO-3 has to gather."""
MICRO = (0, 2)


def stages(kind: str) -> tuple[int, ...]:
    return STAGES.get(kind, OF_OTHERS)


def main(folder: Path, kind: str, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {}
    for stage in stages(kind):
        for micro in MICRO:
            model = tiny.method(kind=kind, wide=True)
            engine = DeepSpeedEngine(model, OPTIMIZATION, stage, len(range(*ENDS[rank])), micro_batch=micro)
            shares = [tiny.some(ROWS, seed=step, images=IMAGES).rows(*ENDS[rank]) for step in range(2)]
            reports = [engine.step(share, 0.02) for share in shares]
            found[stage, micro] = {
                "norms": [float(report.grad_norm) for report in reports],
                "losses": [float(report.loss) for report in reports],
                "weights": {name: value.clone() for name, value in engine.weights().items()},
            }
    torch.save(found, folder / f"result-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
