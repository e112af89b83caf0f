"""How a pair's image becomes numbers: decoded pixels, or a locked tower's stored feature. Everything that differs between
the two is in these two classes. No torch here: decode actors import this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cornerstone.data.images import BadImage, Transform
from cornerstone.data.mixture import MixtureReader
from cornerstone.data.shards import DataSet
from cornerstone.data.source import Ints


class ImageReader(Protocol):
    """An opened input."""

    def read(
        self, out: npt.NDArray[Any], places: Ints, table: pa.Table, rows: Ints, epochs: Ints, seed: int | None
    ) -> Sequence[str]:
        """Write the image of each row to its place in `out` (n, ...); the reason for each row that has none ("" if it has).

        `table` holds the input's `columns` of the same rows. Without a seed the image is seen through the fixed crop.
        """
        ...


class ImageInput(Protocol):
    """What a source knows of its images."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the pair shards that it reads."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image: (3, S, S), or (W,) of a feature."""
        ...

    @property
    def number(self) -> pa.DataType:
        """The type of its numbers."""
        ...

    def open(self) -> ImageReader:
        """Open it, in a decode actor."""
        ...

    def for_evaluation(self, features: str) -> ImageInput:
        """The same input for an evaluation set, whose stored features, if there are any, lie at `features`."""
        ...


def row_bytes(images: ImageInput) -> int:
    """Decoded bytes of one image."""
    return int(np.prod(images.shape)) * int(images.number.bit_width) // 8


def image_field(images: ImageInput) -> pa.Field:
    """The column `image` of a block."""
    return pa.field("image", pa.list_(images.number, int(np.prod(images.shape))))


@dataclass(frozen=True)
class PixelImages:
    """Images as pixels, uint8 (3, S, S): what all transforms have in common. S is the transform's `size`."""

    transform: Any

    @property
    def columns(self) -> tuple[str, ...]:
        """The encoded image."""
        return ("image",)

    @property
    def number(self) -> pa.DataType:
        """Bytes."""
        return pa.uint8()

    @property
    def shape(self) -> tuple[int, ...]:
        """(3, S, S)."""
        return 3, self.transform.size, self.transform.size


@dataclass(frozen=True)
class DecodedImages(PixelImages):
    """Images decoded and cropped by the transform, uint8 (3, S, S)."""

    transform: Transform

    def open(self) -> ImageReader:
        """Nothing needs to be opened."""
        return _Decoder(self.transform)

    def for_evaluation(self, features: str) -> ImageInput:
        """The fixed crop, or the set's stored features."""
        return replace(self, transform=replace(self.transform, train=False))


@dataclass(frozen=True)
class StoredFeatures:
    """A locked tower's features, float32 (W,), from one feature store for each data set."""

    stores: tuple[str, ...]
    width: int

    @property
    def columns(self) -> tuple[str, ...]:
        """None: no image is read."""
        return ()

    @property
    def number(self) -> pa.DataType:
        """Whatever the store holds becomes fp32."""
        return pa.float32()

    @property
    def shape(self) -> tuple[int, ...]:
        """(W,)."""
        return (self.width,)

    def open(self) -> ImageReader:
        """Open the stores."""
        return _Vectors(self)

    def for_evaluation(self, features: str) -> ImageInput:
        """The set's own store."""
        return replace(self, stores=(features,))


class _Decoder:
    def __init__(self, transform: Transform) -> None:
        self._transform = transform

    def read(
        self, out: npt.NDArray[Any], places: Ints, table: pa.Table, rows: Ints, epochs: Ints, seed: int | None
    ) -> Sequence[str]:
        transform = self._transform if seed is not None else replace(self._transform, train=False)
        numbers, reasons = transform.numbers(seed or 0, epochs, rows), [""] * len(rows)
        for i, (place, image) in enumerate(zip(places.tolist(), table["image"], strict=True)):
            try:
                transform.write(out[place], image.as_py() or b"", numbers[i])
            except BadImage as error:
                reasons[i] = str(error)
        return reasons


class _Vectors:
    def __init__(self, stored: StoredFeatures) -> None:
        self._width = stored.width
        self._rows = MixtureReader([DataSet.open(store, "features") for store in stored.stores])

    def read(
        self, out: npt.NDArray[Any], places: Ints, table: pa.Table, rows: Ints, epochs: Ints, seed: int | None
    ) -> Sequence[str]:
        found = self._rows.take(rows)
        flat = found["feature"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        out[places] = flat.astype(np.float32, copy=False).reshape(-1, self._width)
        reasons: list[str] = found["reason"].to_pylist()
        return reasons
