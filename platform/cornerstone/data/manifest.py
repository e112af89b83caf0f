"""What a data set says of itself: `manifest.json`, written last, so that a folder without one is an unfinished one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError

FILE = "manifest.json"
WRITER = ".writer"
"""Whoever is writing a folder says so in a file of this name."""
RECORD = ".done.json"
"""What ends the name of a finished piece's record, while the folder is unfinished."""
VERSION = 1
Kind = Literal["pairs", "documents", "features", "mixture", "packing"]


@dataclass(frozen=True)
class Shard:
    """One Parquet file: its name inside the folder, rows of each row group, size and SHA-256 of its bytes."""

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
    """A data set of a mixture: where it lies, what it held when it was mixed, how often it is repeated (`2`, `0.5`)."""

    data: str
    weight: str
    kind: Kind
    rows: int
    content: str


@dataclass(frozen=True)
class Manifest:
    """A finished data set.

    `name` is also the evaluation set's default name. `classes` are indexed by the rows' labels; each of `prompts` holds
    `{}` where the class name goes. `tasks` says what an evaluation set is for, `pool` in how many images at a time
    retrieval is judged (None: over the whole set). `source` says where the rows came from; `keys` is what a feature
    store was computed from. A mixture has no shards of its own but `members`.
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
        """Rows in all shards, or of all members."""
        return sum(shard.rows for shard in self.shards) + sum(member.rows for member in self.members)

    @property
    def row_groups(self) -> tuple[int, ...]:
        """Rows of every row group, over the shards in their order: the units that an epoch shuffles."""
        return tuple(rows for shard in self.shards for rows in shard.row_groups)

    @cached_property
    def content_hash(self) -> str:
        """A digest of what the rows hold, in order: the shards' hashes, class names and prompts; no name, no path."""
        content: list[Any] = [[s.sha256 for s in self.shards], self.classes, self.prompts]
        if self.members:
            content.append([[member.content, member.weight] for member in self.members])
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def write(self, folder: Location) -> None:
        """Finish the folder. Called once, after the last shard is closed."""
        fields = asdict(self)
        shards = ",\n".join(json.dumps(shard) for shard in fields.pop("shards"))
        rest = json.dumps(fields, indent=1)
        folder.join(FILE).write_text(f'{rest[:-2]},\n "shards": [\n{shards}\n]}}\n')

    @staticmethod
    def read(folder: Location | str, kind: Kind | None = None) -> Manifest:
        """Open a data set.

        Raises CornerstoneError where the folder is missing, empty, unfinished, of another kind, or not a data set.
        """
        folder = Location.of(folder)
        path = folder.join(FILE)
        if not path.exists():
            raise CornerstoneError(_why_no_manifest(folder))
        try:
            fields = json.loads(path.read_text(), object_hook=_Shared())
            version = int(fields["version"])
            if version > VERSION:  # before the fields, which may be others by then
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
            raise CornerstoneError(f"{folder} holds a data set without rows. Import some, or name another folder.")
        return manifest

    def require(self, kind: Kind, folder: Location) -> None:
        """Raise CornerstoneError where the folder that was read holds another kind."""
        if self.kind != kind:
            raise CornerstoneError(f"{folder} holds {self.kind}, but {kind} are needed here.")

    def named(self, name: str) -> Manifest:
        """The same data set under another name."""
        return replace(self, name=name)


class _Shared:
    """Shards with the same row groups share one tuple of them while the JSON is read: a billion rows fit a small memory."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], tuple[int, ...]] = {}

    def __call__(self, fields: dict[str, Any]) -> dict[str, Any]:
        """An object of the JSON."""
        if "row_groups" in fields:
            own = tuple(fields["row_groups"])
            fields["row_groups"] = self._known.setdefault(own, own)
        return fields


def _why_no_manifest(folder: Location) -> str:
    if not folder.exists():
        return f"No data set at {folder}: the folder does not exist. Make one with `cornerstone data import` or `data scenes`."
    files = folder.list()
    if not files:
        return f"No data set at {folder}: the folder is empty. Fill it with `cornerstone data import` or `data scenes`."
    if any(name.endswith(RECORD) or name.startswith(WRITER) for name in files):
        return (
            f"{folder} is unfinished: it is being written, or the writing was interrupted. The command that writes it, given "
            f"again, goes on after the finished pieces; or delete the folder."
        )
    if any(name.endswith(".parquet") for name in files):
        return (
            f"{folder} has Parquet files but no {FILE}: either the writing was interrupted (write it again with --out to an "
            f"empty folder), or these are not Cornerstone shards (bring them in with `cornerstone data import`)."
        )
    shown = ", ".join(sorted(files)[:3])
    return (
        f"{folder} is not a data set: it has no {FILE} but {len(files)} other files ({shown}, ...). "
        f"Bring them in with `cornerstone data import FORMAT {folder} --out DIR`."
    )
