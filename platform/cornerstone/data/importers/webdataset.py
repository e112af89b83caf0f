"""`webdataset`: tars whose members `KEY.jpg`, `KEY.txt`, `KEY.json` follow each other.

Fields are the parts' endings (`txt`, `long.txt`) and the names inside the JSON part. Tars come in seeded order; inside
a tar, rows leave a shuffle window of 1,000 in seeded order. Nothing is ever extracted to disk.
"""

from __future__ import annotations

import fnmatch
import io
import json
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from tarfile import EOFHeaderError, HeaderError, ReadError  # type: ignore[attr-defined]
from typing import Any, Self, TypeVar

from cornerstone.data import draws
from cornerstone.data.importers.core import MAX_BYTES, ImportOptions, Plan, Refused, Sample, meets
from cornerstone.data.importers.fields import conditions, find, names
from cornerstone.data.manifest import Kind
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError, did_you_mean

WINDOW = 1000
T = TypeVar("T")
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
        self.tars = find_tars(src)

    def plan(self) -> Plan:
        """One piece of work a tar; a single one where rows are limited, which reads no more tars than it needs."""
        order = draws.permutation(len(self.tars), self.options.seed, "import-order")
        tars = [(int(i), self.tars[i]) for i in order]
        self._check_fields(tars)
        tasks = [[tar] for tar in tars] if self.options.limit_rows is None else [tars]
        return Plan(tasks, order={"tars": "permuted", "window": WINDOW, "seed": self.options.seed})

    def read(self, task: list[tuple[int, Location]]) -> Iterator[Sample | Refused]:
        """The rows of some tars: those that meet the conditions, at most `limit_rows`, through the window."""
        records = (record for _, tar in task for record in self._matching(tar))
        return shuffled(islice(records, self.options.limit_rows), self.options.seed, task[0][0])

    def _matching(self, tar: Location) -> Iterator[Sample | Refused]:
        for record in read_tar(tar, self._parts()):
            if isinstance(record, Refused) or meets(record.fields, self.where):
                yield record

    def _parts(self) -> tuple[str, ...]:
        return (*self.options.raw, *self.options.long, *(field for field, _ in self.where))

    def _check_fields(self, tars: list[tuple[int, Location]]) -> None:
        """Refuse a misspelt field before hours of work, by the first samples that there are."""
        records = (record for _, tar in tars for record in read_tar(tar, self._parts()))
        samples = list(islice((record.fields for record in records if isinstance(record, Sample)), _LOOKED_AT))
        known = sorted({name for sample in samples for name in names(sample)})
        for field in self._parts() if samples else ():
            if all(find(sample, field) is None for sample in samples):
                raise CornerstoneError(
                    f"None of the first {len(samples)} samples of {tars[0][1]} has a field {field!r}"
                    f"{did_you_mean(field, known)}"
                )


def find_tars(src: Location) -> list[Location]:
    """The tars that a tar, a folder, a glob (`cc3m/*.tar`) or a brace list (`{00000..00331}.tar`) names, sorted."""
    found: list[Location] = []
    for location in map(Location, braces(src.uri)):
        folder, _, last = location.uri.rpartition("/")
        if any(sign in last for sign in "*?["):
            found += [Location(folder).join(name) for name in Location(folder).list() if fnmatch.fnmatch(name, last)]
        elif location.uri.endswith(ENDINGS):
            if not location.exists():
                raise CornerstoneError(f"No tar at {location}.")
            found.append(location)
        elif location.exists():
            found += [location.join(name) for name in location.list() if name.endswith(ENDINGS)]
        else:
            raise CornerstoneError(f"Nothing at {location}: expected a tar, a folder of tars, a glob or a brace list.")
    if not found:
        raise CornerstoneError(f"No tar in {src}: expected files that end with {', '.join(ENDINGS)}.")
    return sorted(set(found), key=lambda tar: tar.uri)


def braces(pattern: str) -> list[str]:
    """`a{0..2}.tar` and `{train,val}.tar` spelled out; zeros in front are kept."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    inside = match.group(1)
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if numbers:
        first, last = numbers.groups()
        choices = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    else:
        choices = inside.split(",")
    return [text for choice in choices for text in braces(pattern[: match.start()] + choice + pattern[match.end() :])]


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
    name = tar.uri.rpartition("/")[2]
    stem = name.partition(".")[0]
    key, sample, complete = "", dict[str, Any](), 0
    try:
        with (
            tar.open_input() as stream,
            tarfile.open(fileobj=io.BufferedReader(stream, 1 << 20), mode="r|*", tarinfo=_Header) as members,
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


def shuffled(records: Iterator[T], seed: int, task: int) -> Iterator[T]:
    """The records in random order, as far as a window of WINDOW allows."""
    window: list[T] = []
    for count, record in enumerate(records):
        if len(window) < WINDOW:
            window.append(record)
            continue
        place = int(draws.choice(WINDOW, seed, "import-window", task, count)[0])
        window[place], record = record, window[place]
        yield record
    for place in draws.permutation(len(window), seed, "import-window", task, -1):
        yield window[place]
