"""How released models see an image: resized by its shortest side or to a square, by one filter, then cropped at its centre;
or cut into patches at its own aspect ratio.

The pixels are those of the authors' code: resized to whole pixels first and then cropped. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

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


class ReleasedTransform(Protocol):
    """What a released model sees of an image, as an array of uint8."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns the shape of the array."""
        ...

    @property
    def size(self) -> int:
        """Side in pixels of the square image with as many pixels or patches."""
        ...

    def key(self) -> str:
        """Returns everything that determines the pixels, as a string for cache keys."""
        ...

    def processor(self) -> dict[str, Any]:
        """Returns the transform as transformers' preprocessor_config.json describes it, without the normalisation."""
        ...

    def pixels(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """Returns the array of an RGB image."""
        ...

    def __call__(self, data: bytes) -> npt.NDArray[np.uint8]:
        """Returns the array of an encoded image. Raises BadImage."""
        ...


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

    @property
    def shape(self) -> tuple[int, ...]:
        """(3, size, size)."""
        return 3, self.size, self.size

    def processor(self) -> dict[str, Any]:
        """As transformers' processor of CLIP images reads it."""
        resized = self.resized or self.size
        return {
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": True,
            "resample": get_args(Filter).index(self.filter),
            "size": {"height": resized, "width": resized} if self.squash else {"shortest_edge": resized},
            "do_center_crop": resized != self.size or not self.squash,
            "crop_size": {"height": self.size, "width": self.size},
        }

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
class PatchTransform:
    """Patches of an image at its own aspect ratio, as many as fit (SigLIP 2's NaFlex): (1 + most, 3 × side²).

    Row 0 says how many rows and columns of patches there are, each by two bytes, the high one first; then the patches, row by
    row, their colours last; then zeros.
    """

    side: int = 16
    """Of a patch, in pixels."""
    most: int = 256
    """Patches."""
    filter: Filter = "bilinear"

    def __post_init__(self) -> None:
        if self.side < 2 or not 1 <= self.most < 1 << 16:
            raise CornerstoneError(
                f"{self.most} patches of {self.side} pixels: expected patches of 2 pixels or more, and 1 to 65,535 of them."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """(1 + most, 3 × side²)."""
        return 1 + self.most, 3 * self.side**2

    @property
    def size(self) -> int:
        """Side in pixels of the square that has as many patches."""
        return self.side * math.isqrt(self.most)

    def key(self) -> str:
        """Everything that determines the pixels, as a string for cache keys."""
        return f"released-patches-{self.side}-{self.most}-{self.filter}"

    def processor(self) -> dict[str, Any]:
        """As transformers' processor of SigLIP 2 reads it."""
        resample = get_args(Filter).index(self.filter)
        sizes = {"patch_size": self.side, "max_num_patches": self.most}
        return {"image_processor_type": "Siglip2ImageProcessor", "do_resize": True, "resample": resample, **sizes}

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of patches of an image of so many pixels: the largest scale whose patches are not too many.

        The scale is found by halving an interval to 1e-5 as transformers does, so that both round alike.
        """

        def patches(pixels: int, scale: float) -> int:
            return max(1, math.ceil(pixels * scale / self.side))

        low, high = 1e-6, 100.0
        while high - low >= 1e-5:
            scale = (low + high) / 2
            if patches(height, scale) * patches(width, scale) <= self.most:
                low = scale
            else:
                high = scale
        return patches(height, low), patches(width, low)

    def pixels(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """The patches of an RGB image."""
        rows, columns = self.grid(*image.size)
        wanted = columns * self.side, rows * self.side
        image = image.resize(wanted, getattr(Image.Resampling, self.filter.upper()))
        cut = np.asarray(image, dtype=np.uint8).reshape(rows, self.side, columns, self.side, 3)
        out = np.zeros(self.shape, dtype=np.uint8)
        out[0, :4] = *divmod(rows, 256), *divmod(columns, 256)
        out[1 : 1 + rows * columns] = cut.transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1)
        return out

    def __call__(self, data: bytes) -> npt.NDArray[np.uint8]:
        """The patches of an encoded image. Raises BadImage."""
        return self.pixels(decode(data))


@dataclass(frozen=True)
class FixedImages(PixelImages):
    """Images as a released model sees them: an `ImageInput`."""

    transform: ReleasedTransform

    @property
    def shape(self) -> tuple[int, ...]:
        """The transform's."""
        return self.transform.shape

    def open(self) -> ImageReader:
        """Nothing needs to be opened."""
        return _Decoder(self.transform)

    def for_evaluation(self, features: str) -> ImageInput:
        """Itself."""
        return self


class _Decoder:
    def __init__(self, transform: ReleasedTransform) -> None:
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
