"""`mmc4` and `obelics`: interleaved documents, from JSON lines (plain, .gz or .zip) or Parquet, beside a folder of images.

Images are read after their document has left the shuffle buffer, so that the buffer holds no images.
The import neither filters nor moves segments: a document keeps all of its texts and every readable image. The filter by
similarity and the side of the text on which an image stands are applied when documents are packed and read.
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
from cornerstone.data.importers.core import ImportOptions, ImportPlan, Quarantined, Sample
from cornerstone.data.importers.fields import conditions, meets, utf8
from cornerstone.data.importers.files import Task, find_files, plan_files, read_files, reading
from cornerstone.data.importers.folder import ImageFolder, candidates
from cornerstone.data.importers.pairs_jsonl import parse
from cornerstone.data.manifest import Kind
from cornerstone.data.records import Document, Record, Segment
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError

ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".zip", ".parquet")
_BROKEN = (OSError, EOFError, zlib.error, zipfile.BadZipFile, pa.ArrowInvalid)

Load = Callable[[str | None, str | None, dict[str, Any]], Segment | Quarantined]
"""Loads the image segment of a name or URL, with the fields for its `extra`."""
Row = dict[str, Any]
END_OF_DOCUMENT = "END_OF_DOCUMENT_TOKEN_TO_BE_REPLACED"


@dataclass(frozen=True)
class Break:
    """Separates two documents within one record."""


Part = Segment | Quarantined | Break


class Documents:
    """Either format. `assemble` yields the segments of a record in their order; `taken` are the lists that it reads."""

    kind: Kind = "documents"

    def __init__(
        self,
        src: Location,
        options: ImportOptions,
        assemble: Callable[[Row, Load], Iterator[Part]],
        taken: tuple[str, ...],
    ) -> None:
        if options.raw or options.long or options.label:
            raise CornerstoneError(
                "--raw, --long and --label have no effect on documents, which keep all of their texts. Leave them out."
            )
        self.options, self.assemble, self.taken = options, assemble, taken
        self.files = find_files(src, ENDINGS, "file of documents")
        self.images = Location.of(options.images) if options.images else self.files[0].parent
        if not self.images.exists():
            raise CornerstoneError(
                f"No image folder at {self.images}. Name the folder of the documents' images: --images."
            )
        self.where = conditions(options.where)

    def plan(self) -> ImportPlan:
        """One task per file; with `limit_rows` a single task."""
        return plan_files(self.files, self.options, "files")

    def read(self, task: Task) -> Iterator[Sample | Record | Quarantined]:
        """The documents of some files. The quarantined images of a document come before it."""
        folder = ImageFolder(self.images, self.options.follow_links)
        for row in read_files(task, self._matching, self.options):
            if isinstance(row, Quarantined):
                yield row
            else:
                yield from self._document(*row, folder)

    def _matching(self, file: Location) -> Iterator[tuple[str, Row] | Quarantined]:
        return (row for row in _rows(file) if isinstance(row, Quarantined) or meets(row[1], self.where))

    def _document(self, key: str, row: Row, folder: ImageFolder) -> Iterator[Document | Quarantined]:
        if missing := [name for name in self.taken if not isinstance(row.get(name), list)]:
            yield Quarantined(key, f"wrong schema: no list {missing[0]!r}, found {', '.join(sorted(row)[:8])}")
            return

        def load(name: str | None, address: str | None, extra: dict[str, Any]) -> Segment | Quarantined:
            return _image(folder, key, name, address, extra)

        segments, part_of = list[Segment](), 0
        for part in itertools.chain(self.assemble(row, load), [Break()]):
            if isinstance(part, Quarantined):
                yield part
            elif isinstance(part, Segment):
                segments.append(part)
            elif segments:
                yield self._finished(f"{key}.{part_of}" if part_of else key, row, segments)
                segments, part_of = [], part_of + 1
        if not part_of:
            yield self._finished(key, row, segments)

    def _finished(self, key: str, row: Row, segments: list[Segment]) -> Document | Quarantined:
        if not any(segment.image is not None for segment in segments):
            return Quarantined(key, "no image: none of the document's images could be read")
        if not any(segment.text is not None for segment in segments):
            return Quarantined(key, "no text: every text of the document is empty")
        kept_elsewhere = (*self.taken, "similarity_matrix", "metadata")
        rest = {name: value for name, value in row.items() if name not in kept_elsewhere}
        return Document(key, tuple(segments), json.dumps(rest, default=str) if rest else None)


def mmc4(row: Row, load: Load) -> Iterator[Part]:
    """MMC4: the texts of `text_list` in order, each image of `image_info` directly before its matched sentence."""
    texts = row["text_list"]
    at: dict[int, list[Row]] = {}
    for info in row["image_info"]:
        info = info if isinstance(info, dict) else {"image_name": info}
        index = info.get("matched_text_index")
        at.setdefault(index if isinstance(index, int) and 0 <= index < len(texts) else -1, []).append(info)
    for info in at.get(-1, []):
        yield load(None, None, {"name": info.get("image_name"), "matched_text_index": info.get("matched_text_index")})
    for index, text in enumerate(texts):
        empty = not any(True for _ in _text(text))  # an empty sentence becomes no segment, so its image has no match
        for info in at.get(index, []):
            similarity = None if empty else info.get("matched_sim")
            kept = {"matched_text_index": index, "matched_sim": similarity, "url": info.get("raw_url")}
            yield load(info.get("image_name"), info.get("raw_url"), {"name": info.get("image_name"), **kept})
        yield from _text(text)


def obelics(row: Row, load: Load) -> Iterator[Part]:
    """OBELICS: parallel lists `texts` and `images`, one of the two null at each index; `metadata` is parallel to them.

    Of lists of different lengths the longer one's end is kept, and of an index with both the image stands before the text.

    The text END_OF_DOCUMENT marks where the authors of the data found that another document begins.
    """
    metadata = row.get("metadata")
    if isinstance(metadata, str):  # a JSON text in Parquet
        parsed = parse(b'{"list": ' + metadata.encode() + b"}")
        metadata = parsed["list"] if isinstance(parsed, dict) else None
    for place, (text, image) in enumerate(itertools.zip_longest(row["texts"], row["images"])):
        if image is not None:
            described = metadata[place] if isinstance(metadata, list) and place < len(metadata) else None
            name = None if "://" in str(image) else str(image)
            yield load(name, str(image), {"name": image, **(described if isinstance(described, dict) else {})})
        if isinstance(text, str):
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
) -> Segment | Quarantined:
    """The image segment, found under one of `candidates`, or why there is none."""
    label = f"{key}#{extra.get('name')}"
    try:
        names = candidates(name, address)
        if not names:
            index = extra.get("matched_text_index")
            return Quarantined(label, f"no place: matched_text_index is {index!r}, and the document has no such text")
        return Segment(image=folder.read_image(names), extra=json.dumps(extra, default=str))
    except (OSError, ValueError, BadImage) as error:
        return Quarantined(label, str(error))


def _rows(file: Location) -> Iterator[tuple[str, Row] | Quarantined]:
    """The records of a file by key. A damaged file gives the records before the damage, then the reason it stops there."""
    name = file.name
    stem, count = name.partition(".")[0], 0
    try:
        for count, row in enumerate(_records(file), 1):
            yield (f"{stem}/{count}", row) if isinstance(row, dict) else Quarantined(f"{stem}/{count}", row)
    except _BROKEN as error:
        yield Quarantined(name, f"damaged file: the rest is lost after {count} documents ({error})")


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
