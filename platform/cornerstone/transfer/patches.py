"""A frozen tower's patches as the image input of pairs: computed once, kept in memory, read by row.

N rows, P patches, V width of the patches.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from cornerstone.data.images import Transform
from cornerstone.data.pairs.image_input import DecodedImages, ImageInput
from cornerstone.data.pairs.source import PairEvaluation
from cornerstone.data.shards import DataSet
from cornerstone.data.source import Ints
from cornerstone.data.texts import TextInput
from cornerstone.models.image_tower import TimmTower
from cornerstone.transfer.images import ROWS_AT_ONCE, Track
from cornerstone.transfer.options import Options
from cornerstone.transfer.subjects import Subject


@dataclass(frozen=True, eq=False)
class HeldPatches:
    """An `ImageInput` whose images are float32 (P, V) in this process's memory. It does not travel."""

    patches_NPV: npt.NDArray[np.float32]
    reasons: tuple[str, ...]
    """Of each row why it has no image; "" if it has one."""

    @property
    def columns(self) -> tuple[str, ...]:
        """None: no image is read."""
        return ()

    @property
    def shape(self) -> tuple[int, ...]:
        """(P, V)."""
        return self.patches_NPV.shape[1:]

    @property
    def number(self) -> pa.DataType:
        """Floats."""
        return pa.float32()

    def open(self) -> HeldPatches:
        """It is open."""
        return self

    def for_evaluation(self, features: str) -> HeldPatches:
        """The same."""
        return self

    def read(
        self, out: npt.NDArray[Any], places: Ints, table: pa.Table, rows: Ints, epochs: Ints, seed: int | None
    ) -> Sequence[str]:
        """The patches of some rows."""
        out[places] = self.patches_NPV[rows]
        return [self.reasons[row] for row in rows.tolist()]


@torch.no_grad()
def held_patches(
    data: DataSet, tower: TimmTower, texts: TextInput, device: torch.device, memory: int, track: Track
) -> HeldPatches | None:
    """The patches of a folder's images, seen through the fixed crop; None if they take more than `memory` bytes."""
    source = PairEvaluation(
        data.location.uri, len(data), DecodedImages(Transform(tower.size, (1.0, 1.0), train=False)), texts, ()
    )
    opened, frozen = source.open(), tower.to(device).lock()
    found: npt.NDArray[np.float32] | None = None
    reasons = [""] * len(data)
    for first in track(range(0, len(data), ROWS_AT_ONCE), f"images of {data.name}"):
        rows = np.arange(first, min(first + ROWS_AT_ONCE, len(data)))
        batch = source.batch(0, opened.take(rows, np.zeros_like(rows)))
        for bad in batch.bad:
            reasons[bad.row] = bad.reason
        if not len(batch):
            continue
        patches_BPV = frozen(batch.image.to(device)).patches.float().cpu().numpy()
        if found is None:
            if len(data) * patches_BPV[0].nbytes > memory:
                return None
            found = np.zeros((len(data), *patches_BPV.shape[1:]), dtype=np.float32)
        found[batch.row.numpy()] = patches_BPV
    return None if found is None else HeldPatches(found, tuple(reasons))


def pair_images(subject: Subject, folders: Sequence[DataSet], texts: TextInput, options: Options) -> list[ImageInput]:
    """How each folder's images are read: as patches of a frozen tower if memory holds them, otherwise as pixels."""
    pixels: ImageInput = DecodedImages(Transform(subject.tower.size, options.crop_scale))
    if subject.full or not options.memory:
        return [pixels for _ in folders]
    tower = copy.deepcopy(subject.tower)
    held = [held_patches(data, tower, texts, options.device, options.memory, options.track) for data in folders]
    return [pixels if one is None else one for one in held]
