"""Import of other formats of pairs and documents into shards: one module per format, run by `core`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from cornerstone.data.importers import documents, listing
from cornerstone.data.importers.core import Format, ImportOptions, ImportReport, OnImportProgress, run_import
from cornerstone.data.importers.delimited import CcTsv, DreamLip
from cornerstone.data.importers.documents import Documents
from cornerstone.data.importers.img2dataset import img2dataset
from cornerstone.data.importers.joined import over_images
from cornerstone.data.importers.listing import Listed
from cornerstone.data.importers.llava import Conversations
from cornerstone.data.importers.pairs_jsonl import PairsJsonl
from cornerstone.data.importers.parquet_rows import ParquetRows
from cornerstone.data.importers.webdataset import WebDataset
from cornerstone.data.output import refuse_existing
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError, did_you_mean

__all__ = ["FORMATS", "ImportOptions", "ImportReport", "import_pairs"]

FORMATS: dict[str, Callable[[Location, ImportOptions], Format]] = {
    "pairs-jsonl": partial(over_images, PairsJsonl),
    "webdataset": WebDataset,
    "img2dataset": img2dataset,
    "cc-tsv": partial(over_images, CcTsv),
    "dreamlip-csv": partial(over_images, DreamLip),
    "hf-parquet": ParquetRows,
    "coco": partial(Listed, read_list=listing.coco, raw=("captions",)),
    "karpathy": partial(Listed, read_list=listing.karpathy, raw=("captions",)),
    "flickr30k": partial(Listed, read_list=listing.flickr30k, raw=("captions",)),
    "dci": partial(Listed, read_list=listing.dci, raw=("short_caption",), long=("caption",)),
    "iiw": partial(Listed, read_list=listing.iiw, long=("IIW",)),
    "sharegpt4v": partial(Listed, read_list=listing.sharegpt4v, long=("caption",)),
    "urban1k": partial(Listed, read_list=listing.urban1k, long=("caption",)),
    "imagefolder": partial(Listed, read_list=listing.imagefolder, label="class"),
    "llava": Conversations,
    "mmc4": partial(Documents, assemble=documents.mmc4, taken=("text_list", "image_info")),
    "obelics": partial(Documents, assemble=documents.obelics, taken=("texts", "images")),
}
NAMES_ITS_IMAGE = ("pairs-jsonl", "cc-tsv", "dreamlip-csv", "hf-parquet", "webdataset")
"""Formats in which --image names the image field."""
JOINED = ("pairs-jsonl", "cc-tsv", "dreamlip-csv")
"""Lists that can be joined with a data set."""
NO_LINKS = ("webdataset",)
"""Formats whose images lie in no folder."""


def import_pairs(
    format: str,
    src: str | os.PathLike[str] | Location,
    out: str | os.PathLike[str] | Location,
    options: ImportOptions | None = None,
    *,
    progress: OnImportProgress | None = None,
    **fields: Any,
) -> ImportReport:
    """Write the rows of `src` as shards to `out`, shuffled, in parallel with Ray Data.

    `fields` are those of `ImportOptions` and override `options`. The output depends on the source, the options and the
    seed, not on the number of workers. Records without a readable image header or without any text are quarantined: they
    are written to `quarantine.jsonl` in the out folder with the reason, and counted in the manifest and the report.
    Images are not decoded here: a truncated one is found and quarantined by the stream.

    Raises CornerstoneError for an unknown format or field, if `out` already holds a data set, and if no row is left.
    """
    reader = check(format, src, out, replace(options or ImportOptions(), **fields))
    return run_import(format, reader, Location.of(src), Location.of(out), progress)


def check(
    format: str,
    src: str | os.PathLike[str] | Location,
    out: str | os.PathLike[str] | Location,
    options: ImportOptions,
) -> Format:
    """The format's reader. Raises those CornerstoneErrors of `import_pairs` that need no look at the rows."""
    if format not in FORMATS:
        raise CornerstoneError(f"Unknown format {format!r}{did_you_mean(format, FORMATS)}")
    listed = tuple(name for name, made in FORMATS.items() if getattr(made, "func", made) in (Listed, Conversations))
    for name, formats in (
        ("image", NAMES_ITS_IMAGE),
        ("class_names", ("imagefolder",)),
        ("first", listed),
        ("trust_keys", JOINED),
        ("follow_links", tuple(name for name in FORMATS if name not in NO_LINKS)),
    ):
        if getattr(options, name) and format not in formats:
            raise CornerstoneError(
                f"--{name.replace('_', '-')} has no effect on {format}, only on {', '.join(formats)}."
            )
    if Location.of(src) == Location.of(out):
        raise CornerstoneError(f"--out {out} is the source itself: name another folder.")
    refuse_existing(Location.of(out))
    return FORMATS[format](Location.of(src), options)
