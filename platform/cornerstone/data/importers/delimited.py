"""`cc-tsv` and `dreamlip-csv`: tables of text beside a folder of images, found by path or by what their addresses give.

CC3M's list is caption, tab, address, CC12M's address, tab, caption, both without a header; open_clip's has a header with
`filepath` and `title`. DreamLIP's, which LoTLIP's data grew from, has an image column, a raw caption, and three short and
three long ones by InstructBLIP, ShareGPT4V and LLaVA, under names that vary by release.
A list is scanned once in the driver, which keeps 16 bytes a row: 12 million rows are 200 MB.
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
    """A table with an image and a caption a row."""

    record = "row"

    def __init__(self, src: Location, options: ImportOptions) -> None:
        if not src.exists() or not src.uri.endswith(ENDINGS):
            raise CornerstoneError(f"No list at {src}: expected a file that ends with {', '.join(ENDINGS)}.")
        first = _first_lines(src)
        self.delimiter = "\t" if "\t" in first[0] else ","
        self.quoted = self.delimiter == ","
        rows = [self._cells(first[0])]
        self.asked = {name for name in (options.image, options.label, *options.raw, *options.long) if name}
        self.header = self._columns(rows)
        self.has_header = any(self._is_name(cell) for cell in rows[0])
        self.quoted = (
            self.quoted or self.has_header
        )  # without a header, as in CC3M, quotes between tabs are the caption's
        known = {name.lower(): name for name in self.header}
        image = options.image or next((known[name] for name in IMAGE_COLUMNS if name in known), "")
        if image not in self.header:
            given = f"{image!r}{did_you_mean(image, self.header)}" if image else "none of them is known"
            raise CornerstoneError(
                f"{src} names its columns {', '.join(self.header)}; of the image's: {given} (--image FIELD; by itself one of "
                f"{', '.join(IMAGE_COLUMNS)} is taken)."
            )
        self.image = image
        if not (options.raw or options.long or options.label):
            options = self._unasked(options)
        super().__init__(src, options)

    def _columns(self, rows: list[list[str]]) -> list[str]:
        """The header; where there is none, the column of addresses is `url` and the other one `caption`."""
        cells = [cell.strip() for cell in rows[0]]
        if any(map(self._is_name, cells)):
            return cells
        addressed = [place for place, cell in enumerate(cells) if "://" in cell]
        if len(cells) != 2 or len(addressed) != 1:
            raise CornerstoneError(
                f"The list has {len(cells)} columns and no header that is known ({', '.join(cells)[:80]}): expected caption "
                f"and address, or a header with an image column ({', '.join(IMAGE_COLUMNS)})."
            )
        return ["url", "caption"] if addressed == [0] else ["caption", "url"]

    def _is_name(self, cell: str) -> bool:
        return cell.strip().lower() in (*IMAGE_COLUMNS, *TEXT_COLUMNS) or cell.strip() in self.asked

    def _unasked(self, options: ImportOptions) -> ImportOptions:
        """What is taken where nothing is asked for: the caption."""
        text = [name for name in self.header if name.lower() in TEXT_COLUMNS]
        if not text:
            raise CornerstoneError(f"Say which of {', '.join(self.header)} hold texts: --raw FIELD.. or --long FIELD..")
        return replace(options, raw=(text[0],))

    def find_list(self, src: Location) -> Location:
        """The file that was named."""
        return src

    def records(self, stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
        """Rows, which may span lines inside quotes; not the header."""
        start = 0
        for number, record in enumerate(_quoted(stream, self._fits) if self.quoted else stream):
            if number or not self.has_header:
                yield start, record
            start += len(record)

    def parse(self, record: bytes) -> dict[str, Any] | str:
        """The row's cells by column."""
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
        """The image by path, or under a name that downloads of its address go by."""
        address = image if "://" in image else None
        return folder.read_image(candidates(None if address else image, address))


class DreamLip(CcTsv):
    """DreamLIP's table; columns go by `raw`, `shortIB`, `longIB`, `shortSV`, `longSV`, `shortLLA` and `longLLA`.

    Without --raw and --long the raw caption and the three long ones are taken, as in LoTLIP; the short ones are kept in
    `extra`, and taken with --raw raw shortIB shortSV shortLLA.
    """

    def _columns(self, rows: list[list[str]]) -> list[str]:
        canonical = {name.lower(): name for name in ("raw", *GENERATED)}

        def known(cell: str) -> str:
            plain = cell.strip().lower().removesuffix("s").removesuffix("caption").rstrip("_ ").replace("_", "")
            return canonical.get(plain, cell.strip())

        header = [known(cell) for cell in rows[0]]
        if not {"raw", *GENERATED} & set(header):
            raise CornerstoneError(
                f"No column of DreamLIP's in {', '.join(header)[:200]}: expected some of raw, {', '.join(GENERATED)} "
                f"(or raw_caption, longIB_captions, ..)."
            )
        return header

    def _unasked(self, options: ImportOptions) -> ImportOptions:
        long = tuple(name for name in self.header if name in GENERATED and name.startswith("long"))
        return replace(options, raw=("raw",) if "raw" in self.header else (), long=long)


def _quoted(lines: Iterable[bytes], fits: Callable[[bytes], bool]) -> Iterator[bytes]:
    """Records: lines, joined where a quote stays open. One that nothing closes, or closes so that no row results, ends with
    its own line, and costs no other row.
    """
    held: list[bytes] = []
    quotes = size = 0
    again, source = list[bytes](), iter(lines)
    while (line := again.pop() if again else next(source, None)) is not None or held:
        if line is not None:
            held.append(line)
            quotes, size = quotes + line.count(b'"'), size + len(line)
        if quotes % 2 and line is not None and size <= _LARGEST_RECORD:
            continue
        record = b"".join(held)
        whole = quotes % 2 == 0 and (len(held) == 1 or fits(record))
        yield record if whole else held[0]
        again += reversed(() if whole else held[1:])
        held, quotes, size = [], 0, 0


def _first_lines(src: Location) -> list[str]:
    with src.open_input() as stream:
        lines = [_decoded(line) for _, line in zip(range(2), io.BufferedReader(stream), strict=False)]
    if not lines or not lines[0].strip():
        raise CornerstoneError(f"{src} begins with an empty line: expected a header or a row.")
    return lines


def _decoded(line: bytes) -> str:
    """Text without NUL, which `csv` would take for the end, and without a carriage return inside; wrong bytes are replaced."""
    text = line.decode("utf-8-sig", "replace").replace("\0", "")
    return text.replace("\r\n", "\n").replace("\r", " ")
