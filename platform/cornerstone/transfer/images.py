"""A split's images as a head reads them: patches of a frozen tower, or pixels; kept in memory, or decoded each time.

N images of a split, B of a batch, P patches, V width of the patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from cornerstone.data.pairs.batch import LabelledBatch
from cornerstone.data.pairs.labelled import LabelledImages
from cornerstone.data.source import Ints
from cornerstone.errors import CornerstoneError
from cornerstone.models.image_tower import TimmTower

ROWS_AT_ONCE = 128
Track = Callable[[Iterable[int], str], Iterable[int]]
"""Shows progress over the first rows of blocks; the second argument says of what."""


class Images(Protocol):
    """Some rows at a time."""

    def batch(self, step: int, rows: Ints, epochs: Ints) -> LabelledBatch:
        """The rows with these ids."""
        ...


class Decoded:
    """Images decoded at each reading: for random crops, or more images than memory holds."""

    def __init__(self, source: LabelledImages) -> None:
        self._source, self._rows = source, source.open()

    def batch(self, step: int, rows: Ints, epochs: Ints) -> LabelledBatch:
        """The rows' pixels."""
        return self._source.batch(step, self._rows.take(rows, epochs))


@dataclass(frozen=True)
class Held:
    """All images in memory: as pixels, or as a frozen tower's patches."""

    image_N: Tensor
    """(N, 3, S, S) uint8, or (N, P, V)."""
    label_N: Tensor
    valid_N: Tensor

    def batch(self, step: int, rows: Ints, epochs: Ints) -> LabelledBatch:
        """The rows' pixels or patches."""
        row = torch.from_numpy(rows)
        return LabelledBatch(step, row, self.valid_N[row], (), self.label_N[row], self.image_N[row])


@dataclass(frozen=True)
class Split:
    """What was read of a split: how to read its images, and of each row its class, whether it can be used, and its feature."""

    images: Images
    """To judge: the fixed crop."""
    training: Callable[[int], Images]
    """To train on, by the seed of the crops."""
    label_N: Tensor
    valid_N: Tensor
    mean_NV: Tensor
    """The mean patch; (N, 0) of a split that no frozen tower has seen."""

    @property
    def usable(self) -> Ints:
        """Rows with a label and an image."""
        found: Ints = np.flatnonzero(self.valid_N.numpy())
        return found


@torch.no_grad()
def read(
    source: LabelledImages,
    tower: TimmTower | None,
    device: torch.device,
    *,
    memory: int,
    track: Track = lambda steps, what: steps,
    what: str = "images",
) -> Split:
    """A split, once, with the fixed crop: through a frozen tower, or as pixels for a tower that is to be trained.

    What was read is kept if it takes at most `memory` bytes; otherwise images are decoded at each reading. Raises
    CornerstoneError if no row has a label and an image.
    """
    frozen = None if tower is None else tower.to(device).lock()
    decoded, held = Decoded(source), False
    labels, valids, means, kept = [], [], [], []
    for first in track(range(0, source.rows, ROWS_AT_ONCE), what):
        rows = np.arange(first, min(first + ROWS_AT_ONCE, source.rows))
        batch = decoded.batch(0, rows, np.zeros_like(rows))
        found = batch.image if frozen is None else frozen(batch.image.to(device)).patches.float().cpu()
        if first == 0:
            held = source.rows * found[0].numel() * found.element_size() <= memory
        labels.append(batch.label)
        valids.append(batch.valid)
        means.append(found.new_zeros(len(rows), 0) if frozen is None else found.mean(1))
        if held:
            kept.append(found)
    label_N, valid_N, mean_NV = torch.cat(labels), torch.cat(valids), torch.cat(means)
    if not valid_N.any():
        raise CornerstoneError(
            f"None of the {source.rows:,} rows of {source.folder} has a label and an image that can be read: import it with "
            f"--label FIELD, or from a folder of classes (cornerstone data import imagefolder)."
        )
    if held:
        images = Held(torch.cat(kept), label_N, valid_N)
        return Split(images, lambda seed: images, label_N, valid_N, mean_NV)
    return Split(decoded, partial(_cropped, source), label_N, valid_N, mean_NV)


def _cropped(source: LabelledImages, seed: int) -> Images:
    return Decoded(replace(source, seed=seed))
