"""`mmc4` and `obelics`: interleaved documents, from JSON lines (plain, .gz or .zip) or Parquet, beside a folder of images.

Documents leave the shuffle window before their images are read.
Nothing is chosen or moved here: a document keeps all its texts and every image that can be read. Which images match well
enough, and on which side of its text each one stands, is drawn when documents are packed.
"""

from __future__ import annotations

import gzip
import itertools
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cornerstone.data.images import BadImage
from cornerstone.data.importers.core import ImportOptions, ImportPlan, Refused, Sample, meets
from cornerstone.data.importers.fields import conditions, utf8
from cornerstone.data.importers.files import Task, find_files, plan_files, read_files, reading
from cornerstone.data.importers.folder import ImageFolder, candidates
from cornerstone.data.importers.pairs_jsonl import parse
from cornerstone.data.manifest import Kind
from cornerstone.data.records import Document, Record, Segment
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError

ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".zip", ".parquet")
_BROKEN = (OSError, EOFError, zlib.error, zipfile.BadZipFile, pa.ArrowInvalid)

Load = Callable[[str | None, str | None, dict[str, Any]], Segment | Refused]
"""An image's segment by its name or address, with what its `extra` keeps."""
Row = dict[str, Any]
END_OF_DOCUMENT = "END_OF_DOCUMENT_TOKEN_TO_BE_REPLACED"


@dataclass(frozen=True)
class Break:
    """What follows belongs to another document."""


Part = Segment | Refused | Break


class Documents:
    """Either format; `assemble` says how a record's texts and images follow each other."""

    kind: Kind = "documents"

    def __init__(
        self,
        src: Location,
        options: ImportOptions,
        assemble: Callable[[Row, Load], Iterator[Part]],
        taken: tuple[str, ...],
    ) -> None:
        if options.raw or options.long or options.label:
            raise CornerstoneError("--raw, --long and --label name texts of pairs; a document keeps all of its texts.")
        self.options, self.assemble, self.taken = options, assemble, taken
        self.files = find_files(src, ENDINGS, "file of documents")
        self.images = Location.of(options.images) if options.images else self.files[0].parent
        if not self.images.exists():
            raise CornerstoneError(
                f"No image folder at {self.images}. Name the one that the records speak of: --images."
            )
        self.where = conditions(options.where)

    def plan(self) -> ImportPlan:
        """One piece of work a file; a single one where rows are limited."""
        return plan_files(self.files, self.options, "files")

    def read(self, task: Task) -> Iterator[Sample | Record | Refused]:
        """The documents of some files, each behind the images that it lost."""
        folder = ImageFolder(self.images)
        for row in read_files(task, self._matching, self.options):
            if isinstance(row, Refused):
                yield row
            else:
                yield from self._document(*row, folder)

    def _matching(self, file: Location) -> Iterator[tuple[str, Row] | Refused]:
        return (row for row in _rows(file) if isinstance(row, Refused) or meets(row[1], self.where))

    def _document(self, key: str, row: Row, folder: ImageFolder) -> Iterator[Document | Refused]:
        if missing := [name for name in self.taken if not isinstance(row.get(name), list)]:
            yield Refused(key, f"another shape: no list {missing[0]!r}, found {', '.join(sorted(row)[:8])}")
            return

        def load(name: str | None, address: str | None, extra: dict[str, Any]) -> Segment | Refused:
            return _image(folder, key, name, address, extra)

        segments, part_of = list[Segment](), 0
        for part in itertools.chain(self.assemble(row, load), [Break()]):
            if isinstance(part, Refused):
                yield part
            elif isinstance(part, Segment):
                segments.append(part)
            elif segments:
                yield self._finished(f"{key}.{part_of}" if part_of else key, row, segments)
                segments, part_of = [], part_of + 1
        if not part_of:
            yield self._finished(key, row, segments)

    def _finished(self, key: str, row: Row, segments: list[Segment]) -> Document | Refused:
        if not any(segment.image is not None for segment in segments):
            return Refused(key, "no image: none of the document's images could be read")
        if not any(segment.text is not None for segment in segments):
            return Refused(key, "no text: every text of the document is empty")
        kept_elsewhere = (*self.taken, "similarity_matrix", "metadata")
        rest = {name: value for name, value in row.items() if name not in kept_elsewhere}
        return Document(key, tuple(segments), json.dumps(rest, default=str) if rest else None)


def mmc4(row: Row, load: Load) -> Iterator[Part]:
    """MMC4: every text of `text_list` in order, each image of `image_info` directly before its matched sentence."""
    texts, images = row["text_list"], [info for info in row["image_info"] if isinstance(info, dict)]
    at: dict[int, list[Row]] = {}
    for info in images:
        index = info.get("matched_text_index")
        at.setdefault(index if isinstance(index, int) and 0 <= index < len(texts) else -1, []).append(info)
    for info in at.get(-1, []):
        yield load(None, None, {"name": info.get("image_name"), "matched_text_index": info.get("matched_text_index")})
    for index, text in enumerate(texts):
        empty = not any(True for _ in _text(text))  # an image that is matched with nothing is matched with no sentence
        for info in at.get(index, []):
            similarity = None if empty else info.get("matched_sim")
            kept = {"matched_text_index": index, "matched_sim": similarity, "url": info.get("raw_url")}
            yield load(info.get("image_name"), info.get("raw_url"), {"name": info.get("image_name"), **kept})
        yield from _text(text)


def obelics(row: Row, load: Load) -> Iterator[Part]:
    """OBELICS: parallel lists `texts` and `images`, one of the two null at each place; `metadata` follows the images.

    A marker in a text stands where its authors found that another document begins.
    """
    metadata = row.get("metadata")
    if isinstance(metadata, str):  # as Parquet holds it
        parsed = parse(b'{"list": ' + metadata.encode() + b"}")
        metadata = parsed["list"] if isinstance(parsed, dict) else None
    for place, (text, image) in enumerate(zip(row["texts"], row["images"], strict=False)):
        if image is not None:
            described = metadata[place] if isinstance(metadata, list) and place < len(metadata) else None
            name = None if "://" in str(image) else str(image)
            yield load(name, str(image), {"name": image, **(described if isinstance(described, dict) else {})})
        elif isinstance(text, str):
            first, *others = text.split(END_OF_DOCUMENT)
            yield from _text(first)
            for other in others:
                yield Break()
                yield from _text(other)


def _text(text: Any) -> Iterator[Segment]:
    if isinstance(text, str) and text.strip():
        yield Segment(text=utf8(text.strip()))


def _image(
    folder: ImageFolder, key: str, name: str | None, address: str | None, extra: dict[str, Any]
) -> Segment | Refused:
    """The image under its name, the last part of its name or address, or the address's MD5 or SHA-1."""
    label = f"{key}#{extra.get('name')}"
    try:
        names = candidates(name, address)
        if not names:
            return Refused(label, f"no place: matched_text_index {extra.get('matched_text_index')!r} is no text's")
        return Segment(image=folder.read_image(names), extra=json.dumps(extra, default=str))
    except (OSError, ValueError, BadImage) as error:
        return Refused(label, str(error))


def _rows(file: Location) -> Iterator[tuple[str, Row] | Refused]:
    """The records of a file by key; a damaged file gives what lies before the damage, then why it ends there."""
    name = file.name
    stem, count = name.partition(".")[0], 0
    try:
        for count, row in enumerate(_records(file), 1):
            yield (f"{stem}/{count}", row) if isinstance(row, dict) else Refused(f"{stem}/{count}", row)
    except _BROKEN as error:
        yield Refused(name, f"damaged file: the rest is lost after {count} documents ({error})")


def _records(file: Location) -> Iterator[Row | str]:
    with reading(file) as stream:
        if file.uri.endswith(".parquet"):
            for batch in pq.ParquetFile(stream).iter_batches(batch_size=64):
                yield from batch.to_pylist()
        elif file.uri.endswith(".zip"):
            with zipfile.ZipFile(stream) as archive:
                for member in sorted(archive.namelist()):
                    if member.endswith((".jsonl", ".json")):
                        with archive.open(member) as lines:
                            yield from _parsed(lines)
        elif file.uri.endswith(".gz"):
            with gzip.open(stream) as lines:
                yield from _parsed(lines)
        else:
            yield from _parsed(stream)


def _parsed(lines: Any) -> Iterator[Row | str]:
    return (parse(line) for line in lines if line.strip())
