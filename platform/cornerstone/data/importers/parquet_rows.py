"""`hf-parquet`: Parquet files with images, as Hugging Face (`image: struct<bytes, path>`) and img2dataset write them.

A damaged file gives the rows before the damage.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from cornerstone.data.importers.core import ImportOptions, ImportPlan, Quarantined, Sample
from cornerstone.data.importers.fields import conditions, meets
from cornerstone.data.importers.files import Task, find_files, plan_files, read_files, reading
from cornerstone.data.importers.folder import ImageFolder
from cornerstone.data.manifest import Kind
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError, did_you_mean

IMAGE_NAMES = ("image", "jpg", "jpeg", "png", "webp")
TEXT_NAMES = ("caption", "text", "txt", "TEXT")
KEY_NAMES = ("key", "__key__", "id", "image_id")
ENDING = ".parquet"
LOOKED_AT = 32  # files in which an image column is looked for
SPLIT = "split"
"""A field taken from the file name if the table has no such column."""


class ParquetRows:
    """The format of this module. Without --raw and --long the raw caption is `caption`, `text` or `txt`."""

    kind: Kind = "pairs"

    def __init__(self, src: Location, options: ImportOptions, downloaded: bool = False) -> None:
        """`downloaded`: the files are img2dataset's, whose column `status` says which rows have an image."""
        if options.label is not None:
            raise CornerstoneError("--label needs all class names before the first row: import a list (pairs-jsonl).")
        self.files = find_files(src, (ENDING,), "Parquet file")
        first, schema = _first_with_image(self.files, options.image)
        self.image = options.image or image_column(schema)
        if options.image and options.image not in schema.names:
            raise CornerstoneError(
                f"{first} has no column {options.image!r}{did_you_mean(options.image, schema.names)}"
            )
        if not self.image:
            raise CornerstoneError(
                f"{first} has no image column: expected a struct<bytes, path>, or bytes named "
                f"{', '.join(IMAGE_NAMES)}; found {', '.join(schema.names)}. Name it with --image FIELD."
            )
        columns = [name for name in schema.names if name != self.image]
        if not (options.raw or options.long):
            text = next((name for name in TEXT_NAMES if name in columns), None)
            if text is None:
                raise CornerstoneError(
                    f"No caption column among {', '.join(columns)}: name it by --raw FIELD.. or --long FIELD.."
                )
            options = replace(options, raw=(text,))
        self.options, self.where, self.downloaded = options, conditions(options.where), downloaded
        if SPLIT not in columns:
            self._choose_split(src)
        self._skipped = {name for name in columns if _holds_bytes(schema.field(name).type)}
        columns.append(SPLIT)
        for field in (*options.texts, *(field for field, _ in self.where)):
            if field.partition(".")[0] not in columns and field not in columns:
                raise CornerstoneError(f"{first} has no column {field!r}{did_you_mean(field, columns)}")
        self.first = first
        self.images = Location.of(options.images) if options.images else None

    def _choose_split(self, src: Location) -> None:
        """Keep the files of the split named by --where. Raises CornerstoneError if there are several and none is named."""
        splits = sorted({split for file in self.files if (split := split_of(file))})
        wanted = [value for field, value in self.where if field == SPLIT]
        if len(splits) > 1 and not wanted:
            raise CornerstoneError(
                f"{src} holds the splits {', '.join(splits)}: choose one, --where {SPLIT}={splits[-1]}."
            )
        if splits and wanted:
            self.files = [file for file in self.files if split_of(file) in (wanted[0], "")]
            if not self.files:
                raise CornerstoneError(f"{src} has no split {wanted[0]!r}{did_you_mean(wanted[0], splits)}")

    def plan(self) -> ImportPlan:
        """One task per file; with `limit_rows` a single task."""
        return plan_files(self.files, self.options, "files")

    def read(self, task: Task) -> Iterator[Sample | Quarantined]:
        """The rows of some files that meet the conditions."""
        return read_files(task, self._matching, self.options)

    def _matching(self, file: Location) -> Iterator[Sample | Quarantined]:
        return (r for r in self._records(file) if isinstance(r, Quarantined) or meets(r.fields, self.where))

    def _records(self, file: Location) -> Iterator[Sample | Quarantined]:
        name = file.name
        stem, count = name.removesuffix(ENDING), 0
        folder = ImageFolder(self.images, self.options.follow_links) if self.images else None
        try:
            with reading(file) as stream:
                opened = pq.ParquetFile(stream)
                if missing := [name for name in self._needed() if name not in opened.schema_arrow.names]:
                    yield Quarantined(
                        name, f"another schema: no column {', '.join(missing)}, unlike {self.first.name}; left out"
                    )
                    return
                columns = [column for column in opened.schema_arrow.names if column not in self._skipped]
                for batch in opened.iter_batches(batch_size=64, columns=columns):
                    for row in range(batch.num_rows):
                        yield self._record(f"{stem}/{count}", batch, row, folder, split_of(file))
                        count += 1
        except (OSError, pa.ArrowException) as error:
            yield Quarantined(name, f"damaged file: the rest is lost after {count} rows ({error})")

    def _needed(self) -> list[str]:
        """Columns that every file must have: the image, and one of the captions."""
        names = [self.image, *(field for field, _ in self.where if field != SPLIT)]
        return list(dict.fromkeys(name.partition(".")[0] for name in names))

    def _record(
        self, place: str, batch: pa.RecordBatch, row: int, folder: ImageFolder | None, split: str
    ) -> Sample | Quarantined:
        try:
            fields = {name: batch[name][row].as_py() for name in batch.schema.names}
        except UnicodeDecodeError as error:
            return Quarantined(place, f"not UTF-8: {error.reason}")
        key = next((f"{place}#{fields[name]}" for name in KEY_NAMES if fields.get(name) is not None), place)
        if split:
            fields.setdefault(SPLIT, split)
        if self.downloaded and str(fields.get("status", "success")) != "success":
            return Quarantined(key, f"not downloaded: {fields.get('error_message') or fields['status']}")
        image = fields.pop(self.image)
        if isinstance(image, list):
            if len(image) > 1:
                return Quarantined(key, f"several images: the list in {self.image} has {len(image)}")
            image = image[0] if image else None
        data, path = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, None)
        others = {name: value for name, value in fields.items() if not isinstance(value, bytes)}
        if data is not None:
            return Sample(key, data, others)
        if not path:
            return Quarantined(key, f"no image: {self.image} has neither bytes nor a path")
        if folder is None:
            return Quarantined(key, "no image: the table has only its path; name the folder with --images")
        try:
            return Sample(key, folder.read(path), others)
        except (OSError, ValueError) as reason:
            return Quarantined(key, str(reason))


def split_of(file: Location) -> str:
    """`train` for `train-00000-of-00042.parquet`, as Hugging Face names files; empty for other names."""
    found = re.fullmatch(r"(.+)-\d{5}-of-\d{5}.*", file.name)
    return found.group(1) if found else ""


def image_column(schema: pa.Schema) -> str:
    """The image column: a struct with bytes, or a list of it, or bytes with one of IMAGE_NAMES; empty if there is none.

    Of several, the one that is named like an image. Raises CornerstoneError if none of several is.
    """
    structs = [str(field.name) for field in schema if _is_image_struct(field.type)]
    named = next((name for name in (*IMAGE_NAMES, "images") if name in structs), "")
    if len(structs) == 1 or named:
        return named or structs[0]
    if structs:
        raise CornerstoneError(f"There are several image columns ({', '.join(structs)}): choose one with --image.")
    binary = [f.name for f in schema if pa.types.is_binary(f.type) or pa.types.is_large_binary(f.type)]
    return next((name for name in IMAGE_NAMES if name in binary), "")


def _is_image_struct(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _is_image_struct(kind.value_type)
    return bool(pa.types.is_struct(kind)) and {"bytes", "path"} <= {inner.name for inner in kind}


def _holds_bytes(kind: pa.DataType) -> bool:
    """Whether values hold bytes, as other images do: they are no fields of a row."""
    if pa.types.is_dictionary(kind):
        return _holds_bytes(kind.value_type)
    if pa.types.is_struct(kind):
        return any(_holds_bytes(inner.type) for inner in kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _holds_bytes(kind.value_type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _first_with_image(files: list[Location], image: str | None) -> tuple[Location, pa.Schema]:
    """The first of the files that has an image column, with its schema; the first one if none has.

    A file of something else may stand beside them. Raises CornerstoneError if several columns may be the image.
    """
    found: list[tuple[Location, pa.Schema]] = []
    for file in files[:LOOKED_AT]:
        schema = _schema(file)
        if (image in schema.names) if image else image_column(schema):
            return file, schema
        found.append((file, schema))
    return found[0]


def _schema(file: Location) -> pa.Schema:
    try:
        with file.open_input() as stream:
            return pq.read_schema(stream)
    except (OSError, pa.ArrowException) as error:
        raise CornerstoneError(f"{file} is not a complete Parquet file: {error}") from error
