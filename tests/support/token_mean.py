"""A tiny method on packed documents, which knows nothing of image-text pairs: it embeds tokens and means them.

Its loss asks the mean of a sequence to tell how many of its places are images. It writes down every row that it trains on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from cornerstone.data.documents.batch import SequenceBatch
from cornerstone.models.image_tower import TimmTower
from cornerstone.models.method import Inputs, Losses, Method
from cornerstone.objectives.gather import gather_values, workers
from cornerstone.recipes import MethodConfig


@dataclass(frozen=True)
class TokenMeanConfig(MethodConfig):
    """Its width, and a folder for the record."""

    kind: ClassVar[str] = "token-mean"
    implementation: ClassVar[str] = "token_mean:TokenMean"
    data_kinds: ClassVar[tuple[str, ...]] = ("documents",)

    width: int = 8
    seen: str = ""
    raise_at: int = -1
    """Every worker raises in this step, until the folder holds a file `repaired`."""


class Features(NamedTuple):
    """The mean of each sequence, and what it should be told apart by."""

    mean_BD: Tensor
    answer_B1: Tensor


class TokenMean(Method[SequenceBatch, Features]):
    """The method as one module."""

    config: TokenMeanConfig

    def __init__(self, config: TokenMeanConfig, size: int, seed: int) -> None:
        super().__init__()
        self.config, self.size = config, size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.words, self.answer = nn.Embedding(size, config.width), nn.Linear(config.width, 1)

    @classmethod
    def build(cls, config: Any, inputs: Inputs, seed: int) -> TokenMean:
        """Special tokens have the three ids after the tokenizer's own."""
        assert inputs.special_ids is not None
        return cls(config, inputs.special_ids.eoi + 1, seed)

    def forward(self, batch: SequenceBatch) -> Features:
        """Padding is left out of the mean."""
        self._note(batch)
        real_BT1 = (batch.document >= 0)[..., None]
        mean_BD = (self.words(batch.token_ids) * real_BT1).sum(1) / real_BT1.sum(1).clamp(min=1)
        return Features(mean_BD, self.answer(mean_BD))

    def losses(self, features: Features, batch: SequenceBatch, group: ProcessGroup | None = None) -> Losses:
        """Squared error of the number of images, over the valid sequences of all workers."""
        images_B = torch.bincount(batch.image_row, minlength=len(batch)).to(features.answer_B1)
        error_B = torch.where(batch.valid, (features.answer_B1.squeeze(1) - images_B) ** 2, 0)
        count = gather_values(batch.valid.float(), group).sum().clamp(min=1)
        return Losses({"images": error_B.sum() * workers(group) / count}, {"mean_images": images_B.mean()})

    def described(self) -> dict[str, Any]:
        """The size of its vocabulary."""
        return {"size": self.size}

    @classmethod
    def rebuilt(cls, config: Any, described: Mapping[str, Any], image_tower: TimmTower | None) -> TokenMean:
        """Its weights are still to be loaded."""
        return cls(config, described["size"], seed=0)

    def _note(self, batch: SequenceBatch) -> None:
        if not self.config.seen or not self.training:
            return
        folder, rank = Path(self.config.seen), dist.get_rank() if dist.is_initialized() else 0
        if batch.step == self.config.raise_at and not (folder / "repaired").exists():
            raise ArithmeticError(f"no way on from step {batch.step}")
        rows = [*zip(batch.row.tolist(), batch.epoch.tolist(), strict=True)]
        line = {"pid": os.getpid(), "step": batch.step, "workers": workers(), "rows": rows}
        with (folder / f"{rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
