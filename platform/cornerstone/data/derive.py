"""Data sets derived from others, both from LCL: LAION-Random (pairs to documents) and MMC4-Pair (documents to pairs).

Both run as an import, with one task per shard of the parent data set. The manifest records the parent's content hash.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from cornerstone.data import draws
from cornerstone.data.images import BadImage, probe
from cornerstone.data.importers.core import (
    ImportOptions,
    ImportPlan,
    ImportReport,
    OnImportProgress,
    Quarantined,
    run_import,
)
from cornerstone.data.importers.files import SHUFFLE_BUFFER, shuffled
from cornerstone.data.manifest import Kind
from cornerstone.data.output import refuse_existing
from cornerstone.data.parallel import Mapped
from cornerstone.data.records import Caption, Document, Pair, Role, Segment
from cornerstone.data.shards import DataSet, Reader
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError, did_you_mean

MIN_SIMILARITY = 0.24


class LaionRandom:
    """Converts each pair to a document: its image and one of its captions, drawn once if several (LCL, section 4.1).

    Whether the image comes before or after the text is drawn in each epoch, when documents are read as packed sequences.
    """

    kind: Kind = "documents"

    def __init__(self, data: DataSet, options: ImportOptions, role: Role = "raw") -> None:
        self.data, self.options, self.role = data, options, role

    def plan(self) -> ImportPlan:
        """One task per shard. The rows are not shuffled again: they are in random order in the parent."""
        return ImportPlan(list(range(len(self.data.manifest.shards))), _of_parent(self.data, role=self.role), source=())

    def read(self, task: int) -> Iterator[Document | Quarantined]:
        """The documents of a shard. A pair without a caption of the role is quarantined."""
        first = sum(shard.rows for shard in self.data.manifest.shards[:task])
        for place, row in enumerate(_rows(self.data, task), first):
            texts = [c["text"] for c in row["captions"] or [] if c["role"] == self.role and (c["text"] or "").strip()]
            if not texts:
                yield Quarantined(row["key"], f"no {self.role} caption")
                continue
            text = texts[int(draws.choice(len(texts), self.options.seed, "laion-random", place)[0])]
            yield Document(row["key"], (Segment(image=row["image"]), Segment(text=text)), row["extra"])


class Mmc4Pair:
    """Converts each image of a document to a pair with its matched sentence, if `matched_sim` >= `min_similarity`."""

    kind: Kind = "pairs"

    def __init__(self, data: DataSet, options: ImportOptions, min_similarity: float = MIN_SIMILARITY) -> None:
        self.data, self.options, self.min_similarity = data, options, min_similarity

    def plan(self) -> ImportPlan:
        """One task per shard. Its pairs go through a shuffle buffer, so that images of one document are not adjacent."""
        order = _of_parent(self.data, min_similarity=self.min_similarity)
        order |= {"shuffle_buffer": SHUFFLE_BUFFER, "seed": self.options.seed}
        return ImportPlan(list(range(len(self.data.manifest.shards))), order, source=())

    def read(self, task: int) -> Iterator[Pair | Quarantined]:
        """The pairs of a shard."""
        found = (pair for row in _rows(self.data, task) for pair in self._pairs(row))
        return shuffled(found, self.options.seed, task)

    def _pairs(self, row: dict[str, Any]) -> Iterator[Pair | Quarantined]:
        waiting: list[tuple[int, bytes, float]] = []  # images precede the sentence that they are matched with
        for place, segment in enumerate(row["segments"] or []):
            if segment["kind"] == "image":
                extra = json.loads(segment["extra"]) if segment["extra"] else {}
                similarity = extra.get("matched_sim")
                if similarity is None:
                    yield Quarantined(f"{row['key']}#{place}", "no matched_sim: the image has no matched sentence")
                elif similarity >= self.min_similarity:
                    waiting.append((place, segment["image"], similarity))
                continue
            for at, image, similarity in waiting:
                yield _pair(f"{row['key']}#{at}", image, segment["text"], similarity)
            waiting = []


def _pair(key: str, image: bytes, text: str, similarity: float) -> Pair | Quarantined:
    try:
        width, height = probe(image)
    except BadImage as error:
        return Quarantined(key, str(error))
    extra = json.dumps({"matched_sim": similarity})
    return Pair(key, image, width, height, (Caption("matched sentence", "raw", text),), extra=extra)


def _of_parent(data: DataSet, **settings: Any) -> dict[str, Any]:
    return {"parent": data.manifest.content_hash, "shards": "as in the parent", **settings}


def _rows(data: DataSet, shard: int) -> Iterator[dict[str, Any]]:
    """The rows of a shard. Holds one row group in memory at a time."""
    reader, shards = Reader(data, keep_groups=1), data.manifest.shards
    first = sum(len(before.row_groups) for before in shards[:shard])
    for group in range(first, first + len(shards[shard].row_groups)):
        table = reader.group(group)
        for row in range(table.num_rows):
            yield {name: table[name][row].as_py() for name in table.column_names}


KINDS = ("laion-random", "mmc4-pair")


def derive(
    kind: str,
    folder: Location | str,
    out: Location | str,
    *,
    role: Role = "raw",
    min_similarity: float = MIN_SIMILARITY,
    seed: int = 0,
    name: str | None = None,
    progress: OnImportProgress | None = None,
    mapped: Mapped | None = None,
) -> ImportReport:
    """Write the data set that is derived from a folder of shards. Ray must be started.

    `mapped=map_here` (`data/parallel.py`) derives in this process, without Ray.

    `laion-random` takes captions of this `role`; `mmc4-pair` takes images with at least this `min_similarity`. Raises
    CornerstoneError if `kind` is unknown, if the parent is of the wrong kind, if the out folder already contains a finished
    data set, and if no row is left.
    """
    data = check(kind, folder, out)
    options = ImportOptions(seed=seed, name=name)
    source = LaionRandom(data, options, role) if kind == "laion-random" else Mmc4Pair(data, options, min_similarity)
    return run_import(kind, source, data.location, Location.of(out), progress, mapped=mapped)


def check(kind: str, folder: Location | str, out: Location | str) -> DataSet:
    """Open the parent data set. Raises CornerstoneError as `derive` does, for everything that can be checked in advance."""
    if kind not in KINDS:
        raise CornerstoneError(f"Unknown data set {kind!r}{did_you_mean(kind, KINDS)}")
    data = DataSet.open(folder, "pairs" if kind == "laion-random" else "documents")
    refuse_existing(Location.of(out))
    return data
