"""Writing and reading shards: Parquet files with small row groups, and the manifest that is written last."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cornerstone.data.manifest import Kind, Manifest, Shard
from cornerstone.data.output import refuse_existing, writing
from cornerstone.data.records import SCHEMAS, Record
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError

# A worker's share of a step touches one or two row groups: small ones keep it from reading rows of other workers.
ROWS_PER_GROUP = 64
ROWS_PER_SHARD = 8192
# Files that a reader keeps open: a shuffle window has 64 shards, and a batch across a boundary touches two windows.
KEPT_FILES = 160


class _Hashing:
    """A stream that computes the SHA-256 of what is written to it, so that no shard is read again for its hash."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.sha256, self.written = stream, hashlib.sha256(), 0
        self.closed = False

    def write(self, data: Any) -> int:
        self.stream.write(data)
        view = memoryview(data)
        self.sha256.update(view)
        self.written += view.nbytes
        return view.nbytes

    def flush(self) -> None:
        self.stream.flush()

    def tell(self) -> int:
        return self.written

    def close(self) -> None:
        self.closed = True

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False


def _write_groups(folder: Location, name: str, groups: Iterator[pa.Table]) -> Shard | None:
    """Write each table as a row group before the next one is computed; no file if there is no table."""
    first = next(groups, None)
    if first is None:
        return None
    rows: list[int] = []
    with folder.join(name).replacing() as stream:
        sink = _Hashing(stream)
        with pq.ParquetWriter(pa.PythonFile(sink, mode="w"), first.schema, compression="zstd") as writer:
            for group in itertools.chain([first], groups):
                writer.write_table(group, row_group_size=group.num_rows)
                rows.append(group.num_rows)
    return Shard(name, tuple(rows), sink.written, sink.sha256.hexdigest())


def write_shard(
    folder: Location, index: int, records: Iterable[Record], kind: Kind = "pairs", rows_per_group: int = ROWS_PER_GROUP
) -> Shard | None:
    """Write one shard of records as `shard-00042.parquet`; None if there are no records. Safe to call in parallel.

    Records are consumed one row group at a time, so that memory does not grow with the shard.
    """
    waiting = iter(records)

    def table() -> pa.Table:
        return pa.Table.from_pylist(
            [r.as_row() for r in itertools.islice(waiting, rows_per_group)], schema=SCHEMAS[kind]
        )

    def groups() -> Iterator[pa.Table]:
        while (group := table()).num_rows:
            yield group

    return _write_groups(folder, f"shard-{index:05d}.parquet", groups())


def write_row_groups(folder: Location, name: str, groups: Iterable[pa.Table]) -> Shard:
    """Write one derived shard (stored features, new captions), each table as one row group."""
    shard = _write_groups(folder, name, iter(groups))
    assert shard is not None, "a shard has rows, and so has the shard that is derived from it"
    return shard


class ShardWriter:
    """Writes records one by one, in this process. The manifest is written if the `with` block ends without an exception.

    >>> with ShardWriter("photos", name="photos") as writer:
    ...     writer.add(pair)
    """

    def __init__(
        self,
        folder: Location | str,
        *,
        rows_per_shard: int = ROWS_PER_SHARD,
        rows_per_group: int = ROWS_PER_GROUP,
        kind: Kind = "pairs",
        **manifest: Any,
    ) -> None:
        self.folder = Location.of(folder)
        refuse_existing(self.folder)
        self._held = ExitStack()
        self.rows_per_shard, self.rows_per_group = rows_per_shard, rows_per_group
        self.kind, self.fields = kind, manifest
        self.shards: list[Shard] = []
        self._waiting: list[Record] = []
        self.manifest: Manifest | None = None

    def add(self, record: Record) -> None:
        """Add a row; a shard is written as soon as it is full."""
        self._waiting.append(record)
        if len(self._waiting) >= self.rows_per_shard:
            self._write()

    def _write(self) -> None:
        shard = write_shard(self.folder, len(self.shards), self._waiting, self.kind, self.rows_per_group)
        if shard is not None:
            self.shards.append(shard)
        self._waiting = []

    def __enter__(self) -> ShardWriter:
        self._held.enter_context(writing(self.folder))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._held:
            if kind is not None:
                return
            self._write()
            if not self.shards:
                raise CornerstoneError(f"No row was written to {self.folder}: the source has no usable row.")
            self.manifest = Manifest(kind=self.kind, shards=tuple(self.shards), **self.fields)
            self.manifest.write(self.folder)


@dataclass(frozen=True)
class DataSet:
    """An opened folder of shards: its location and its manifest."""

    location: Location
    manifest: Manifest

    @staticmethod
    def open(folder: Location | str, kind: Kind | None = None) -> DataSet:
        """Open a folder. Raises CornerstoneError as `Manifest.read` does."""
        location = Location.of(folder)
        return DataSet(location, Manifest.read(location, kind))

    def __len__(self) -> int:
        return self.manifest.rows

    @property
    def name(self) -> str:
        """The name of the data set."""
        return self.manifest.name


class Reader:
    """Random access to rows by their position in the data set. Reads whole row groups and caches the last few.

    Each decode actor of the stream has its own reader. The plan takes the rows of a batch from few row groups, so that nearly
    everything that is read is used.
    """

    def __init__(self, data: DataSet, columns: Sequence[str] | None = None, keep_groups: int = 8) -> None:
        self.data, self.columns, self.keep_groups = data, list(columns) if columns else None, keep_groups
        shards = data.manifest.shards
        self._ends = np.cumsum(np.fromiter((shard.rows for shard in shards), np.int64, len(shards)))
        self._group_ends = np.cumsum(np.fromiter((len(shard.row_groups) for shard in shards), np.int64, len(shards)))
        self._files: dict[int, pq.ParquetFile] = {}
        self._groups: dict[int, pa.Table] = {}

    def take(self, rows: npt.NDArray[np.int64]) -> pa.Table:
        """The rows in the requested order, as one table; an empty table if no row is requested."""
        if len(rows) == 0:
            return self.group(0).slice(0, 0)
        groups, within = self._places(rows)
        parts, order = [], []
        for group in dict.fromkeys(groups.tolist()):
            places = np.flatnonzero(groups == group)
            parts.append(self.group(group).take(pa.array(within[places])))
            order.append(places)
        table = pa.concat_tables(parts)
        return table.take(pa.array(np.argsort(np.concatenate(order), kind="stable")))

    def _places(self, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The row group of each row and its position in it, computed only from the shards that contain the rows."""
        shards = np.searchsorted(self._ends, rows, side="right")
        groups, within = np.empty_like(rows), np.empty_like(rows)
        for shard in np.unique(shards).tolist():
            chosen = shards == shard
            described = self.data.manifest.shards[shard]
            ends = np.cumsum(described.row_groups)
            local = rows[chosen] - (self._ends[shard] - described.rows)
            inside = np.searchsorted(ends, local, side="right")
            groups[chosen] = self._group_ends[shard] - len(ends) + inside
            within[chosen] = local - (ends - described.row_groups)[inside]
        return groups, within

    def group(self, group: int) -> pa.Table:
        """One row group; `group` counts the row groups of all shards."""
        if group not in self._groups:
            while len(self._groups) >= self.keep_groups:
                del self._groups[next(iter(self._groups))]
            shard = int(np.searchsorted(self._group_ends, group, side="right"))
            index = group - int(self._group_ends[shard]) + len(self.data.manifest.shards[shard].row_groups)
            try:
                self._groups[group] = self._file(shard).read_row_group(index, columns=self.columns)
            except (OSError, pa.ArrowInvalid) as error:
                source = self.data.location.join(self.data.manifest.shards[shard].file)
                raise CornerstoneError(f"Cannot read {source}: {error}. Write the data set again.") from error
        return self._groups[group]

    def _file(self, shard: int) -> pq.ParquetFile:
        if shard not in self._files:
            while len(self._files) >= KEPT_FILES:
                self._files.pop(next(iter(self._files))).close(force=True)
            described = self.data.manifest.shards[shard]
            source = self.data.location.join(described.file)
            file = pq.ParquetFile(source.open_input())
            found = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
            if tuple(found) != described.row_groups:
                raise CornerstoneError(
                    f"{source} has {sum(found)} rows, but its manifest says {described.rows}: write the data set again."
                )
            self._files[shard] = file
        return self._files[shard]
