"""The index: a data set whose rows are packed sequences. `jobs/packing.py` writes one per (documents, tokenizer, config)."""

from __future__ import annotations

import pyarrow as pa
from tokenizers import Tokenizer

from cornerstone.data.documents.config import PackingConfig, PackingKeys
from cornerstone.data.documents.pieces import Lengths, measured
from cornerstone.data.shards import DataSet
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError

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
_WORDS = {"data": "the documents (content hash)", "tokenizer": "the tokenizer", "token_budget": "the token budget"}


def measure(segments: pa.ChunkedArray, row: int, tokenizer: Tokenizer, config: PackingConfig) -> list[Lengths]:
    """The lengths of some documents, given their `segments`. `row` is the row id of the first one."""
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


def check_packing(index: Location | str, wanted: PackingKeys) -> DataSet:
    """Open an index. Raises CornerstoneError, which lists every key that differs from `wanted`."""
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
            f"Pack the documents again with `cornerstone data pack`, or name another index."
        )
    return opened
