"""Stored features: a locked tower's vectors, in files and row groups that mirror the shards they were computed from.

A store is keyed by what it was computed from: the data's content, the tower's weights, the transform, the type. One made
from anything else is refused, saying which differs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import pyarrow as pa

from cornerstone.data.manifest import Manifest
from cornerstone.data.shards import DataSet
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError
from cornerstone.hashing import digest

FeatureType = Literal["float16", "float32"]
Precision = Literal["fp32", "bf16"]
_WORDS = {
    "data": "the rows (content hash)",
    "tower": "the image tower's weights",
    "transform": "the transform",
    "dtype": "the numbers' type",
    "precision": "the precision that they were computed in",
}


@dataclass(frozen=True)
class FeatureKeys:
    """What a store's vectors depend on."""

    data: str
    tower: str
    transform: str
    dtype: FeatureType
    precision: Precision = "fp32"
    """In which the tower computed; it is left out of the digest and of manifests if it is fp32, as in older stores."""

    def as_dict(self) -> dict[str, str]:
        """As a manifest keeps them."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("precision", "fp32")}

    def digest(self) -> str:
        """A short name for a folder."""
        return digest(self.as_dict())


def feature_schema(width: int, dtype: FeatureType) -> pa.Schema:
    """A vector, and the reason if there is none."""
    number = pa.float16() if dtype == "float16" else pa.float32()
    return pa.schema([pa.field("feature", pa.list_(number, width)), pa.field("reason", pa.string())])


def check_store(store: Location | str, wanted: FeatureKeys) -> DataSet:
    """Open a feature store; CornerstoneError names every key that differs from what the run needs."""
    opened = DataSet.open(store, "features")
    found, needed = {"precision": "fp32", **opened.manifest.keys}, asdict(wanted)
    different = [
        f"{_WORDS[k]}: stored {found.get(k)!r}, needed {needed[k]!r}" for k in _WORDS if found.get(k) != needed[k]
    ]
    if different:
        raise CornerstoneError(
            f"The features at {store} do not fit this run. {'; '.join(different)}. "
            f"Compute them again with `cornerstone features`, or name the store that fits."
        )
    return opened


def store_width(manifest: Manifest) -> int:
    """Length of a store's vectors."""
    return int(manifest.source["width"])
