"""`webdataset`: tars whose members `KEY.jpg`, `KEY.txt`, `KEY.json` follow each other.

Fields are the parts' endings (`txt`, `long.txt`) and the names inside the JSON part. Nothing is ever extracted to disk.
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

from cornerstone.data.importers.core import MAX_BYTES, ImportOptions, ImportPlan, Refused, Sample, meets
from cornerstone.data.importers.fields import conditions, find, names
from cornerstone.data.importers.files import Task, find_files, plan_files, read_files, reading
from cornerstone.data.manifest import Kind
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError, did_you_mean

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
ENDINGS = (".tar", ".tar.gz", ".tgz")
_MAX_TEXT = 16 << 20
_LOOKED_AT = 256  # samples whose fields are compared with the options before the work begins
_BROKEN = (tarfile.TarError, EOFError, OSError, zlib.error)


class WebDataset:
    """The format; see the module. Without --raw and --long the raw text is `txt`."""

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
        """One piece of work a tar; a single one where rows are limited, which reads no more tars than it needs."""
        plan = plan_files(self.tars, self.options, "tars")
        self._check_fields([tar for task in plan.tasks for _, tar in task])
        return plan

    def read(self, task: Task) -> Iterator[Sample | Refused]:
        """The rows of some tars: those that meet the conditions, at most `limit_rows`, through the window."""
        return read_files(task, self._matching, self.options)

    def _matching(self, tar: Location) -> Iterator[Sample | Refused]:
        for record in read_tar(tar, self._parts()):
            if isinstance(record, Refused) or meets(record.fields, self.where):
                yield record

    def _parts(self) -> tuple[str, ...]:
        return (*self.options.raw, *self.options.long, *(field for field, _ in self.where))

    def _check_fields(self, tars: list[Location]) -> None:
        """Refuse a misspelt field before hours of work, by the first samples that there are."""
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
    """An entry's header. `tarfile` takes a missing or broken one for the end of the tar; only the end mark is that."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except EOFHeaderError:
            raise
        except HeaderError as error:
            raise ReadError(f"no end mark, {error}") from error


def read_tar(tar: Location, parts: tuple[str, ...]) -> Iterator[Sample | Refused]:
    """The samples of one tar in its order. A damaged tar gives what lies before the damage, then why it ends there."""
    name = tar.name
    stem = name.partition(".")[0]
    key, sample, complete = "", dict[str, Any](), 0
    try:
        with (
            reading(tar) as stream,
            tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Header) as members,
        ):
            for member in members:
                refusal = _refusal(member)
                if refusal:
                    yield Refused(f"{stem}/{member.name}", refusal)
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
                    yield Refused(f"{stem}/{member.name}", "duplicate: the sample has this part already")
                    continue
                sample[ending] = _content(members, member, ending, parts)
                members.members = []  # type: ignore[attr-defined]  # tarfile would remember every entry
    except _BROKEN as error:
        lost = f", in sample {key}" if sample else ""
        yield Refused(name, f"damaged tar: the rest is lost after {complete} samples{lost} ({error})")
        return
    if sample:
        yield _sample(f"{stem}/{key}", sample)


def _refusal(member: tarfile.TarInfo) -> str | None:
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "outside the folder: the entry's path leads out of it"
    if not (member.isreg() or member.isdir()):
        return "not a file: the entry is a link or a device"
    return None


def _split(name: str) -> tuple[str, str]:
    """`a/0001.long.txt` as `a/0001` and `long.txt`; hidden files have no ending."""
    folder, slash, last = name.removeprefix("./").rpartition("/")
    stem, _, ending = last.partition(".")
    return (folder + slash + stem, ending.lower()) if stem else ("", "")


def _content(members: tarfile.TarFile, member: tarfile.TarInfo, ending: str, parts: tuple[str, ...]) -> Any:
    """An image's bytes, a text, a parsed JSON; None for a part that nobody asked for; a Refused says what is wrong."""
    is_image = ending in IMAGES
    if not is_image and ending not in ("json", "txt") and ending not in parts:
        return None
    if member.size > (MAX_BYTES if is_image else _MAX_TEXT):
        return Refused(member.name, f"too large: {member.size:,} bytes in .{ending}")
    file = members.extractfile(member)
    content = file.read() if file is not None else b""
    if is_image:
        return content
    if ending != "json":
        return content.decode("utf-8-sig", "replace")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        return Refused(member.name, f"not JSON: {error}")


def _sample(key: str, parts: dict[str, Any]) -> Sample | Refused:
    for value in parts.values():
        if isinstance(value, Refused):
            return Refused(key, value.reason)
    images = [value for ending, value in parts.items() if ending in IMAGES]
    if not images:
        return Refused(key, f"no image: only {', '.join(sorted(parts))}")
    fields = dict(parts["json"]) if isinstance(parts.get("json"), dict) else {}
    fields |= {ending: value for ending, value in parts.items() if isinstance(value, str)}
    return Sample(key, images[0], fields)
