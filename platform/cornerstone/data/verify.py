"""`cornerstone data verify`: check a data set against its manifest, down to the header of every image.

One Ray task per shard reads the file twice: its bytes in chunks for the hash, then its row groups for the rows. So memory
does not grow with the shard, and no image passes through the driver.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from cornerstone.data.documents import index as packing
from cornerstone.data.images import BadImage, probe
from cornerstone.data.manifest import FILE, Manifest, Shard
from cornerstone.data.pairs.feature_store import feature_schema, store_width
from cornerstone.data.parallel import OnProgress, map_tasks
from cornerstone.data.records import ROLES, SCHEMAS
from cornerstone.data.shards import DataSet
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError, first_line

_BESIDE = (FILE, "quarantine.jsonl", "tokenizer.json")  # files that the manifest does not list but that are expected
_REPEATS_NAMED = 20
Row = dict[str, Any]
Found = Iterator[tuple[str, str]]
"""Kind and detail of each problem of one row."""


@dataclass(frozen=True)
class Problem:
    """One problem: its kind, the shard, the row in the shard (None: the file as a whole), and the detail."""

    kind: str
    shard: str
    row: int | None
    detail: str

    def __str__(self) -> str:
        place = self.shard if self.row is None else f"{self.shard} row {self.row}"
        return f"{place}: {self.kind}: {self.detail}"


@dataclass(frozen=True)
class Verdict:
    """What was checked and what was found.

    Repeated keys and files that the manifest does not list are reported, but are not problems: rows are identified by their
    position and not by their key, and unlisted files are never read.
    """

    folder: str
    kind: str
    shards: int
    rows: int
    images: int
    captions: int
    problems: tuple[Problem, ...]
    repeated_keys: int
    repeats: tuple[str, ...]
    """Positions of the first repeated keys."""
    unnamed: tuple[str, ...]

    @property
    def kinds(self) -> dict[str, int]:
        """Problems by kind, most frequent first."""
        return dict(Counter(problem.kind for problem in self.problems).most_common())

    def as_json(self) -> dict[str, Any]:
        """Everything, for a JSON file."""
        return {**asdict(self), "kinds": self.kinds}


@dataclass(frozen=True)
class _Task:
    shard: Shard
    folder: Location
    manifest: Manifest  # without its shards, since it is sent to every task


@dataclass
class _Seen:
    """What a task reports about its shard: problems, counts, and the hash of each key (8 bytes per row)."""

    problems: list[Problem]
    keys: npt.NDArray[np.uint64]
    rows: int = 0
    images: int = 0
    captions: int = 0


def verify(folder: Location | str, progress: OnProgress | None = None) -> Verdict:
    """Check a data set's files, schema and rows in parallel; every problem is in the verdict. Needs Ray to be started.

    Of packed sequences only the index is checked, not the documents. Raises CornerstoneError if the folder does not contain a
    finished data set, or if it contains a mixture, which has no shards of its own.
    """
    data = DataSet.open(folder)
    manifest, shards = data.manifest, data.manifest.shards
    if manifest.kind == "mixture":
        members = ", ".join(member.data for member in manifest.members)
        raise CornerstoneError(f"{data.location} holds a mixture, which has no shards of its own: verify {members}.")
    described = Manifest(manifest.kind, manifest.name, (), manifest.classes, source=manifest.source, keys=manifest.keys)
    tasks = [_Task(shard, data.location, described) for shard in shards]
    seen = list(map_tasks(_look, tasks, failed=f"Cannot verify {data.location}:", progress=progress))
    problems = [Problem("named twice", name, None, f"{n} entries in {FILE}") for name, n in _repeated(shards)]
    repeated, repeats = _repeated_keys([one.keys for one in seen], [shard.file for shard in shards])
    return Verdict(
        str(data.location),
        manifest.kind,
        len(shards),
        sum(one.rows for one in seen),
        sum(one.images for one in seen),
        sum(one.captions for one in seen),
        tuple(problems + [problem for one in seen for problem in one.problems]),
        repeated,
        repeats,
        tuple(sorted(set(data.location.list()) - {shard.file for shard in shards} - set(_BESIDE))),
    )


def _repeated(shards: tuple[Shard, ...]) -> list[tuple[str, int]]:
    return [(name, n) for name, n in Counter(shard.file for shard in shards).items() if n > 1]


def _repeated_keys(keys: list[npt.NDArray[np.uint64]], files: list[str]) -> tuple[int, tuple[str, ...]]:
    """How many rows have the key of an earlier row, and the positions of the first of them."""
    every = np.concatenate([*keys, np.zeros(0, np.uint64)])
    ends = np.cumsum([len(one) for one in keys])
    _, first, inverse = np.unique(every, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[inverse] != np.arange(len(every)))

    def place(row: int) -> str:
        shard = int(np.searchsorted(ends, row, side="right"))
        return f"{files[shard]} row {row - (int(ends[shard - 1]) if shard else 0)}"

    named = [f"{place(int(row))} has the key of {place(int(first[inverse[row]]))}" for row in again[:_REPEATS_NAMED]]
    return len(again), tuple(named)


def _look(task: _Task) -> _Seen:
    """Check one shard."""
    shard, source = task.shard, task.folder.join(task.shard.file)
    seen = _Seen([], np.zeros(0, np.uint64))

    def tell(kind: str, detail: str, row: int | None = None) -> None:
        seen.problems.append(Problem(kind, shard.file, row, detail))

    filesystem, path = source.resolve()
    found = filesystem.get_file_info(path)
    if found.type != fs.FileType.File:
        tell("missing shard", f"{FILE} lists it, but {task.folder} has no such file")
        return seen
    if found.size != shard.bytes:
        tell("other size", f"{found.size:,} bytes, {FILE} says {shard.bytes:,}")
    try:
        if found.size == shard.bytes and (digest := source.sha256()) != shard.sha256:
            tell("other bytes", f"SHA-256 {digest[:16]}…, {FILE} says {shard.sha256[:16]}…")
        with source.open_input() as stream:
            _look_inside(pq.ParquetFile(stream), task, seen, tell)
    except (OSError, pa.ArrowException) as error:
        tell("unreadable shard", f"not a complete Parquet file, truncated or damaged ({first_line(error)})")
    return seen


def _look_inside(file: pq.ParquetFile, task: _Task, seen: _Seen, tell: Callable[..., None]) -> None:
    manifest, groups = task.manifest, [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
    if tuple(groups) != task.shard.row_groups:
        tell("other row groups", f"{_told(groups)}, {FILE} says {_told(task.shard.row_groups)}")
    wanted = _wanted_schema(manifest)
    if wrong := _differences(file.schema_arrow, wanted):
        tell("other schema", f"{'; '.join(wrong)}: this is not the schema of {manifest.kind} that this version writes")
        return
    checks: dict[str, Callable[[Row, _Seen], Found]] = {
        "pairs": partial(_wrong_pair, classes=len(manifest.classes)),
        "documents": _wrong_document,
    }
    keys: list[int] = []
    for group in range(len(groups)):
        try:
            table = file.read_row_group(group)
        except (OSError, pa.ArrowException) as error:
            tell("unreadable rows", f"row group {group} is damaged ({first_line(error)})", seen.rows)
        else:
            if manifest.kind == "features":
                _look_at_vectors(table, seen, tell)
            elif manifest.kind == "packing":
                _look_at_sequences(table, int(manifest.keys["token_budget"]), seen, tell)
            else:
                for row in range(table.num_rows):
                    _look_at_row(table, row, checks[manifest.kind], seen, keys, tell)
        seen.rows += groups[group]
    seen.keys = np.array(keys, np.uint64)


def _look_at_row(
    table: pa.Table,
    row: int,
    check: Callable[[Row, _Seen], Found],
    seen: _Seen,
    keys: list[int],
    tell: Callable[..., None],
) -> None:
    values: Row = {}
    place = seen.rows + row
    for name in table.column_names:
        try:
            values[name] = table[name][row].as_py()
        except UnicodeDecodeError as error:
            tell("not UTF-8", f"{name}: {error.reason} at byte {error.start}", place)
    key = values.get("key", f"\0{place}")  # a key that is not UTF-8 does not count as repeated
    keys.append(int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little"))
    for kind, detail in check(values, seen):
        tell(kind, f"{detail} (key {key!r})", place)


def _wrong_pair(row: Row, seen: _Seen, classes: int) -> Found:
    if "image" in row:
        seen.images += 1
        try:
            size = probe(row["image"] or b"")
        except BadImage as error:
            yield "bad image", str(error)
        else:
            if size != (row["width"], row["height"]):
                yield "other image size", f"{size[0]} × {size[1]}, the row says {row['width']} × {row['height']}"
    label = row.get("label")
    if label is not None and not 0 <= label < classes:
        yield "label without class", f"{label}, the manifest has {classes} classes"
    for number, caption in enumerate(row.get("captions") or []):
        seen.captions += 1
        where = f"caption {number}"
        if caption is None:
            yield "empty caption", where
            continue
        if caption["role"] not in ROLES:
            yield "unknown role", f"{caption['role']!r} of {where}; known: {', '.join(ROLES)}"
        if not (caption["text"] or "").strip():
            yield "empty caption", f"{where}, of {caption['source']!r}"


def _wrong_document(row: Row, seen: _Seen) -> Found:
    if "segments" in row and not row["segments"]:
        yield "empty document", "no segments"
    for number, segment in enumerate(row.get("segments") or []):
        held = [kind for kind in ("text", "image") if segment is not None and segment[kind] is not None]
        if segment is None or held != [segment["kind"]]:
            said = segment and segment["kind"]
            held_text = " and ".join(held) or "nothing"
            yield "unclear segment", f"segment {number} has the kind {said!r} but holds {held_text}"
            continue
        if segment["kind"] == "text":
            seen.captions += 1
            continue
        seen.images += 1
        try:
            probe(segment["image"])
        except BadImage as error:
            yield "bad image", f"segment {number}: {error}"


def _look_at_vectors(table: pa.Table, seen: _Seen, tell: Callable[..., None]) -> None:
    column = table["feature"].combine_chunks()
    held = np.flatnonzero(column.is_valid())
    values = column.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(len(held), -1)
    for row in np.flatnonzero(column.is_null()).tolist():
        tell("no feature", "the row has no feature", seen.rows + row)
    for row in held[~np.isfinite(values).all(axis=1)].tolist():
        tell("not a number", "the feature contains NaN or infinity", seen.rows + row)


def _look_at_sequences(table: pa.Table, budget: int, seen: _Seen, tell: Callable[..., None]) -> None:
    for row, sequence in enumerate(table.to_pylist(), seen.rows):
        seen.images += sequence["images"] or 0
        tokens = sum(piece["tokens"] for piece in sequence["pieces"] or [])
        if not sequence["pieces"]:
            tell("empty sequence", "no pieces", row)
        elif not tokens == sequence["tokens"] <= budget:
            stated = f"{sequence['tokens']:,} of at most {budget:,}"
            tell("other length", f"its pieces have {tokens:,} tokens, the row says {stated}", row)


def _wanted_schema(manifest: Manifest) -> pa.Schema:
    if manifest.kind == "packing":
        return packing.SCHEMA
    if manifest.kind != "features":
        return SCHEMAS[manifest.kind]
    try:
        return feature_schema(store_width(manifest), manifest.keys["dtype"])
    except KeyError as missing:
        raise CornerstoneError(f"{FILE} of the features has no key {missing}: compute the features again.") from missing


def _differences(found: pa.Schema, wanted: pa.Schema) -> list[str]:
    """Missing columns, unknown columns, and columns of another type."""
    wrong = [f"no column {name!r}" for name in wanted.names if name not in found.names]
    wrong += [f"unknown column {name!r}" for name in found.names if name not in wanted.names]
    for name in wanted.names:
        if name in found.names and found.field(name).type != wanted.field(name).type:
            wrong.append(f"{name!r} is {found.field(name).type}, not {wanted.field(name).type}")
    return wrong


def _told(groups: tuple[int, ...] | list[int]) -> str:
    return f"{sum(groups):,} rows in {len(groups):,} row groups"
