"""A list joined with images that are in shards already, such as DreamLIP's captions with an import of img2dataset's output.

A row of the list gets the image whose key it names, with or without an extension like `.jpg`, or whose URL it names (`url`
in the image's `extra`). Rows are in the order of the images, which was shuffled by their own import, so that each shard is
read once and sequentially. The driver keeps 32 bytes for each row of the list.
"""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from cornerstone.data import draws
from cornerstone.data.importers.core import Format, ImportOptions, ImportPlan, Quarantined, Sample
from cornerstone.data.importers.fields import find, texts
from cornerstone.data.importers.listing import IMAGES
from cornerstone.data.importers.pairs_jsonl import PairsJsonl, Scan
from cornerstone.data.manifest import FILE, Kind, Shard
from cornerstone.data.output import stamps
from cornerstone.data.shards import ROWS_PER_GROUP, DataSet, Reader
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError

COMPARED, AGREEING = 256, 0.5
"""Joined rows whose texts are compared, and the least share that must agree."""
NO_IMAGE = -1  # in place of a row number
_READERS = 16  # threads that read keys and URLs of shards, usually waiting for remote storage


def over_images(make: Callable[[Location, ImportOptions], PairsJsonl], src: Location, options: ImportOptions) -> Format:
    """The reader of the list, joined with a data set if --images names one."""
    texts = make(src, options)
    if options.images is None or not texts.images.join(FILE).exists():
        return texts
    return Joined(texts, DataSet.open(texts.images, "pairs"))


class Joined:
    """The rows of a list with images of a data set."""

    kind: Kind = "pairs"

    def __init__(self, texts: PairsJsonl, images: DataSet) -> None:
        self.texts, self.images, self.options = texts, images, texts.options

    def plan(self) -> ImportPlan:
        """Scan the list and the keys and URLs of the images. One task per shard, then tasks for the rows without an image."""
        scan = _Named(self.texts)
        self.texts.scan(scan)
        rows = self._rows_of(scan)
        if (rows == NO_IMAGE).all():
            raise CornerstoneError(
                f"{self.images.location} has none of the {len(rows):,} images that {self.texts.list} names: looked for "
                f"`{scan.example}`; its keys are like `{self._example()}`, its URLs are `url` in `extra`. Name another data "
                f"set with --images, or the list's image field with --image."
            )
        if not self.options.trust_keys:
            self._compare(rows, scan)
        places = np.stack([rows, np.asarray(scan.offsets, np.int64), np.asarray(scan.lengths, np.int64)], axis=1)
        places = places[np.argsort(rows, kind="stable")]
        lost = int(np.searchsorted(places[:, 0], 0))
        places = np.concatenate([places[lost:], places[:lost]])[: self.options.limit_rows]
        found = places[places[:, 0] != NO_IMAGE]
        ends = np.cumsum([shard.rows for shard in self.images.manifest.shards])
        of_shards = np.split(found, np.searchsorted(found[:, 0], ends))
        step, rest = self.options.rows_per_shard, places[len(found) :]
        of_none = (rest[start : start + step] for start in range(0, len(rest), step))
        return ImportPlan(
            tasks=[task for task in (*of_shards, *of_none) if len(task)],
            order={"rows": "as the images"},
            source=[stamps([self.texts.list]), self.images.manifest.content_hash],
            classes=tuple(sorted(scan.labels)),
            quarantined=tuple(scan.quarantined),
        )

    def read(self, task: npt.NDArray[np.int64]) -> Iterator[Sample | Quarantined]:
        """The rows of some records of the list, given as (row of the image, offset, length)."""
        images = Reader(self.images, ["key", "image", "extra"])
        with self.texts.list.open_input() as stream:
            for first in range(0, len(task), ROWS_PER_GROUP):
                part = task[first : first + ROWS_PER_GROUP]
                rows = part[:, 0]
                found = images.take(rows).to_pylist() if rows[0] != NO_IMAGE else [None] * len(rows)
                for (_, offset, length), image in zip(part.tolist(), found, strict=True):
                    yield self._sample(self.texts.row(stream, offset, length), image)

    def _sample(
        self, row: tuple[str, dict[str, Any]] | Quarantined, image: dict[str, Any] | None
    ) -> Sample | Quarantined:
        if isinstance(row, Quarantined):
            return row
        name, fields = row
        if image is None:
            return Quarantined(name, f"no image: {self.images.location} has no image with this key or URL")
        return Sample(image["key"], image["image"], {**json.loads(image["extra"] or "{}"), **fields})

    def _compare(self, rows: npt.NDArray[np.int64], scan: _Named) -> None:
        """Compare the raw captions, and the URLs, of some joined rows. Raises CornerstoneError if most disagree.

        Two downloads number the same list differently: a table of one names other pictures of the other by the same keys.
        """
        joined = np.flatnonzero(rows != NO_IMAGE)
        chosen = joined[draws.permutation(len(joined), 0, "join-check")[:COMPARED]]
        images = Reader(self.images, ["key", "captions", "extra"]).take(rows[chosen]).to_pylist()
        compared, agreed, example = 0, 0, ""
        with self.texts.list.open_input() as stream:
            for place, image in zip(chosen.tolist(), images, strict=True):
                row = self.texts.row(stream, scan.offsets[place], scan.lengths[place])
                if isinstance(row, Quarantined):
                    continue
                (name, fields), extra = row, json.loads(image["extra"] or "{}")
                there = _plain(*(c["text"] for c in image["captions"] if c["role"] == "raw"), extra.get("url"))
                listed = (text for field in self.options.raw for text in texts(find(fields, field)))
                here = _plain(*listed, fields.get("url"), name if "://" in name else "")
                if here and there:
                    compared += 1
                    agrees = any(ours in theirs or theirs in ours for ours in here for theirs in there)
                    agreed += agrees
                    if not agrees and not example:
                        ours, theirs = next(iter(here.values())), next(iter(there.values()))
                        example = f"{name}: {ours[:80]!r} in the list, {theirs[:80]!r} in the data set"
        if compared and agreed < AGREEING * compared:
            raise CornerstoneError(
                f"The keys of {self.texts.list} seem to belong to another download: of {compared} joined rows that have a raw "
                f"caption or a URL on both sides only {agreed} agree ({example}). Join by URL (a list with a column `url`), or "
                f"if the texts were rewritten on purpose, import with --trust-keys."
            )

    def _rows_of(self, scan: _Named) -> npt.NDArray[np.int64]:
        """The row of the image of each record of the list; the first one if several have the same name."""
        by_name, by_stem = _Lookup(scan.names_of), _Lookup(scan.stems_of)
        with ThreadPoolExecutor(_READERS) as pool:
            shards, first = self.images.manifest.shards, 0
            for shard, kinds in zip(shards, pool.map(self._names, shards), strict=True):
                for names in kinds:
                    by_name.offer(names, first)
                    by_stem.offer(names, first)
                first += shard.rows
        named = by_name.rows()
        return np.where(named == NO_IMAGE, by_stem.rows(), named)

    def _names(self, shard: Shard) -> tuple[npt.NDArray[np.uint64], ...]:
        """Hashes of the keys, and of the URLs, of a shard's images."""
        with self.images.location.join(shard.file).open_input() as file:
            table = pq.read_table(file, columns=["key", "extra"])
        described = (json.loads(extra or "{}") for extra in table["extra"].to_pylist())
        addresses = (str(extra.get("url") or "") for extra in described)
        return _hashes(table["key"].to_pylist()), _hashes(addresses)

    def _example(self) -> str:
        return str(Reader(self.images, ["key"]).take(np.asarray([0]))["key"][0].as_py())


class _Named(Scan):
    """The scan of a list; also collects hashes of the image names."""

    def __init__(self, source: PairsJsonl) -> None:
        super().__init__(source)
        self.names_of, self.stems_of = array("Q"), array("Q")
        self.example = ""

    def keep(self, row: dict[str, Any], offset: int, length: int) -> None:
        """Remember a record that meets the conditions."""
        super().keep(row, offset, length)
        name = str(row.get(self.source.image) or "")
        self.example = self.example or name
        ending = next((ending for ending in IMAGES if name.lower().endswith(ending)), "")
        self.names_of.append(_hash(name))
        self.stems_of.append(_hash(name[: len(name) - len(ending)]))


class _Lookup:
    """Finds for each of some names the first row that has it."""

    def __init__(self, names: array[int]) -> None:
        self._known, self._asked = np.unique(np.asarray(names, np.uint64), return_inverse=True)
        self._found = np.full(len(self._known), NO_IMAGE, np.int64)

    def offer(self, names: npt.NDArray[np.uint64], first: int) -> None:
        """Look at the names of rows `first`, `first` + 1, ..."""
        places = np.minimum(np.searchsorted(self._known, names), len(self._known) - 1)
        rows = np.flatnonzero((self._known[places] == names) & (names != _hash("")))
        rows = rows[self._found[places[rows]] == NO_IMAGE][::-1]  # the last assignment stays: the first row of a name
        self._found[places[rows]] = first + rows

    def rows(self) -> npt.NDArray[np.int64]:
        """The row of each name, in the order in which the names were given."""
        return self._found[self._asked]


def _plain(*found: Any) -> dict[str, str]:
    """Texts by what is left of them without case, punctuation and spaces; empty ones are left out."""
    plain = {re.sub(r"[\W_]+", "", text).lower(): text for text in found if isinstance(text, str)}
    return {short: text for short, text in plain.items() if short}


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _hashes(names: Iterable[str]) -> npt.NDArray[np.uint64]:
    return np.fromiter(map(_hash, names), np.uint64)
