"""`cornerstone data pack`: pack the documents of a data set into sequences, one Ray task per shard.

The result is an index: a data set whose rows list the pieces of documents that make up a sequence. Each shard of the index
is made from the data's shard of the same name, and each of its row groups from `groups_together` row groups of the data. So
a task needs little memory, and the sequences of one row group, which the plan keeps together, are read from few row groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from cornerstone.data.documents.config import PackingConfig, PackingKeys, SpecialIds
from cornerstone.data.documents.index import SCHEMA, measure
from cornerstone.data.documents.pieces import Counted, Piece, pack
from cornerstone.data.manifest import Manifest, Shard
from cornerstone.data.output import Done, finish, finished, writing
from cornerstone.data.parallel import OnProgress, map_tasks
from cornerstone.data.shards import DataSet, write_row_groups
from cornerstone.data.storage import Location
from cornerstone.data.texts import FILE as TOKENIZER
from cornerstone.data.texts import plain_tokenizer
from cornerstone.errors import CornerstoneError

_SEGMENT_FIELDS = ("kind", "text", "extra")  # the bytes of the images are not read
_COLUMNS = [f"segments.list.element.{name}" for name in _SEGMENT_FIELDS]


@dataclass
class _Counts:
    """Numbers of what was packed. `pieces` counts a document once for each sequence that contains a piece of it."""

    sequences: int = 0
    pieces: int = 0
    images: int = 0
    tokens: int = 0
    counted: Counted = field(default_factory=Counted)

    def add(self, other: _Counts) -> None:
        self.counted.join(other.counted)
        for name in ("sequences", "pieces", "images", "tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def to_record(self) -> dict[str, Any]:
        """Plain values for the record of a finished task; the inverse of `from_record`."""
        left_out = [[what, why, count] for (what, why), count in self.counted.left_out.items()]
        return {**vars(self), "counted": {"found": self.counted.found, "left_out": left_out}}

    @staticmethod
    def from_record(record: dict[str, Any]) -> _Counts:
        left_out = Counter({(what, why): count for what, why, count in record["counted"]["left_out"]})
        return _Counts(**{**record, "counted": Counted(Counter(record["counted"]["found"]), left_out)})

    def as_json(self, budget: int) -> dict[str, Any]:
        left_out: dict[str, dict[str, int]] = {}
        for (what, why), count in sorted(self.counted.left_out.items()):
            left_out.setdefault(what, {})[why] = count
        return {
            "sequences": self.sequences,
            "documents_per_sequence": self.pieces / self.sequences,
            "images_per_sequence": self.images / self.sequences,
            "tokens": self.tokens,
            "padding": 1 - self.tokens / (self.sequences * budget),
            "found": dict(self.counted.found),
            "left_out": left_out,
        }


def write_packing(
    folder: Location | str,
    out: Location | str,
    tokenizer: str,
    config: PackingConfig,
    progress: OnProgress | None = None,
    *,
    mapped: Callable[..., Iterator[Done]] | None = None,
) -> Manifest:
    """Pack the documents of a data set into a new folder, one Ray task per shard. Ray must be started.

    `mapped=map_here` (`data/parallel.py`) packs in this process, without Ray.
    `tokenizer` is the text of a `tokenizer.json`; a copy is kept beside the index. The manifest's `source["packed"]` gives
    the number of sequences, documents and images per sequence, the share of padding, and what was left out and why.
    Raises CornerstoneError if the folder holds no documents, if the out folder already holds a data set, if the tokenizer
    has no tokens to begin and end a text with, and if no document can be packed.
    """
    data, out = DataSet.open(folder, "documents"), Location.of(out)
    SpecialIds.of(tokenizer)  # fail now rather than when sequences are read
    keys = PackingKeys.of(data.manifest.content_hash, tokenizer, config)
    shards = data.manifest.shards
    first_rows = np.cumsum([0, *(shard.rows for shard in shards)]).tolist()
    items = [(shard.file, row) for shard, row in zip(shards, first_rows, strict=False)]
    work = partial(_pack_shard, data=data.location, out=out, tokenizer=tokenizer, config=config, settings=keys.digest())
    failed = f"Packing stopped, {out} is unfinished (run the same command again to resume; finished shards are kept):"
    total, written = _Counts(), list[Shard]()
    with writing(out):
        for done in (mapped or map_tasks)(work, items, failed=failed, progress=progress):
            total.add(_Counts.from_record(done.report))
            written += done.shards
        if not written:
            raise CornerstoneError(_why_empty(data, total.counted, config))
        source = {"data": data.location.uri, "packed": total.as_json(config.token_budget)}
        out.join(TOKENIZER).write_text(tokenizer)
        manifest = Manifest("packing", data.name, tuple(written), source=source, keys=keys.named())
        manifest.write(out)
    return manifest


def _why_empty(data: DataSet, counted: Counted, config: PackingConfig) -> str:
    why = {f"{count:,} × {reason}" for (_, reason), count in counted.left_out.items()}
    return (
        f"No document of {data.location} can be packed by the rule {config.rule} with {config.token_budget} tokens a "
        f"sequence: {', '.join(sorted(why))}. Try another --rule, a lower --min-similarity or a larger --budget."
    )


def _pack_shard(
    item: tuple[str, int], data: Location, out: Location, tokenizer: str, config: PackingConfig, settings: str
) -> Done:
    """Pack one shard, given as (file, number of its first row), and write the shard of the index with the same name."""
    file, first_row = item
    if (done := finished(out, file, settings)) is not None:
        return done
    counts = _Counts()
    tables = _row_groups(data.join(file), first_row, plain_tokenizer(tokenizer), config, counts)
    first = next(tables, None)
    shards = () if first is None else (write_row_groups(out, file, chain([first], tables)),)
    done = Done(shards, counts.to_record())
    finish(out, file, settings, done)
    return done


def _row_groups(
    place: Location, row: int, tokenizer: Tokenizer, config: PackingConfig, counts: _Counts
) -> Iterator[pa.Table]:
    """The row groups of the index; groups of documents that give no sequence are skipped. Holds few row groups in memory."""
    try:
        with place.open_input() as stream:
            parquet = pq.ParquetFile(stream)
            for start in range(0, parquet.num_row_groups, config.groups_together):
                groups = range(start, min(start + config.groups_together, parquet.num_row_groups))
                segments = parquet.read_row_groups(list(groups), columns=_COLUMNS)["segments"]
                sequences, counted = pack(measure(segments, row, tokenizer, config), config)
                row += len(segments)
                counts.counted.join(counted)
                if sequences:
                    yield _table(sequences, counts)
    except (OSError, pa.ArrowException) as error:
        raise CornerstoneError(f"Cannot read {place} ({error}). Check it with `cornerstone data verify`.") from error


def _table(sequences: list[list[Piece]], counts: _Counts) -> pa.Table:
    tokens = [sum(piece.tokens for piece in sequence) for sequence in sequences]
    images = [sum(piece.images for piece in sequence) for sequence in sequences]
    counts.sequences += len(sequences)
    counts.pieces += sum(map(len, sequences))
    counts.images += sum(images)
    counts.tokens += sum(tokens)
    pieces = [[piece._asdict() for piece in sequence] for sequence in sequences]
    return pa.Table.from_pydict({"pieces": pieces, "tokens": tokens, "images": images}, schema=SCHEMA)
