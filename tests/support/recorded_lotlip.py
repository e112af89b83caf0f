"""LoTLIP that writes down every batch of its training steps, and fails where its recipe says."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from pathlib import Path

import torch
import torch.distributed as dist
from recording import KILLED, REPAIRED, RecordedConfig

from cornerstone.data.pairs.batch import PairBatch
from cornerstone.models.lotlip import Features, Lotlip


class RecordedLotlip(Lotlip):
    """One line a training step and worker, in the order in which they were seen."""

    config: RecordedConfig

    def forward(self, batch: PairBatch) -> Features:
        """The features of LoTLIP, after the trouble that is due."""
        config, rank = self.config, dist.get_rank() if dist.is_initialized() else 0
        folder = Path(config.seen)
        if batch.step == config.kill_at and rank == config.kill_rank and not (folder / KILLED).exists():
            _wait_for_checkpoint(config)
            (folder / KILLED).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if batch.step == config.raise_at and not (folder / REPAIRED).exists():
            _wait_for_checkpoint(config)
            raise ArithmeticError(f"no way on from step {batch.step}")
        time.sleep(config.pause)
        line = {
            "pid": os.getpid(),
            "random": hashlib.sha256(torch.get_rng_state().numpy()).hexdigest(),
            "workers": dist.get_world_size() if dist.is_initialized() else 1,
            "step": batch.step,
            "rows": [*zip(batch.row.tolist(), batch.epoch.tolist(), strict=True)],
        }
        with (folder / f"{rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        features = super().forward(batch)
        return features._replace(scale=features.scale * float("nan")) if batch.step == config.nan_at else features


def _wait_for_checkpoint(config: RecordedConfig) -> None:
    """A report returns before its checkpoint is committed: trouble right after it would come too early."""
    snapshot, patience = Path(config.snapshot), time.monotonic() + 60
    while config.after and f"step-{config.after:09d}" not in (snapshot.read_text() if snapshot.exists() else ""):
        if time.monotonic() > patience:
            raise TimeoutError(f"no checkpoint after {config.after} steps in {snapshot}")
        time.sleep(0.05)
