"""`cc-tsv` and `dreamlip-csv`: tables of text beside a folder of images, found by path or by what their addresses give.

CC3M's list is caption, tab, address, CC12M's address, tab, caption, both without a header; open_clip's has a header with
`filepath` and `title`. DreamLIP's, which LoTLIP's data grew from, has an image column, a raw caption, and three short and
three long ones by InstructBLIP, ShareGPT4V and LLaVA, under names that vary by release.
A list is scanned once in the driver, which keeps 16 bytes a row: 12 million rows are 200 MB.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, BinaryIO

from cornerstone.data.importers.core import ImportOptions
from cornerstone.data.importers.folder import ImageFolder, candidates
from cornerstone.data.importers.pairs_jsonl import PairsJsonl
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError

ENDINGS = (".tsv", ".csv", ".txt")
IMAGE_COLUMNS = ("filepath", "image", "image_path", "image path", "path", "image_url", "url")
TEXT_COLUMNS = ("title", "caption", "text", "raw", "raw_caption")
GENERATED = tuple(f"{length}{by}" for by in ("IB", "SV", "LLA") for length in ("short", "long"))
_LARGEST_FIELD = 16 << 20
csv.field_size_limit(_LARGEST_FIELD)


class CcTsv(PairsJsonl):
    """A table with an image and a caption a row."""

    record = "row"

    def __init__(self, src: Location, options: ImportOptions) -> None:
        if not src.exists() or not src.uri.endswith(ENDINGS):
            raise CornerstoneError(f"No list at {src}: expected a file that ends with {', '.join(ENDINGS)}.")
        first = _first_lines(src)
        self.delimiter = "\t" if "\t" in first[0] else ","
        rows = list(csv.reader(first, delimiter=self.delimiter))
        self.header = self._columns(rows)
        self.has_header = any(cell.strip().lower() in (*IMAGE_COLUMNS, *TEXT_COLUMNS) for cell in rows[0])
        known = {name.lower(): name for name in self.header}
        image = next((known[name] for name in IMAGE_COLUMNS if name in known), "")
        if not image:
            raise CornerstoneError(
                f"{src} names its columns {', '.join(self.header)}: expected one of {', '.join(IMAGE_COLUMNS)} for the image."
            )
        self.image = image
        if not (options.raw or options.long or options.label):
            options = self._unasked(options)
        super().__init__(src, options)

    def _columns(self, rows: list[list[str]]) -> list[str]:
        """The header; where there is none, the column of addresses is `url` and the other one `caption`."""
        cells = [cell.strip() for cell in rows[0]]
        if any(cell.lower() in (*IMAGE_COLUMNS, *TEXT_COLUMNS) for cell in cells):
            return cells
        addressed = [place for place, cell in enumerate(cells) if "://" in cell]
        if len(cells) != 2 or len(addressed) != 1:
            raise CornerstoneError(
                f"The list has {len(cells)} columns and no header that is known ({', '.join(cells)[:80]}): expected caption "
                f"and address, or a header with an image column ({', '.join(IMAGE_COLUMNS)})."
            )
        return ["url", "caption"] if addressed == [0] else ["caption", "url"]

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
        start, lines = 0, list[bytes]()

        def decoded() -> Iterator[str]:
            for line in stream:
                lines.append(line)
                yield _decoded(line)

        reader = csv.reader(decoded(), delimiter=self.delimiter, **_quoting(self.delimiter))
        for number, _ in enumerate(reader):
            record = b"".join(lines)
            lines.clear()
            if number or not self.has_header:
                yield start, record
            start += len(record)

    def parse(self, record: bytes) -> dict[str, Any] | str:
        """The row's cells by column."""
        try:
            cells = next(
                csv.reader(io.StringIO(_decoded(record)), delimiter=self.delimiter, **_quoting(self.delimiter))
            )
        except (csv.Error, StopIteration) as error:
            return f"no row: {error}"
        if len(cells) != len(self.header):
            return f"no row: {len(cells)} cells, the list has {len(self.header)} columns"
        return dict(zip(self.header, cells, strict=True))

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


def _first_lines(src: Location) -> list[str]:
    with src.open_input() as stream:
        lines = [_decoded(line) for _, line in zip(range(2), io.BufferedReader(stream), strict=False)]
    if not lines or not lines[0].strip():
        raise CornerstoneError(f"{src} begins with an empty line: expected a header or a row.")
    return lines


def _decoded(line: bytes) -> str:
    """Text without NUL, which `csv` would take for the end; wrong bytes are replaced."""
    return line.decode("utf-8-sig", "replace").replace("\0", "")


def _quoting(delimiter: str) -> dict[str, Any]:
    """Tabs stand in no caption, and quotes in a list of tabs are quotes of the caption."""
    return {"quoting": csv.QUOTE_NONE} if delimiter == "\t" else {}
