"""The index: a data set whose rows are packed sequences, made once for (documents, tokenizer, config) by Ray tasks.

A file of the index is made from the same file of the data, a row group of it from `groups_together` row groups there. So
every task packs alone in a small memory, and the sequences of a row group, which the plan keeps together, are read from
the few row groups that they were made from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from cornerstone.data.documents.config import PackingConfig, PackingKeys, SpecialIds
from cornerstone.data.documents.pieces import Counted, Lengths, Piece, measured, pack
from cornerstone.data.manifest import Manifest, Shard
from cornerstone.data.output import Done, finish, finished, writing
from cornerstone.data.parallel import Progress, map_tasks
from cornerstone.data.shards import DataSet, write_row_groups
from cornerstone.data.storage import Location
from cornerstone.data.texts import FILE as TOKENIZER
from cornerstone.errors import CornerstoneError

_PARTS = ("kind", "text", "extra")  # of a segment: the images' bytes are not read
_COLUMNS = [f"segments.list.element.{part}" for part in _PARTS]
_INT = pa.int32()
PIECE = pa.struct(
    [
        pa.field("row", pa.int64()),
        *(pa.field(name, _INT) for name in ("first", "first_token", "stop", "stop_token")),
        pa.field("end", pa.bool_()),
        *(pa.field(name, _INT) for name in ("tokens", "images")),
    ]
)
SCHEMA = pa.schema([pa.field("pieces", pa.list_(PIECE)), pa.field("tokens", _INT), pa.field("images", _INT)])
_WORDS = {"data": "the documents (content hash)", "tokenizer": "the tokenizer", "token_budget": "the budget of tokens"}


@dataclass
class _Made:
    """What was packed; `pieces` counts a document once for every sequence in which it stands."""

    sequences: int = 0
    pieces: int = 0
    images: int = 0
    tokens: int = 0
    counted: Counted = field(default_factory=Counted)

    def join(self, other: _Made) -> None:
        self.counted.join(other.counted)
        for name in ("sequences", "pieces", "images", "tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def told(self) -> dict[str, Any]:
        """All of it as plain values; `of` reads them back."""
        left_out = [[what, why, count] for (what, why), count in self.counted.left_out.items()]
        return {**vars(self), "counted": {"found": self.counted.found, "left_out": left_out}}

    @staticmethod
    def of(told: dict[str, Any]) -> _Made:
        left_out = Counter({(what, why): count for what, why, count in told["counted"]["left_out"]})
        return _Made(**{**told, "counted": Counted(Counter(told["counted"]["found"]), left_out)})

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


def plain_tokenizer(tokenizer: str) -> Tokenizer:
    """Words to ids and nothing else: saved tokenizers often carry a limit and a padding of their own."""
    made = Tokenizer.from_str(tokenizer)
    made.no_truncation()
    made.no_padding()
    return made


def write_packing(
    folder: Location | str, out: Location | str, tokenizer: str, config: PackingConfig, progress: Progress | None = None
) -> Manifest:
    """Pack a data set's documents into a new folder, a Ray task a file. Needs Ray to be started.

    `tokenizer` is the text of a `tokenizer.json`; it is kept beside the index. The manifest's `source["packed"]` says how
    many sequences there are, the documents and images in each, the share of padding, and what was left out and why.
    Raises CornerstoneError for a folder that holds no documents, an out folder that holds a data set, a tokenizer that has
    nothing to begin and end a text with, and where no document can be used.
    """
    data, out = DataSet.open(folder, "documents"), Location.of(out)
    SpecialIds.of(tokenizer)  # what cannot be read later is refused now
    keys = PackingKeys.of(data.manifest.content_hash, tokenizer, config)
    shards = data.manifest.shards
    first = np.cumsum([0, *(shard.rows for shard in shards)]).tolist()
    items = [(shard.file, row) for shard, row in zip(shards, first, strict=False)]
    work = partial(_packed, data=data.location, out=out, tokenizer=tokenizer, config=config, settings=keys.digest())
    failed = f"Packing stopped, {out} is unfinished (the same command goes on after its finished files):"
    total, written = _Made(), list[Shard]()
    with writing(out):
        for done in map_tasks(work, items, failed=failed, progress=progress):
            total.join(_Made.of(done.told))
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


def _packed(
    item: tuple[str, int], data: Location, out: Location, tokenizer: str, config: PackingConfig, settings: str
) -> Done:
    """Pack the documents of one file, the first of which is row `item[1]`, and write the index's file of that name."""
    if (done := finished(out, item[0], settings)) is not None:
        return done
    made = _Made()
    tables = _tables(data.join(item[0]), item[1], plain_tokenizer(tokenizer), config, made)
    first = next(tables, None)
    shards = () if first is None else (write_row_groups(out, item[0], chain([first], tables)),)
    done = Done(shards, made.told())
    finish(out, item[0], settings, done)
    return done


def _tables(place: Location, row: int, tokenizer: Tokenizer, config: PackingConfig, made: _Made) -> Iterator[pa.Table]:
    """The index's row groups, a few row groups of texts in memory at a time; none for those that give no sequence."""
    try:
        with place.open_input() as stream:
            parquet = pq.ParquetFile(stream)
            for start in range(0, parquet.num_row_groups, config.groups_together):
                groups = range(start, min(start + config.groups_together, parquet.num_row_groups))
                segments = parquet.read_row_groups(list(groups), columns=_COLUMNS)["segments"]
                sequences, counted = pack(measure(segments, row, tokenizer, config), config)
                row += len(segments)
                made.counted.join(counted)
                if sequences:
                    yield _table(sequences, made)
    except (OSError, pa.ArrowException) as error:
        raise CornerstoneError(f"{place} is not readable ({error}); see `cornerstone data verify`.") from error


def measure(segments: pa.ChunkedArray, row: int, tokenizer: Tokenizer, config: PackingConfig) -> list[Lengths]:
    """The lengths of some documents, given their `segments`; `row` is the first one's."""
    documents = [document or [] for document in segments.to_pylist()]
    texts = [part["text"] or "" for document in documents for part in document]
    lengths = iter([len(encoded) for encoded in tokenizer.encode_batch_fast(texts, add_special_tokens=False)])
    return [
        measured(
            config,
            row + place,
            [part["kind"] == "image" for part in document],
            [part["extra"] for part in document],
            [next(lengths) for _ in document],
        )
        for place, document in enumerate(documents)
    ]


def _table(sequences: list[list[Piece]], made: _Made) -> pa.Table:
    tokens = [sum(piece.tokens for piece in sequence) for sequence in sequences]
    images = [sum(piece.images for piece in sequence) for sequence in sequences]
    made.sequences += len(sequences)
    made.pieces += sum(map(len, sequences))
    made.images += sum(images)
    made.tokens += sum(tokens)
    pieces = [[piece._asdict() for piece in sequence] for sequence in sequences]
    return pa.Table.from_pydict({"pieces": pieces, "tokens": tokens, "images": images}, schema=SCHEMA)


def check_packing(index: Location | str, wanted: PackingKeys) -> DataSet:
    """Open an index; CornerstoneError names every key that differs from what the run needs."""
    opened = DataSet.open(index, "packing")
    found, needed = opened.manifest.keys, wanted.named()
    different = [
        f"{_WORDS.get(key, key.replace('_', ' '))}: packed with {found.get(key)!r}, needed {value!r}"
        for key, value in needed.items()
        if found.get(key) != value
    ]
    if different:
        raise CornerstoneError(
            f"The packed sequences at {index} do not fit this run. {'; '.join(different)}. "
            f"Pack the documents again with `cornerstone data pack`, or name the index that fits."
        )
    return opened
