"""How released models see an image: resized by its shortest side or to a square, by one filter, then cropped at its centre.

The pixels are those of the authors' code: resized to whole pixels first and then cropped. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from cornerstone.data.images import BadImage, decode
from cornerstone.data.pairs.image_input import ImageInput, ImageReader, PixelImages
from cornerstone.data.source import Ints
from cornerstone.errors import CornerstoneError, did_you_mean

Filter = Literal["nearest", "lanczos", "bilinear", "bicubic"]
"""In the order of Pillow's numbers."""


@dataclass(frozen=True)
class FixedTransform:
    """Pixels of an image, the same in every epoch."""

    size: int
    """Side of the square that the model sees."""
    resized: int = 0
    """What is resized to: the shortest side, or both with `squash`; 0 for `size`."""
    squash: bool = False
    """Resize to a square whatever the aspect ratio."""
    filter: Filter = "bicubic"

    def __post_init__(self) -> None:
        if self.size < 1 or (self.resized and self.resized < self.size):
            raise CornerstoneError(
                f"An image resized to {self.resized} pixels cannot be cropped to {self.size}: expected 1 <= size <= resized."
            )
        if self.filter not in get_args(Filter):
            raise CornerstoneError(f"Unknown filter {self.filter!r}{did_you_mean(self.filter, get_args(Filter))}")

    def key(self) -> str:
        """Everything that determines the pixels, as a string for cache keys."""
        way = "squash" if self.squash else "shortest"
        return f"released-{self.size}-{way}-{self.resized or self.size}-{self.filter}"

    def pixels(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """(3, size, size) of an RGB image. The crop's corner is rounded as torchvision does, half to even."""
        to, (width, height) = self.resized or self.size, image.size
        if self.squash:
            wanted = (to, to)
        elif width <= height:
            wanted = (to, int(to * height / width))
        else:
            wanted = (int(to * width / height), to)
        image = image.resize(wanted, getattr(Image.Resampling, self.filter.upper()))
        left, top = (round((side - self.size) / 2) for side in wanted)
        cropped = image.crop((left, top, left + self.size, top + self.size))
        return np.ascontiguousarray(np.asarray(cropped, dtype=np.uint8).transpose(2, 0, 1))

    def __call__(self, data: bytes) -> npt.NDArray[np.uint8]:
        """The pixels of an encoded image. Raises BadImage."""
        return self.pixels(decode(data))


@dataclass(frozen=True)
class FixedImages(PixelImages):
    """Images as a released model sees them: an `ImageInput`."""

    transform: FixedTransform

    def open(self) -> ImageReader:
        """Nothing needs to be opened."""
        return _Decoder(self.transform)

    def for_evaluation(self, features: str) -> ImageInput:
        """Itself."""
        return self


class _Decoder:
    def __init__(self, transform: FixedTransform) -> None:
        self._transform = transform

    def read(
        self, out: npt.NDArray[Any], places: Ints, table: pa.Table, rows: Ints, epochs: Ints, seed: int | None
    ) -> Sequence[str]:
        reasons = [""] * len(rows)
        for i, (place, image) in enumerate(zip(places.tolist(), table["image"], strict=True)):
            try:
                out[place] = self._transform(image.as_py() or b"")
            except BadImage as error:
                reasons[i] = str(error)
        return reasons
