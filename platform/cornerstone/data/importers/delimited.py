"""`cc-tsv` and `dreamlip-csv`: tables of texts beside a folder of images, which are found by path or by URL.

CC3M's list is caption, tab, URL, CC12M's is URL, tab, caption, both without a header; open_clip's has a header with
`filepath` and `title`. DreamLIP's, on which LoTLIP's data is based, has an image column, a raw caption, and three short and
three long captions by InstructBLIP, ShareGPT4V and LLaVA; the column names vary by release.
The driver scans a list once and keeps 16 bytes per row: 200 MB for 12 million rows.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, BinaryIO

from cornerstone.data.importers.core import ImportOptions
from cornerstone.data.importers.folder import ImageFolder, candidates
from cornerstone.data.importers.pairs_jsonl import PairsJsonl
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError, did_you_mean

ENDINGS = (".tsv", ".csv", ".txt")
IMAGE_COLUMNS = ("filepath", "image", "image_path", "image path", "path", "image_url", "url")
TEXT_COLUMNS = ("title", "caption", "text", "raw", "raw_caption")
GENERATED = tuple(f"{length}{by}" for by in ("IB", "SV", "LLA") for length in ("short", "long"))
_LARGEST_FIELD = 16 << 20
_LARGEST_RECORD = 4 << 20
csv.field_size_limit(_LARGEST_FIELD)


class CcTsv(PairsJsonl):
    """A table with an image and a caption in each row."""

    record = "row"

    def __init__(self, src: Location, options: ImportOptions) -> None:
        if not src.exists() or not src.name.endswith(ENDINGS):
            raise CornerstoneError(f"No list at {src}: expected a file that ends with {', '.join(ENDINGS)}.")
        first = _first_lines(src)
        self.delimiter = "\t" if "\t" in first[0] else ","
        self.quoted = self.delimiter == ","
        rows = [self._cells(first[0])]
        self.asked = {name for name in (options.image, options.label, *options.texts) if name}
        self.header = self._columns(rows)
        self.has_header = any(self._is_name(cell) for cell in rows[0])
        # Without a header, as in CC3M, quotation marks between tabs belong to the caption.
        self.quoted = self.quoted or self.has_header
        known = {name.lower(): name for name in self.header}
        image = options.image or next((known[name] for name in IMAGE_COLUMNS if name in known), "")
        if image not in self.header:
            if image:
                raise CornerstoneError(f"{src} has no column {image!r}{did_you_mean(image, self.header)}")
            raise CornerstoneError(
                f"{src} has no image column among {', '.join(self.header)}. Name it with --image FIELD (by default one of "
                f"{', '.join(IMAGE_COLUMNS)} is taken)."
            )
        self.image = image
        if not (options.raw or options.long or options.label):
            options = self._with_caption(options)
        super().__init__(src, options)

    def _columns(self, rows: list[list[str]]) -> list[str]:
        """The column names. Without a header, the column of URLs is `url` and the other one `caption`."""
        cells = [cell.strip() for cell in rows[0]]
        if any(map(self._is_name, cells)):
            return cells
        addressed = [place for place, cell in enumerate(cells) if "://" in cell]
        if len(cells) != 2 or len(addressed) != 1:
            raise CornerstoneError(
                f"The list has {len(cells)} columns and no known header ({', '.join(cells)[:80]}): expected a caption and a "
                f"URL in each row, or a header with an image column ({', '.join(IMAGE_COLUMNS)})."
            )
        return ["url", "caption"] if addressed == [0] else ["caption", "url"]

    def _is_name(self, cell: str) -> bool:
        return cell.strip().lower() in (*IMAGE_COLUMNS, *TEXT_COLUMNS) or cell.strip() in self.asked

    def _with_caption(self, options: ImportOptions) -> ImportOptions:
        """The options with the caption column as raw captions: the default."""
        text = [name for name in self.header if name.lower() in TEXT_COLUMNS]
        if not text:
            columns = ", ".join(self.header)
            raise CornerstoneError(f"No caption column among {columns}: name it with --raw FIELD.. or --long FIELD..")
        return replace(options, raw=(text[0],))

    def find_list(self, src: Location) -> Location:
        """The list is `src` itself."""
        return src

    def records(self, stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
        """Offset and bytes of every row without the header. A quoted row may span lines."""
        start = 0
        for number, record in enumerate(_quoted(stream, self._fits) if self.quoted else stream):
            if number or not self.has_header:
                yield start, record
            start += len(record)

    def parse(self, record: bytes) -> dict[str, Any] | str:
        """The cells of a row by column."""
        try:
            cells = self._cells(_decoded(record))
        except (csv.Error, StopIteration) as error:
            return f"no row: {error}"
        if len(cells) != len(self.header):
            return f"no row: {len(cells)} cells, the list has {len(self.header)} columns"
        return dict(zip(self.header, cells, strict=True))

    def _cells(self, record: str) -> list[str]:
        return next(self._rows(record))

    def _rows(self, record: str, strict: bool = False) -> Iterator[list[str]]:
        how: dict[str, Any] = {"strict": strict, "quoting": csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE}
        return csv.reader(io.StringIO(record, newline=""), delimiter=self.delimiter, **how)

    def _fits(self, record: bytes) -> bool:
        try:
            rows = list(self._rows(_decoded(record), strict=True))
        except csv.Error:
            return False
        return len(rows) == 1 and len(rows[0]) == len(self.header)

    def fetch(self, folder: ImageFolder, image: str) -> bytes:
        """The image by path, or by a file name that a downloader derives from its URL."""
        address = image if "://" in image else None
        return folder.read_image(candidates(None if address else image, address))


class DreamLip(CcTsv):
    """DreamLIP's table. Columns are renamed to `raw`, `shortIB`, `longIB`, `shortSV`, `longSV`, `shortLLA` and `longLLA`.

    Without --raw and --long the raw caption and the three long captions are taken, as in LoTLIP. The short ones are kept
    in `extra`; --raw raw shortIB shortSV shortLLA takes them too.
    """

    def _columns(self, rows: list[list[str]]) -> list[str]:
        canonical = {name.lower(): name for name in ("raw", *GENERATED)}

        def known(cell: str) -> str:
            plain = cell.strip().lower().removesuffix("s").removesuffix("caption").rstrip("_ ").replace("_", "")
            return canonical.get(plain, cell.strip())

        header = [known(cell) for cell in rows[0]]
        if not {"raw", *GENERATED} & set(header):
            raise CornerstoneError(
                f"No DreamLIP column in {', '.join(header)[:200]}: expected some of raw, {', '.join(GENERATED)} "
                f"(or raw_caption, longIB_captions, ..)."
            )
        return header

    def _with_caption(self, options: ImportOptions) -> ImportOptions:
        long = tuple(name for name in self.header if name in GENERATED and name.startswith("long"))
        return replace(options, raw=("raw",) if "raw" in self.header else (), long=long)


def _quoted(lines: Iterable[bytes], fits: Callable[[bytes], bool]) -> Iterator[bytes]:
    """Records of a CSV file: lines, joined while a quote is open.

    If a quote is never closed, or the joined lines are no row (`fits`), the record is its first line alone, and the lines
    after it are read as records of their own, so that one stray quote costs one row.
    """
    held: list[bytes] = []
    quotes = size = 0
    returned, source = list[bytes](), iter(lines)
    while (line := returned.pop() if returned else next(source, None)) is not None or held:
        if line is not None:
            held.append(line)
            quotes, size = quotes + line.count(b'"'), size + len(line)
        if quotes % 2 and line is not None and size <= _LARGEST_RECORD:
            continue
        record = b"".join(held)
        whole = quotes % 2 == 0 and (len(held) == 1 or fits(record))
        yield record if whole else held[0]
        returned += reversed(() if whole else held[1:])
        held, quotes, size = [], 0, 0


def _first_lines(src: Location) -> list[str]:
    with src.open_input() as stream:
        lines = [_decoded(line) for _, line in zip(range(2), io.BufferedReader(stream), strict=False)]
    if not lines or not lines[0].strip():
        raise CornerstoneError(f"{src} begins with an empty line: expected a header or a row.")
    return lines


def _decoded(line: bytes) -> str:
    """Text without NUL, at which `csv` would stop, and without carriage returns; invalid UTF-8 is replaced by �."""
    text = line.decode("utf-8-sig", "replace").replace("\0", "")
    return text.replace("\r\n", "\n").replace("\r", " ")
