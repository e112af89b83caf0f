"""`img2dataset`: the output of the downloader of that name, in any of its three formats.

These are tars with `.jpg`, `.txt` and `.json` for each sample, plain folders of the same files, and Parquet with the image
in `jpg`. The Parquet files beside tars and folders contain only metadata and are ignored, as are the `_stats.json` files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cornerstone.data.importers.core import Format, ImportOptions, ImportPlan, Quarantined, Sample
from cornerstone.data.importers.debris import is_debris
from cornerstone.data.importers.fields import conditions, meets, utf8
from cornerstone.data.importers.files import Task, plan_files, read_files
from cornerstone.data.importers.folder import ImageFolder
from cornerstone.data.importers.parquet_rows import ENDING, ParquetRows, image_column
from cornerstone.data.importers.tar_samples import IMAGES
from cornerstone.data.importers.webdataset import ENDINGS, WebDataset
from cornerstone.data.manifest import Kind
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError


def img2dataset(src: Location, options: ImportOptions) -> Format:
    """The reader of the format that the folder has. Raises CornerstoneError if it is none of the three."""
    if src.name.endswith(ENDINGS):
        return Tars(src, options)
    if src.name.endswith(ENDING):
        return ParquetRows(src, options, downloaded=True)
    if not src.exists():
        if any(sign in src.uri for sign in "{*?["):
            return Tars(src, options)
        raise CornerstoneError(f"Nothing at {src}: expected the output folder of img2dataset.")
    names = sorted(name for name in src.list() if not is_debris(name))
    if any(name.endswith(ENDINGS) for name in names):
        return Tars(src, options)
    tables = [name for name in names if name.endswith(ENDING)]
    if tables and image_column(_schema(src.join(tables[0]))):
        return ParquetRows(src, options, downloaded=True)
    folders = [name for name in names if name.isdecimal()]
    if folders:
        return Folders(src, options, folders)
    raise CornerstoneError(
        f"{src} is not an output of img2dataset: expected tars, numbered folders (00000), or Parquet with a column `jpg`; "
        f"found {', '.join(names[:5]) or 'nothing'}."
    )


def _schema(file: Location) -> pa.Schema:
    with file.open_input() as stream:
        return pq.read_schema(stream)


def usable(record: Sample | Quarantined) -> Sample | Quarantined:
    """A sample with `txt`, taken from its metadata if the file is missing. Quarantined if the download failed."""
    if isinstance(record, Quarantined):
        return record
    fields = record.fields
    if str(fields.get("status", "success")) != "success":
        return Quarantined(record.key, f"not downloaded: {fields.get('error_message') or fields['status']}")
    if "txt" not in fields and isinstance(fields.get("caption"), str):
        return replace(record, fields={**fields, "txt": fields["caption"]})
    return record


class Tars(WebDataset):
    """img2dataset's tars: WebDataset, with failed downloads quarantined by their metadata."""

    def _matching(self, tar: Location) -> Iterator[Sample | Quarantined]:
        return map(usable, super()._matching(tar))

    def _is_complete(self, sample: Sample) -> bool:
        found = usable(sample)  # the caption may be in the metadata
        return isinstance(found, Quarantined) or super()._is_complete(found)


class Folders:
    """Numbered folders of `000000000.jpg`, `.txt` and `.json`."""

    kind: Kind = "pairs"

    def __init__(self, src: Location, options: ImportOptions, folders: list[str]) -> None:
        if options.label is not None or options.images is not None:
            raise CornerstoneError("--label and --images have no effect on img2dataset's folders. Leave them out.")
        self.folders = [src.join(folder) for folder in sorted(folders)]
        self.options = options if options.raw or options.long else replace(options, raw=("txt",))
        self.where = conditions(options.where)

    def plan(self) -> ImportPlan:
        """One task per folder; with `limit_rows` a single task."""
        return plan_files(self.folders, self.options, "folders")

    def read(self, task: Task) -> Iterator[Sample | Quarantined]:
        """The rows of some folders that meet the conditions."""
        return read_files(task, self._matching, self.options)

    def _matching(self, folder: Location) -> Iterator[Sample | Quarantined]:
        found = map(usable, self._samples(folder))
        return (r for r in found if isinstance(r, Quarantined) or meets(r.fields, self.where))

    def _samples(self, folder: Location) -> Iterator[Sample | Quarantined]:
        parts: dict[str, list[str]] = {}
        for name in sorted(name for name in folder.list() if not is_debris(name)):
            stem, _, ending = name.partition(".")
            parts.setdefault(stem, []).append(ending.lower())
        place, number = ImageFolder(folder, self.options.follow_links), folder.name
        for stem, endings in parts.items():
            key = f"{number}/{stem}"
            image = next((ending for ending in endings if ending in IMAGES), None)
            try:
                fields = _fields(place, stem, endings)
                if image is None:
                    yield Quarantined(key, f"no image: {fields.get('error_message') or 'only ' + ', '.join(endings)}")
                else:
                    yield Sample(key, place.read(f"{stem}.{image}"), fields)
            except (OSError, ValueError) as reason:
                yield Quarantined(key, str(reason))


def _fields(place: ImageFolder, stem: str, endings: list[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if "json" in endings:
        try:
            found = json.loads(place.read(f"{stem}.json"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON: {error}") from error
        fields = found if isinstance(found, dict) else {}
    if "txt" in endings:
        fields["txt"] = utf8(place.read(f"{stem}.txt").decode("utf-8-sig", "replace"))
    return fields
