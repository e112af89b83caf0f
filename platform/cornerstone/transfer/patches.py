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
from cornerstone.data.source import Ints, Source
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
    source: Source[Any], tower: TimmTower, device: torch.device, memory: int, track: Track, what: str
) -> HeldPatches | None:
    """The patches of a source's images, which it reads by the fixed crop; None if they take more than `memory` bytes."""
    opened, frozen = source.open(), tower.to(device).lock()
    found: npt.NDArray[np.float32] | None = None
    reasons = [""] * source.rows
    for first in track(range(0, source.rows, ROWS_AT_ONCE), what):
        rows = np.arange(first, min(first + ROWS_AT_ONCE, source.rows))
        batch = source.batch(0, opened.take(rows, np.zeros_like(rows)))
        for bad in batch.bad:
            reasons[bad.row] = bad.reason
        if not len(batch):
            continue
        patches_BPV = frozen(batch.image.to(device)).patches.float().cpu().numpy()
        if found is None:
            if source.rows * patches_BPV[0].nbytes > memory:
                return None
            found = np.zeros((source.rows, *patches_BPV.shape[1:]), dtype=np.float32)
        found[batch.row.numpy()] = patches_BPV
    return None if found is None else HeldPatches(found, tuple(reasons))


def pixels(tower: TimmTower, options: Options) -> ImageInput:
    """Images as the tower sees them in training."""
    return DecodedImages(Transform(tower.size, options.crop_scale))


def pair_images(subject: Subject, folders: Sequence[DataSet], texts: TextInput, options: Options) -> list[ImageInput]:
    """How each folder's images are read: as patches of a frozen tower if memory holds them, otherwise as pixels."""
    decoded = pixels(subject.tower, options)
    if subject.full or not options.memory:
        return [decoded for _ in folders]
    tower, fixed = copy.deepcopy(subject.tower), DecodedImages(Transform(subject.tower.size, (1.0, 1.0), train=False))
    images: list[ImageInput] = []
    for data in folders:
        source = PairEvaluation(data.location.uri, len(data), fixed, texts, ())
        what = f"images of {data.name}"
        images.append(held_patches(source, tower, options.device, options.memory, options.track, what) or decoded)
    return images
