"""`pairs-jsonl`: a file of JSON objects, one per line, beside a folder of images.

Each line names its image in `image`, relative to the folder of the list or to `--images`. The driver scans the list once
and keeps 16 bytes per row (offset and length); the tasks read lines and images.
"""

from __future__ import annotations

import io
import json
from array import array
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from cornerstone.data import draws
from cornerstone.data.images import BadImage
from cornerstone.data.importers.core import ImportOptions, ImportPlan, Quarantined, Sample
from cornerstone.data.importers.debris import is_debris
from cornerstone.data.importers.fields import conditions, find, meets, names, spelled
from cornerstone.data.importers.folder import ImageFolder
from cornerstone.data.manifest import Kind
from cornerstone.data.output import stamps
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError, did_you_mean

LIST = "captions.jsonl"
IMAGE = "image"
_SHOWN = 50  # values of a field that an error message may suggest


class PairsJsonl:
    """The format of this module. Subclasses read lists in other formats: they override how records are found and parsed."""

    kind: Kind = "pairs"
    image = IMAGE
    """Name of the field with the image's file name."""
    record = "JSON object"
    """What error messages call a record."""

    def __init__(self, src: Location, options: ImportOptions) -> None:
        if not (options.raw or options.long or options.label):
            raise CornerstoneError(
                "No field is named for captions: give --raw FIELD.. or --long FIELD.. (or --label FIELD)."
            )
        self.options, self.list = options, self.find_list(src)
        self.image = options.image or self.image
        parent = self.list.parent
        self.images = parent if options.images is None else Location.of(options.images)
        if not self.images.exists():
            raise CornerstoneError(
                f"No image folder at {self.images}. Name the folder that `{self.image}` is relative to: --images."
            )
        self.where = conditions(options.where)

    def plan(self) -> ImportPlan:
        """Scan the list for the lines that meet the conditions, shuffle them and split them into tasks."""
        scan = Scan(self)
        self.scan(scan)
        order = draws.permutation(len(scan.offsets), self.options.seed, "import-order")[: self.options.limit_rows]
        places = np.stack([np.asarray(scan.offsets, np.int64), np.asarray(scan.lengths, np.int64)], axis=1)[order]
        step = self.options.rows_per_shard
        return ImportPlan(
            tasks=[places[start : start + step] for start in range(0, len(places), step)],
            order={"rows": "permuted", "seed": self.options.seed},
            source=stamps([self.list, self.images]),
            classes=tuple(sorted(scan.labels)),
            quarantined=tuple(scan.quarantined),
        )

    def scan(self, scan: Scan) -> None:
        """Feed every record to a scan. Raises CornerstoneError if no row is left or a named field does not exist."""
        with self.list.open_input() as stream:
            for offset, record in self.records(io.BufferedReader(stream, 1 << 20)):
                scan.record(record, offset)
        scan.check()

    def read(self, task: Any) -> Iterator[Sample | Quarantined]:
        """The rows of some lines, given as (offset, length)."""
        folder = ImageFolder(self.images, self.options.follow_links)
        with self.list.open_input() as stream:
            for offset, length in task.tolist():
                found = self.row(stream, offset, length)
                if isinstance(found, Quarantined):
                    yield found
                    continue
                image, row = found
                try:
                    yield Sample(image, self.fetch(folder, image), row)
                except (OSError, ValueError, BadImage) as reason:
                    yield Quarantined(image, str(reason))

    def row(self, stream: Any, offset: int, length: int) -> tuple[str, dict[str, Any]] | Quarantined:
        """The image name of a record and its other fields, or why the record is quarantined."""
        stream.seek(offset)
        row = self.parse(stream.read(length))
        if isinstance(row, str):
            return Quarantined(f"{self.list.name} at byte {offset}", row)
        image = row.pop(self.image, None)
        if not isinstance(image, str) or not image:
            return Quarantined(f"{self.list.name} at byte {offset}", f"no image: `{self.image}` is {image!r}")
        return image, row

    def find_list(self, src: Location) -> Location:
        """The location of the list. Raises CornerstoneError if there is none."""
        return _list_file(src)

    def records(self, stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
        """Offset and bytes of every record of the list."""
        offset = 0
        for line in stream:
            yield offset, line
            offset += len(line)

    def parse(self, record: bytes) -> dict[str, Any] | str:
        """The fields of a record, or the reason why it cannot be parsed."""
        return parse(record)

    def fetch(self, folder: ImageFolder, image: str) -> bytes:
        """The bytes of a row's image. Raises OSError or ValueError if it cannot be read."""
        return folder.read(image)


def parse(line: bytes) -> dict[str, Any] | str:
    """The JSON object of a line, or the reason why it cannot be parsed."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    return row if isinstance(row, dict) else f"not JSON: expected an object, found {type(row).__name__}"


class Scan:
    """Collects in one pass over the list the places of rows, class names, and field names for error messages."""

    def __init__(self, source: PairsJsonl) -> None:
        self.source = source
        self.offsets, self.lengths = array("q"), array("q")
        self.labels: set[str] = set()
        self.quarantined: list[Quarantined] = []
        self.names: dict[str, None] = {}
        options = source.options
        self.missing = {source.image, *options.texts, *(field for field, _ in source.where)}
        self.missing |= {options.label} if options.label else set()
        self.values: dict[str, set[str]] = {field: set() for field, _ in source.where}
        self.rows = 0

    def record(self, line: bytes, offset: int) -> None:
        """Look at one record, given as its bytes in the list."""
        if not line.strip():
            return
        row = self.source.parse(line)
        if isinstance(row, str):
            self.quarantined.append(Quarantined(f"{self.source.list.name} at byte {offset}", row))
            return
        self.rows += 1
        if self.missing or self.rows <= _SHOWN:
            self.names.update(dict.fromkeys(names(row)))
            self.missing = {field for field in self.missing if find(row, field) is None}
        for field, seen in self.values.items():
            if len(seen) < _SHOWN and (value := find(row, field)) is not None:
                seen.update(map(spelled, value if isinstance(value, list) else [value]))
        if meets(row, self.source.where):
            self.keep(row, offset, len(line))

    def keep(self, row: dict[str, Any], offset: int, length: int) -> None:
        """Remember a record that meets the conditions."""
        self.offsets.append(offset)
        self.lengths.append(length)
        if self.source.options.label and (value := find(row, self.source.options.label)) is not None:
            self.labels.add(spelled(value))

    def check(self) -> None:
        """Raise CornerstoneError if there is no row to import, or if no row has a named field."""
        where = self.source.list
        if self.rows == 0:
            raise CornerstoneError(f"{where} has no {self.source.record} in any line. Name another list.")
        for field in sorted(self.missing):
            raise CornerstoneError(f"No row of {where} has a field {field!r}{did_you_mean(field, self.names)}")
        if not self.offsets:
            for field, value in self.source.where:
                if value not in self.values[field]:
                    hint = did_you_mean(value, self.values[field])
                    raise CornerstoneError(f"No row of {where} has {field}={value!r}{hint}")
            raise CornerstoneError(f"No row of {where} meets all of --where {' '.join(self.source.options.where)}.")


def _list_file(src: Location) -> Location:
    if not src.exists():
        raise CornerstoneError(f"Nothing at {src}: expected a .jsonl file, or a folder with {LIST}.")
    if src.name.endswith((".jsonl", ".json", ".ndjson")):
        return src
    if not src.join(LIST).exists():
        lists = sorted(name for name in src.list() if name.endswith(".jsonl") and not is_debris(name))
        found = f" It has {', '.join(lists)}: name one of them." if lists else " Name the list itself."
        raise CornerstoneError(f"{src} has no {LIST}.{found}")
    return src.join(LIST)
