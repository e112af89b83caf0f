"""Packed documents as a source to train on. No torch here: decode actors import this module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from cornerstone.data.documents.config import PackingConfig, PackingKeys
from cornerstone.data.documents.reader import PackedSequences
from cornerstone.data.images import Transform
from cornerstone.data.shards import DataSet
from cornerstone.data.source import Part, Rows

if TYPE_CHECKING:
    from cornerstone.data.documents.batch import SequenceBatch


@dataclass(frozen=True)
class PackedSource:
    """Sequences of one packing, or of several whose rows are counted one after another; a row is a sequence."""

    documents: tuple[str, ...]
    """The folders of documents behind the packings."""
    packings: tuple[str, ...]
    configs: tuple[PackingConfig, ...]
    parts: tuple[Part, ...]
    tokenizer: str
    """The text of the `tokenizer.json` that they were packed with."""
    transform: Transform
    seed: int

    @staticmethod
    def of(
        packings: Sequence[DataSet], parts: tuple[Part, ...], tokenizer: str, transform: Transform, seed: int
    ) -> PackedSource:
        """The source of some opened packings, by the settings that they were made with."""
        documents = tuple(str(packing.manifest.source["data"]) for packing in packings)
        configs = tuple(PackingKeys.read(packing.manifest.keys).config for packing in packings)
        folders = tuple(packing.location.uri for packing in packings)
        return PackedSource(documents, folders, configs, parts, tokenizer, transform, seed)

    @property
    def rows(self) -> int:
        """Sequences of all packings."""
        return sum(part.rows for part in self.parts)

    @property
    def row_bytes(self) -> int:
        """Of a sequence filled with images: 9 bytes a token (id, document, target) and the pixels."""
        tokens, image = self.configs[0].token_budget, self.configs[0].tokens_per_image
        return 9 * tokens + tokens // image * 3 * self.transform.size**2

    def open(self) -> Rows:
        """Open packings and documents; CornerstoneError if they do not fit each other, saying what differs."""
        return PackedSequences(self.documents, self.packings, self.tokenizer, self.configs, self.transform, self.seed)

    def batch(self, step: int, table: pa.Table) -> SequenceBatch:
        """The tensors of a step."""
        from cornerstone.data.documents.batch import sequence_batch

        return sequence_batch(step, table)
