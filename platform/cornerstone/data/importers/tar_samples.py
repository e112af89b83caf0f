"""Samples of a tar: members that share a key, `KEY.jpg`, `KEY.txt`, `KEY.json`.

WebDataset wants the members of a sample to follow each other, and reads a tar as a stream. Tars made by `tar cf a.tar *.jpg
*.txt` do not have that order: a sample that is not complete when the next one starts is held back until the rest of it
comes, or until the tar ends.
"""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from tarfile import EOFHeaderError, HeaderError, ReadError  # type: ignore[attr-defined]
from typing import Any, Self

from cornerstone.data.importers.core import MAX_BYTES, Quarantined, Sample
from cornerstone.data.importers.debris import is_debris
from cornerstone.data.importers.files import reading
from cornerstone.data.storage import Location

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
MOST_HELD = 512 << 20
"""Bytes of incomplete samples that are held back at a time."""
_MAX_TEXT = 16 << 20
_BROKEN = (tarfile.TarError, EOFError, OSError, zlib.error)
_TEXTS = ("txt", "cls")
_MISSING = ("no image", "scattered")


@dataclass(frozen=True)
class Names:
    """How a member's name is split into the key of its sample and an ending, and which ending is the image."""

    parts: tuple[str, ...] = ()
    """Endings that are read as text beside txt and cls."""
    image: str = ""
    """The image's ending among several; empty: the only one."""
    at_last_dot: bool = False
    """Keys contain dots (`2023.05.10.jpg`). WebDataset's rule is that the key ends at the first dot."""

    def split(self, name: str) -> tuple[str, str]:
        """`a/0001.long.txt` as `a/0001` and `long.txt`. Hidden files and other debris give two empty strings."""
        name = name.removeprefix("./")
        if is_debris(name):
            return "", ""
        folder, slash, last = name.rpartition("/")
        if self.at_last_dot:
            ending = next((part for part in self.parts if last.lower().endswith(f".{part.lower()}")), "")
            stem = last[: -len(ending) - 1] if ending else last.rpartition(".")[0]
            ending = ending or last.rpartition(".")[2]
        else:
            stem, _, ending = last.partition(".")
        return (folder + slash + stem, ending.lower()) if stem else ("", "")

    def is_image(self, ending: str) -> bool:
        """Whether a member with this ending is the image of its sample."""
        return ending == self.image if self.image else ending in IMAGES

    def is_text(self, ending: str) -> bool:
        """Whether a member with this ending is a text."""
        return ending.rpartition(".")[2] in _TEXTS or ending in self.parts


class _Header(tarfile.TarInfo):
    """A header that makes truncated tars raise: `tarfile` takes a missing or broken header for the end of the tar."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except EOFHeaderError:
            raise
        except HeaderError as error:
            raise ReadError(f"no end-of-archive marker, {error}") from error


def member_names(tar: Location, most: int) -> list[str]:
    """The names of the first files of a tar; those before the damage if it is damaged."""
    found: list[str] = []
    try:
        with reading(tar) as stream, tarfile.open(fileobj=stream, mode="r|*") as members:
            for member in members:
                if member.isreg() and not is_debris(member.name):
                    found.append(member.name)
                if len(found) == most:
                    break
    except _BROKEN:
        pass
    return found


def read_tar(
    tar: Location, names: Names, is_complete: Callable[[Sample], bool] = lambda sample: True
) -> Iterator[Sample | Quarantined]:
    """The samples of one tar. A damaged tar gives the samples before the damage, then the reason it stops there.

    `is_complete` says whether a sample has all that is wanted of it. One that has not waits for further members; samples whose
    members follow each other come in the order of the tar.
    """
    samples = _Samples(tar.name.partition(".")[0], names, is_complete)
    try:
        with (
            reading(tar) as stream,
            tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Header) as members,
        ):
            for member in members:
                if (reason := _unsafe(member)) is not None:
                    yield Quarantined(f"{samples.stem}/{member.name}", reason)
                    continue
                key, ending = names.split(member.name)
                if member.isdir() or not ending:
                    continue
                yield from samples.turn_to(key)
                yield from samples.add(member.name, ending, _content(members, member, ending, names))
                members.members = []  # type: ignore[attr-defined]  # tarfile would keep every header in memory
    except _BROKEN as error:
        yield from samples.rest(only_complete=True)
        yield Quarantined(
            tar.name, f"damaged tar: {samples.given:,} samples could be read{samples.lost_from()} ({error})"
        )
        return
    yield from samples.rest()


class _Samples:
    """Collects members into samples."""

    def __init__(self, stem: str, names: Names, is_complete: Callable[[Sample], bool]) -> None:
        self.stem, self.names, self._is_complete = stem, names, is_complete
        self.given = 0
        """Samples that were yielded, usable ones only."""
        self._key = ""
        self._held: dict[str, dict[str, Any]] = {}
        self._bytes = 0
        self._gone: set[str] = set()
        self._scattered = False

    def turn_to(self, key: str) -> Iterator[Sample | Quarantined]:
        """A member of this key comes next: yield the sample before it, if it is complete."""
        if key == self._key:
            return
        before, self._key = self._key, key
        self._scattered = self._scattered or key in self._held
        if before and not self._scattered:
            found = self._sample(before)
            if self._is_complete(found) if isinstance(found, Sample) else not found.reason.startswith(_MISSING):
                yield self._give(before, found)
        if self._bytes > MOST_HELD:
            for held in [one for one in self._held if one != key]:
                yield self._give(held, self._sample(held))

    def add(self, name: str, ending: str, content: Any) -> Iterator[Quarantined]:
        """Add a member to the current sample."""
        sample = self._held.setdefault(self._key, {})
        if ending in sample:
            yield Quarantined(f"{self.stem}/{name}", "duplicate: the sample has two members with this extension")
            return
        sample[ending] = content
        self._bytes += len(content) if isinstance(content, bytes | str) else 64

    def rest(self, only_complete: bool = False) -> Iterator[Sample | Quarantined]:
        """The tar ended: whatever is left, complete or not. Of a damaged tar the last sample may lack members."""
        for key in list(self._held):
            found = self._sample(key)
            if only_complete and (isinstance(found, Quarantined) or not self._is_complete(found)):
                continue
            yield self._give(key, found)

    def lost_from(self) -> str:
        """Where the rows that a damage has lost begin."""
        if not self._key:
            return ""
        after = self._key in self._gone
        return f", rows after {self._key} are lost" if after else f", rows from {self._key} on are lost"

    def _give(self, key: str, found: Sample | Quarantined) -> Sample | Quarantined:
        for content in self._held.pop(key).values():
            self._bytes -= len(content) if isinstance(content, bytes | str) else 64
        self._gone.add(key)
        self.given += isinstance(found, Sample)
        return found

    def _sample(self, key: str) -> Sample | Quarantined:
        parts, place = self._held.get(key, {}), f"{self.stem}/{key}"
        for value in parts.values():
            if isinstance(value, Quarantined):
                return Quarantined(place, value.reason)
        image = next((value for ending, value in parts.items() if self.names.is_image(ending)), None)
        if image is None and key in self._gone:
            return Quarantined(
                place, "scattered members: others of this sample came long before; sort the tar (tar --sort=name)"
            )
        if image is None:
            return Quarantined(place, f"no image: only {', '.join(sorted(parts))}")
        fields = dict(parts["json"]) if isinstance(parts.get("json"), dict) else {}
        fields |= {ending: value for ending, value in parts.items() if isinstance(value, str)}
        return Sample(place, image, fields)


def _unsafe(member: tarfile.TarInfo) -> str | None:
    """Why a member is quarantined without being read; None if it is a plain file or folder inside the tar."""
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "outside the folder: the path is absolute or contains `..`"
    if not (member.isreg() or member.isdir()):
        return "not a file: the member is a link or a device"
    return None


def _content(members: tarfile.TarFile, member: tarfile.TarInfo, ending: str, names: Names) -> Any:
    """An image's bytes, a text or parsed JSON; None for a member that is not needed; a Quarantined if it cannot be used."""
    is_image = names.is_image(ending)
    if not is_image and ending != "json" and not names.is_text(ending):
        return None
    if member.size > (MAX_BYTES if is_image else _MAX_TEXT):
        return Quarantined(member.name, f"too large: {member.size:,} bytes in .{ending}")
    file = members.extractfile(member)
    content = file.read() if file is not None else b""
    if is_image:
        return content
    if ending != "json":
        return content.decode("utf-8-sig", "replace")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        return Quarantined(member.name, f"not JSON: {error}")
