"""Data sets that are trained on together, each with a weight. A single data set is a mixture of one.

A mixture is a folder that contains only a manifest: it lists its members with their content hashes at the time of mixing,
and has no rows of its own. A member of weight 2 is read twice while a member of weight 1 is read once; of a member of
weight 0.5, half is read. Members that are mixtures themselves are expanded, and their weights are multiplied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cornerstone.data.manifest import Kind, Manifest, Member
from cornerstone.data.output import refuse_existing
from cornerstone.data.shards import DataSet, Reader
from cornerstone.data.source import Part
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError


@dataclass(frozen=True)
class Mixture:
    """An opened data set or mixture: its folder and manifest, and the data sets that contain its rows."""

    location: Location
    manifest: Manifest
    sets: tuple[DataSet, ...]
    weights: tuple[Fraction, ...]

    @staticmethod
    def open(folder: Location | str, kind: Kind = "pairs", *others: Kind) -> Mixture:
        """Open a folder of shards of one of some kinds, or a mixture of such folders.

        Raises CornerstoneError as `Manifest.read` does, and if a member is of another kind or has changed since mixing.
        """
        location = Location.of(folder)
        manifest = Manifest.read(location)
        if manifest.kind != "mixture":
            if manifest.kind not in others:
                manifest.require(kind, location)
            return Mixture(location, manifest, (DataSet(location, manifest),), (Fraction(1),))
        opened = [(Mixture.open(member.data, kind, *others), member) for member in manifest.members]
        for found, member in opened:
            if found.manifest.content_hash != member.content:
                raise CornerstoneError(
                    f"{member.data} has changed since {location} was mixed (content {member.content}, now "
                    f"{found.manifest.content_hash}): mix it again with `cornerstone data mix`."
                )
        weights = [Fraction(member.weight) * inner for found, member in opened for inner in found.weights]
        return Mixture(location, manifest, tuple(s for found, _ in opened for s in found.sets), tuple(weights))

    def __len__(self) -> int:
        return sum(map(len, self.sets))

    @property
    def name(self) -> str:
        """The name of the data set or mixture."""
        return self.manifest.name

    @property
    def parts(self) -> tuple[Part, ...]:
        """Row groups and weight of each data set: what the plan needs."""
        groups = (tuple(shard.row_groups for shard in data.manifest.shards) for data in self.sets)
        return tuple(Part(shards, weight) for shards, weight in zip(groups, self.weights, strict=True))

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders of the data sets, in the order of the row ids."""
        return tuple(data.location.uri for data in self.sets)


class MixtureReader:
    """Random access to the rows of several data sets by row id (see `Plan`)."""

    def __init__(self, sets: Sequence[DataSet], columns: Sequence[str] | None = None) -> None:
        self._sets = sets
        self._open: Callable[[DataSet], Reader] = lambda data: Reader(data, columns)
        self._readers: dict[int, Reader] = {}

    @cached_property
    def _ends(self) -> npt.NDArray[np.int64]:
        return np.cumsum([len(data) for data in self._sets])

    def _reader(self, part: int) -> Reader:
        if part not in self._readers:
            self._readers[part] = self._open(self._sets[part])
        return self._readers[part]

    def take(self, rows: npt.NDArray[np.int64]) -> pa.Table:
        """The rows in the requested order, as one table; an empty table if no row is requested."""
        parts = np.searchsorted(self._ends, rows, side="right")
        asked = np.unique(parts).tolist()
        if len(asked) < 2:
            part = asked[0] if asked else 0
            return self._reader(part).take(rows - self._first(part))
        tables = [self._reader(part).take(rows[parts == part] - self._first(part)) for part in asked]
        order = np.concatenate([np.flatnonzero(parts == part) for part in asked])
        return pa.concat_tables(tables).take(pa.array(np.argsort(order, kind="stable")))

    def _first(self, part: int) -> int:
        return int(self._ends[part]) - len(self._sets[part])


def write_mixture(folder: Location | str, weighted: Sequence[tuple[str, str]], name: str = "") -> Manifest:
    """Mix data sets, given as (folder, weight), into a new folder.

    Raises CornerstoneError if a weight is not a positive number, if a folder is given twice, if the members are of different
    kinds, and if `folder` already contains a data set.
    """
    out = Location.of(folder)
    refuse_existing(out)
    located = [(Location.of(data), _weight(data, weight)) for data, weight in weighted]
    if twice := {place.uri for place, _ in located if [p.uri for p, _ in located].count(place.uri) > 1}:
        raise CornerstoneError(f"{twice.pop()} is given twice: give it once, with the sum of its weights.")
    manifests = [Manifest.read(place) for place, _ in located]
    kinds = {m.members[0].kind if m.kind == "mixture" else m.kind for m in manifests}
    if len(kinds) > 1 or not kinds <= {"pairs", "documents", "packing"}:
        raise CornerstoneError(
            f"Cannot mix {' and '.join(sorted(kinds))}: all data sets of a mixture must be pairs, all documents, or all packed "
            f"sequences (packing)."
        )
    kind = kinds.pop()
    for place, _ in located:
        Mixture.open(place, kind)  # fail now if a member of a member was moved or changed
    members = tuple(
        Member(place.uri, weight, kind, manifest.rows, manifest.content_hash)
        for (place, weight), manifest in zip(located, manifests, strict=True)
    )
    manifest = Manifest(
        "mixture",
        name or out.name,
        (),
        source={"format": "mixture"},
        members=members,
    )
    manifest.write(out)
    return manifest


def _weight(data: str, weight: str) -> str:
    try:
        value = Fraction(weight)
    except (ValueError, ZeroDivisionError):
        value = Fraction(0)
    if value <= 0:
        raise CornerstoneError(f"{data}={weight}: expected a weight above 0, for example {data}=2 or {data}=0.5.")
    return str(value)
