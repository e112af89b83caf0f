"""Statistics of a data set and some of its rows as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import importlib.resources
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

from cornerstone.data import draws
from cornerstone.data.images import BadImage, decode
from cornerstone.data.shards import DataSet, Reader
from cornerstone.data.statistics import DOCUMENT, Statistics

TEMPLATE = "statistics_page.html.jinja"
THUMBNAIL = 320  # longest side in pixels
_BESIDE = 2  # segments of a document shown before and after each image
_SEGMENTS = 200  # only the first ones of a document are shown


def render(statistics: Statistics, data: DataSet, samples: int = 24, seed: int = 0) -> str:
    """The page: numbers, then `samples` rows drawn by `seed`, with thumbnails in the page itself. Texts are escaped."""
    manifest, rows = statistics.manifest, sample_rows(len(data), samples, seed)
    page = importlib.resources.files("cornerstone.data").joinpath(TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(page).render(
        name=manifest.name,
        kind=manifest.kind,
        description=f"{manifest.kind} in {statistics.folder}, content {manifest.content_hash}",
        tiles=_tiles(statistics),
        each_document=_each_document(statistics),
        texts=_texts(statistics),
        samples=f"{len(rows)} of {len(data):,} rows, drawn by seed {seed}",
        cards=_cards(data, rows),
    )


def sample_rows(rows: int, samples: int, seed: int) -> list[int]:
    """At most `samples` different rows, sorted, drawn by the seed."""
    drawn = draws.generator(seed, "sample rows").choice(rows, min(samples, rows), replace=False, shuffle=False)
    return sorted(drawn.tolist())


def _tiles(statistics: Statistics) -> list[tuple[str, str]]:
    count = statistics.count
    tiles = [("rows", f"{count.rows:,}"), ("images", f"{count.width.number:,}")]
    if count.unreadable:
        tiles.append(("unreadable images", f"{count.unreadable:,}"))
    for name, sizes in (("width", count.width), ("height", count.height)):
        spread = sizes.spread()
        tiles.append((f"mean {name} ({spread['min']} to {spread['max']} px)", f"{spread['mean']:.0f}"))
    tiles.append(("texts", f"{sum(texts.words.number for texts in count.texts.values()):,}"))
    return tiles


def _texts(statistics: Statistics) -> dict[str, Any]:
    header, rows = statistics.text_table()
    counted = (
        f"Tokens by {statistics.tokenizer}, including [CLS] and a [SEP] after each sub-caption. "
        if statistics.tokenizer
        else "Without a tokenizer: words and characters. "
    )
    note = (
        f"{counted}Sub-captions are split at “. ” as in training; “cleaned” counts them after the cleaning of long-text "
        f"retrieval."
    )
    return {"header": header, "rows": rows, "note": note}


def _each_document(statistics: Statistics) -> dict[str, Any] | None:
    if not statistics.each_document:
        return None
    rows = []
    for name, n in statistics.each_document.items():
        above = f"{n[f'above_{DOCUMENT}']:.1%}" if f"above_{DOCUMENT}" in n else ""
        rows.append([name, f"{n['mean']:.2f}", *(f"{n[k]:,}" for k in ("p50", "p90", "max")), above])
    return {"header": ["", "mean", "median", "90 %", "most", f"> {DOCUMENT}"], "rows": rows}


def _cards(data: DataSet, rows: list[int]) -> Iterator[dict[str, Any]]:
    reader = Reader(data, keep_groups=1)
    for row in rows:
        record = reader.take(np.array([row])).to_pylist()[0]
        yield _pair(record, data.manifest.classes) if data.manifest.kind == "pairs" else _document(record)


def _pair(row: dict[str, Any], classes: tuple[str, ...]) -> dict[str, Any]:
    label = row["label"]
    named = f", {classes[label]}" if label is not None and 0 <= label < len(classes) else ""
    texts = [{"source": c["source"], "role": c["role"], "text": c["text"] or ""} for c in row["captions"] or []]
    head = f"{row['key']} · {row['width']} × {row['height']}{named}"
    return {"head": head, "picture": _picture(row["image"]), "texts": texts}


def _document(row: dict[str, Any]) -> dict[str, Any]:
    """Its images with the texts beside them; of the other segments, only their number."""
    segments = row["segments"] or []
    images = [place for place, segment in enumerate(segments) if segment["kind"] == "image"]
    near = {place + step for place in images or [0] for step in range(-_BESIDE, _BESIDE + 1)}
    shown: list[dict[str, Any]] = []
    left_out = 0
    for place, segment in enumerate([*segments, None]):
        if segment is not None and (place not in near or place > _SEGMENTS):
            left_out += 1
            continue
        if left_out:
            shown.append(_segment(left_out=f"{left_out:,}"))
            left_out = 0
        if segment is not None:
            is_text = segment["kind"] == "text"
            shown.append(
                _segment(text=segment["text"] or "") if is_text else _segment(picture=_picture(segment["image"]))
            )
    head = f"{row['key']} · {len(segments):,} segments, {len(images):,} images"
    return {"head": head, "segments": shown}


def _segment(text: str = "", picture: dict[str, str] | None = None, left_out: str = "") -> dict[str, Any]:
    """A text, a picture, or a number of segments that are left out."""
    return {"text": text, "picture": picture, "left_out": left_out}


def _picture(data: bytes | None) -> dict[str, str]:
    """A thumbnail as base64, or why there is none."""
    try:
        picture = decode(data or b"")
    except BadImage as error:
        return {"jpeg": "", "problem": str(error)}
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=82)
    return {"jpeg": base64.b64encode(stream.getvalue()).decode(), "problem": ""}
