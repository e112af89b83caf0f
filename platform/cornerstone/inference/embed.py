"""Features of texts or of a folder's images in one file, each with its key.

N texts or images, D width of the features.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cornerstone.data.images import BadImage
from cornerstone.data.manifest import FILE as MANIFEST
from cornerstone.data.shards import DataSet, Reader
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError
from cornerstone.inference.opened_model import AT_A_TIME, OpenedModel

ENDINGS = (".parquet", ".npz", ".npy")
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Embedded:
    """Features, in the order of their keys."""

    keys: tuple[str, ...]
    """The text itself; an image's path below the folder, or its row's key."""
    features: npt.NDArray[np.float32]
    """(N, D), L2-normalised; (N, Q, D) of a method with several features of an image."""
    bad: dict[str, str] = field(default_factory=dict)
    """The reason of each image that could not be used, by its key."""

    def summary(self) -> dict[str, object]:
        """JSON: counts, width and reasons."""
        width = int(self.features.shape[-1])
        return {"embedded": len(self.keys), "left_out": len(self.bad), "width": width, "bad": self.bad}


def check_ending(out: str) -> None:
    """Raise CornerstoneError for a file whose kind is not known by its ending."""
    if not out.lower().endswith(ENDINGS):
        raise CornerstoneError(
            f"--out {out}: the ending says what is written: .parquet (columns key and feature), .npz (arrays keys and "
            f"features) or .npy (features alone, their keys beside it in a .keys.json)."
        )


def embed_texts(model: OpenedModel, texts: Sequence[str], progress: Progress = lambda done, total: None) -> Embedded:
    """The feature of each text."""
    found = []
    for first in range(0, len(texts), AT_A_TIME):
        found.append(model.encode_text(texts[first : first + AT_A_TIME]).float().cpu().numpy())
        progress(min(first + AT_A_TIME, len(texts)), len(texts))
    return Embedded(tuple(texts), np.concatenate(found))


def embed_images(model: OpenedModel, folder: str, progress: Progress = lambda done, total: None) -> Embedded:
    """The feature of each image of a folder: picture files below it, or the rows of shards.

    Broken images are left out with their reasons. Raises CornerstoneError if there is no image, or none that can be used.
    """
    total, rows = _images(folder)
    keys: list[str] = []
    bad: dict[str, str] = {}
    found: list[npt.NDArray[np.float32]] = []
    pixels: list[npt.NDArray[np.uint8]] = []

    def encode() -> None:
        found.append(model.encode_image(torch.from_numpy(np.stack(pixels))).float().cpu().numpy())
        pixels.clear()

    for done, (key, data) in enumerate(rows, 1):
        try:
            pixels.append(model.pixels(data))
            keys.append(key)
        except BadImage as error:
            bad[key] = str(error)
        if len(pixels) == AT_A_TIME:
            encode()
        if done % AT_A_TIME == 0 or done == total:
            progress(done, total)
    if pixels:
        encode()
    if not found:
        raise CornerstoneError(f"None of the {total:,} images in {folder} can be used: {next(iter(bad.values()))}.")
    return Embedded(tuple(keys), np.concatenate(found), bad)


def write(embedded: Embedded, out: str) -> None:
    """Write the features by the file's ending. CornerstoneError for an unknown one, and for several features in Parquet."""
    check_ending(out)
    place, buffer = Location.of(out), io.BytesIO()
    if out.lower().endswith(".parquet"):
        if embedded.features.ndim != 2:
            raise CornerstoneError("This model gives several features of an image: write them to a .npz file.")
        flat = pa.array(embedded.features.reshape(-1))
        columns = [pa.array(embedded.keys), pa.FixedSizeListArray.from_arrays(flat, embedded.features.shape[1])]
        pq.write_table(pa.Table.from_arrays(columns, names=["key", "feature"]), buffer)
    elif out.lower().endswith(".npz"):
        np.savez(buffer, keys=np.array(embedded.keys), features=embedded.features)
    else:
        np.save(buffer, embedded.features)
        Location.of(f"{out[: -len('.npy')]}.keys.json").write_text(json.dumps(embedded.keys) + "\n")
    place.write_bytes(buffer.getvalue())


def _images(folder: str) -> tuple[int, Iterator[tuple[str, bytes]]]:
    """The number of images, and their keys with their bytes, in order."""
    place = Location.of(folder)
    if place.join(MANIFEST).exists():
        data = DataSet.open(place, "pairs")
        reader = Reader(data, ["key", "image"])
        groups = range(sum(len(shard.row_groups) for shard in data.manifest.shards))
        tables = (reader.group(group) for group in groups)
        rows = (pair for t in tables for pair in zip(t["key"].to_pylist(), t["image"].to_pylist(), strict=True))
        return data.manifest.rows, ((str(key), image or b"") for key, image in rows)
    names = sorted(name for name in place.files() if PurePath(name).suffix.lower() in PICTURES)
    if not names:
        raise CornerstoneError(
            f"{folder} holds neither pictures ({', '.join(PICTURES)}) nor shards of pairs (--images)."
        )
    return len(names), ((name, place.join(name).read_bytes()) for name in names)
