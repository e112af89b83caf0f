"""`webdataset`: tars in which the members of a sample, `KEY.jpg`, `KEY.txt`, `KEY.json`, follow each other.

Fields are the extensions of the members (`txt`, `long.txt`) and the names inside the JSON member. Tars are read as streams;
nothing is extracted to disk.
"""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from tarfile import EOFHeaderError, HeaderError, ReadError  # type: ignore[attr-defined]
from typing import Any, Self

from cornerstone.data.importers.core import MAX_BYTES, ImportOptions, ImportPlan, Quarantined, Sample, meets
from cornerstone.data.importers.fields import conditions, find, names
from cornerstone.data.importers.files import Task, find_files, plan_files, read_files, reading
from cornerstone.data.manifest import Kind
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError, did_you_mean

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
ENDINGS = (".tar", ".tar.gz", ".tgz")
_MAX_TEXT = 16 << 20
_LOOKED_AT = 256  # samples whose fields are compared with the options before the import starts
_BROKEN = (tarfile.TarError, EOFError, OSError, zlib.error)


class WebDataset:
    """The format of this module. Without --raw and --long the raw caption is `txt`."""

    kind: Kind = "pairs"

    def __init__(self, src: Location, options: ImportOptions) -> None:
        if options.label is not None:
            raise CornerstoneError("--label needs all class names before the first row: import a list (pairs-jsonl).")
        if options.images is not None:
            raise CornerstoneError("--images has no effect on tars, which hold their images. Leave it out.")
        self.options = options if options.raw or options.long else replace(options, raw=("txt",))
        self.where = conditions(options.where)
        self.tars = find_files(src, ENDINGS, "tar")

    def plan(self) -> ImportPlan:
        """One task per tar; with `limit_rows` a single task, which reads no more tars than it needs."""
        plan = plan_files(self.tars, self.options, "tars")
        self._check_fields([tar for task in plan.tasks for _, tar in task])
        return plan

    def read(self, task: Task) -> Iterator[Sample | Quarantined]:
        """The rows of some tars that meet the conditions, at most `limit_rows`, through the shuffle buffer."""
        return read_files(task, self._matching, self.options)

    def _matching(self, tar: Location) -> Iterator[Sample | Quarantined]:
        for record in read_tar(tar, self._parts()):
            if isinstance(record, Quarantined) or meets(record.fields, self.where):
                yield record

    def _parts(self) -> tuple[str, ...]:
        return (*self.options.raw, *self.options.long, *(field for field, _ in self.where))

    def _check_fields(self, tars: list[Location]) -> None:
        """Raise CornerstoneError for a field that none of the first samples has, before hours of work."""
        records = (record for tar in tars for record in read_tar(tar, self._parts()))
        samples = list(islice((record.fields for record in records if isinstance(record, Sample)), _LOOKED_AT))
        known = sorted({name for sample in samples for name in names(sample)})
        for field in self._parts() if samples else ():
            if all(find(sample, field) is None for sample in samples):
                raise CornerstoneError(
                    f"None of the first {len(samples)} samples of {tars[0]} has a field {field!r}"
                    f"{did_you_mean(field, known)}"
                )


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


def read_tar(tar: Location, parts: tuple[str, ...]) -> Iterator[Sample | Quarantined]:
    """The samples of one tar, in order. A damaged tar gives the samples before the damage, then the reason it stops there."""
    name = tar.name
    stem = name.partition(".")[0]
    key, sample, complete = "", dict[str, Any](), 0
    try:
        with (
            reading(tar) as stream,
            tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Header) as members,
        ):
            for member in members:
                if (reason := _unsafe(member)) is not None:
                    yield Quarantined(f"{stem}/{member.name}", reason)
                    continue
                member_key, ending = _split(member.name)
                if member.isdir() or not ending:
                    continue
                if member_key != key:
                    if sample:
                        yield _sample(f"{stem}/{key}", sample)
                        complete += 1
                    key, sample = member_key, {}
                if ending in sample:
                    yield Quarantined(
                        f"{stem}/{member.name}", "duplicate: the sample has two members with this extension"
                    )
                    continue
                sample[ending] = _content(members, member, ending, parts)
                members.members = []  # type: ignore[attr-defined]  # tarfile would keep every header in memory
    except _BROKEN as error:
        lost = f", in sample {key}" if sample else ""
        yield Quarantined(name, f"damaged tar: the rest is lost after {complete} samples{lost} ({error})")
        return
    if sample:
        yield _sample(f"{stem}/{key}", sample)


def _unsafe(member: tarfile.TarInfo) -> str | None:
    """Why a member is quarantined without being read; None if it is a plain file or folder inside the tar."""
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "outside the folder: the path is absolute or contains `..`"
    if not (member.isreg() or member.isdir()):
        return "not a file: the member is a link or a device"
    return None


def _split(name: str) -> tuple[str, str]:
    """Split `a/0001.long.txt` into `a/0001` and `long.txt`. Hidden files give two empty strings."""
    folder, slash, last = name.removeprefix("./").rpartition("/")
    stem, _, ending = last.partition(".")
    return (folder + slash + stem, ending.lower()) if stem else ("", "")


def _content(members: tarfile.TarFile, member: tarfile.TarInfo, ending: str, parts: tuple[str, ...]) -> Any:
    """An image's bytes, a text or parsed JSON; None for a member that is not needed; a Quarantined if it cannot be used."""
    is_image = ending in IMAGES
    if not is_image and ending not in ("json", "txt") and ending not in parts:
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


def _sample(key: str, parts: dict[str, Any]) -> Sample | Quarantined:
    for value in parts.values():
        if isinstance(value, Quarantined):
            return Quarantined(key, value.reason)
    images = [value for ending, value in parts.items() if ending in IMAGES]
    if not images:
        return Quarantined(key, f"no image: only {', '.join(sorted(parts))}")
    fields = dict(parts["json"]) if isinstance(parts.get("json"), dict) else {}
    fields |= {ending: value for ending, value in parts.items() if isinstance(value, str)}
    return Sample(key, images[0], fields)
