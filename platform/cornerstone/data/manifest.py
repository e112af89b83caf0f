"""`manifest.json`: the description of a data set. It is written last, so a folder without one is unfinished."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError

FILE = "manifest.json"
WRITER = ".writer"
"""The lock file of the process that is writing a folder."""
RECORD = ".done.json"
"""Suffix of the record of a finished task. The records are removed when the folder is finished."""
VERSION = 1
Kind = Literal["pairs", "documents", "features", "mixture", "packing"]
_NAMED: dict[str, str] = {
    "pairs": "pairs",
    "documents": "documents",
    "features": "stored features",
    "mixture": "a mixture",
    "packing": "packed documents",
}
_CHANGED = {
    ("documents", "packing"): " Pack them: `cornerstone data pack DIR --tokenizer T --out PACKED`.",
    ("documents", "pairs"): " `cornerstone data derive mmc4-pair DIR --out PAIRS` makes pairs of them.",
    ("pairs", "documents"): " `cornerstone data derive laion-random DIR --out DOCUMENTS` makes documents of them.",
    (
        "pairs",
        "packing",
    ): " Make documents of them with `cornerstone data derive laion-random`, then `cornerstone data pack`.",
    (
        "packing",
        "pairs",
    ): " Name pairs, for example those that `cornerstone data derive mmc4-pair` makes of the documents.",
    ("packing", "documents"): " Name the folder of documents that was packed.",
}
"""What makes the one kind of the other."""
RETRIEVAL, CLASSIFICATION, LOOKALIKE, PROBE = "retrieval", "classification", "lookalike", "probe"
SENTENCE_SWAP, ATTENTION = "sentence-swap", "attention"
"""Names of evaluation tasks, which importers and the built-in scenes write into manifests. They are checked when a data set
is opened for evaluation, not here."""


@dataclass(frozen=True)
class Shard:
    """One Parquet file: its name in the folder, the rows of each row group, its size in bytes and its SHA-256."""

    file: str
    row_groups: tuple[int, ...]
    bytes: int
    sha256: str

    @property
    def rows(self) -> int:
        """Rows in the file."""
        return sum(self.row_groups)


@dataclass(frozen=True)
class Member:
    """A data set of a mixture: its folder, its weight (`2`, `0.5`), and its kind, rows and content hash at mixing time."""

    data: str
    weight: str
    kind: Kind
    rows: int
    content: str


@dataclass(frozen=True)
class Manifest:
    """A finished data set.

    `name` is also the default name of the evaluation set. `classes` are indexed by the labels of the rows; each of `prompts`
    contains `{}` in place of the class name. `tasks` are the evaluation tasks of the set, `pool` is the number of images
    among which retrieval is evaluated (None: the whole set). `source` describes the origin of the rows; `keys` is what a
    feature store was computed from. A mixture has `members` instead of shards.
    """

    kind: Kind
    name: str
    shards: tuple[Shard, ...]
    classes: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    pool: int | None = None
    source: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)
    members: tuple[Member, ...] = ()
    version: int = VERSION

    @cached_property
    def rows(self) -> int:
        """Rows of all shards or all members."""
        return sum(shard.rows for shard in self.shards) + sum(member.rows for member in self.members)

    @property
    def row_groups(self) -> tuple[int, ...]:
        """Rows of every row group, in the order of the shards. Each epoch shuffles row groups."""
        return tuple(rows for shard in self.shards for rows in shard.row_groups)

    @cached_property
    def content_hash(self) -> str:
        """A digest of the content in order: hashes of the shards, class names and prompts, but no name and no path."""
        content: list[Any] = [[s.sha256 for s in self.shards], self.classes, self.prompts]
        if self.members:
            content.append([[member.content, member.weight] for member in self.members])
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    @property
    def split(self) -> str:
        """Which rows of their origin these are, in words: `split=test`, `the first 1,000`, `seed 0` of scenes; or `all`."""
        source = self.source
        said = [*source.get("where", ()), *(f"seed {made['seed']}" for made in [source.get("scenes")] if made)]
        said += [f"the first {source['first']:,}"] if source.get("first") else []
        said += [f"{source['limit_rows']:,} drawn rows"] if source.get("limit_rows") else []
        return ", ".join(said) or "all"

    def write(self, folder: Location) -> None:
        """Write the manifest, which finishes the folder. Called once, after the last shard is closed."""
        fields = asdict(self)
        shards = ",\n".join(json.dumps(shard) for shard in fields.pop("shards"))
        rest = json.dumps(fields, indent=1)
        folder.join(FILE).write_text(f'{rest[:-2]},\n "shards": [\n{shards}\n]}}\n')

    @staticmethod
    def read(folder: Location | str, kind: Kind | None = None) -> Manifest:
        """Read the manifest of a folder.

        Raises CornerstoneError if the folder is missing, empty, unfinished, of another kind, or not a data set.
        """
        folder = Location.of(folder)
        path = folder.join(FILE)
        if not path.exists():
            raise CornerstoneError(_why_no_manifest(folder))
        try:
            fields = json.loads(path.read_text(), object_hook=_Shared())
            version = int(fields["version"])
            if version > VERSION:  # checked first, because a newer version may have other fields
                raise CornerstoneError(f"{path} has version {version}, newer than {VERSION}: update Cornerstone.")
            shards = tuple(Shard(**shard) for shard in fields.pop("shards"))
            members = tuple(Member(**member) for member in fields.pop("members", ()))
            lists = {k: tuple(fields[k]) for k in ("classes", "prompts", "tasks")}
            manifest = Manifest(shards=shards, members=members, **{**fields, **lists})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CornerstoneError(
                f"{path} is not a Cornerstone manifest ({error}). Write the data set again with `cornerstone data import`."
            ) from error
        if kind is not None:
            manifest.require(kind, folder)
        if manifest.rows == 0:
            raise CornerstoneError(f"{folder} holds a data set without rows. Write it again, or name another folder.")
        return manifest

    def require(self, kind: Kind, folder: Location) -> None:
        """Raise CornerstoneError if the folder that was read holds another kind."""
        if self.kind != kind:
            raise CornerstoneError(
                f"{folder} holds {_NAMED[self.kind]}, but {_NAMED[kind]} are needed here.{_CHANGED.get((self.kind, kind), '')}"
            )


class _Shared:
    """JSON object hook that makes shards with equal row groups share one tuple, so that a billion rows need little memory."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], tuple[int, ...]] = {}

    def __call__(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Called with each JSON object as it is read."""
        if "row_groups" in fields:
            own = tuple(fields["row_groups"])
            fields["row_groups"] = self._known.setdefault(own, own)
        return fields


def _why_no_manifest(folder: Location) -> str:
    if not folder.exists():
        return f"No data set at {folder}: the folder does not exist. Write one with `cornerstone data import` or `data scenes`."
    files = folder.list()
    if not files:
        return (
            f"No data set at {folder}: the folder is empty. Write one with `cornerstone data import` or `data scenes`."
        )
    if any(name.endswith(RECORD) or name.startswith(WRITER) for name in files):
        return (
            f"{folder} is unfinished: it is being written, or the writing was interrupted. Run the same command again to "
            f"resume (finished tasks are kept), or delete the folder."
        )
    if any(name.endswith(".parquet") for name in files):
        return (
            f"{folder} has Parquet files but no {FILE}: either the writing was interrupted (write it again with --out to an "
            f"empty folder), or these are not Cornerstone shards (import them with `cornerstone data import`)."
        )
    shown = ", ".join(sorted(files)[:3])
    return (
        f"{folder} is not a data set: it has no {FILE} but {len(files)} other files ({shown}, ...). "
        f"Import them with `cornerstone data import FORMAT {folder} --out DIR`."
    )
