"""Statistics of a data set and some of its rows as one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from cornerstone.data import draws
from cornerstone.data.images import BadImage, decode
from cornerstone.data.shards import DataSet, Reader
from cornerstone.data.statistics import DOCUMENT, Statistics

THUMBNAIL = 320  # longest side in pixels
_BESIDE = 2  # segments of a document shown before and after each image
_SEGMENTS = 200  # no more than the first ones are shown

_STYLE = """
:root { color-scheme: light dark; --page: #f6f6f4; --card: #fff; --ink: #1d1f23; --soft: #676d78; --line: #e3e3de;
  --raw: #8a5a00; --long: #0b6b50; --foil: #a02a2a; }
@media (prefers-color-scheme: dark) { :root { --page: #17181b; --card: #212327; --ink: #e8e8e6; --soft: #9ba1ab;
  --line: #34373d; --raw: #e0b15c; --long: #63cba8; --foil: #ee8b8b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 76rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", "Noto Sans", sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.9rem; } h2 { margin: 2.5rem 0 .8rem; font-size: 1.15rem; }
.soft { color: var(--soft); font-size: .87rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .8rem; margin: 1.5rem 0; }
.tile, .card, .scroll { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
.tile { padding: .8rem 1rem; } .tile b { display: block; font-size: 1.5rem; font-weight: 600; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .8rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; font-size: .87rem; } tr:last-child td { border-bottom: 0; }
th.left, td.left { text-align: left; } tr.total td { font-weight: 600; }
.cards { columns: 20rem; column-gap: 1rem; }
.card { break-inside: avoid; margin-bottom: 1rem; overflow: hidden; }
.card > img { display: block; width: 100%; max-height: 20rem; object-fit: contain; background: var(--line); }
.body { padding: .7rem 1rem 1rem; } .body p { margin: .6rem 0 0; white-space: pre-line; }
.documents .body img { display: block; max-width: 100%; margin: .8rem 0 .3rem; border-radius: .3rem; }
.source { display: block; font-size: .8rem; font-weight: 600; } .bad { color: var(--foil); }
.raw { color: var(--raw); } .long { color: var(--long); } .foil { color: var(--foil); }
"""


def render(statistics: Statistics, data: DataSet, samples: int = 24, seed: int = 0) -> str:
    """The page: numbers, then `samples` rows drawn by `seed`, with thumbnails in the page itself. Texts are escaped."""
    rows = sample_rows(len(data), samples, seed)
    described = f"{statistics.manifest.kind} in {statistics.folder}, content {statistics.manifest.content_hash}"
    shown = "".join(_cards(data, rows))
    title = escape(statistics.manifest.name)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body>\n"
        f'<h1>{title}</h1><div class="soft">{escape(described)}</div>\n{_tiles(statistics)}'
        f"{_documents(statistics)}{_texts(statistics)}"
        f"<h2>{len(rows)} of {len(data):,} rows, drawn by seed {seed}</h2>\n"
        f'<div class="cards {data.manifest.kind}">{shown}</div>\n</body></html>\n'
    )


def sample_rows(rows: int, samples: int, seed: int) -> list[int]:
    """So many different rows, in order, by seed."""
    drawn = draws.generator(seed, "sample rows").choice(rows, min(samples, rows), replace=False, shuffle=False)
    return sorted(drawn.tolist())


def _tiles(statistics: Statistics) -> str:
    count = statistics.count
    tiles = [("rows", f"{count.rows:,}"), ("images", f"{count.width.number:,}")]
    if count.unreadable:
        tiles.append(("unreadable images", f"{count.unreadable:,}"))
    for name, sizes in (("width", count.width), ("height", count.height)):
        spread = sizes.spread()
        tiles.append((f"mean {name} ({spread['min']} to {spread['max']} px)", f"{spread['mean']:.0f}"))
    tiles.append(("texts", f"{sum(texts.words.number for texts in count.texts.values()):,}"))
    return '<div class="tiles">' + "".join(f'<div class="tile"><b>{b}</b>{a}</div>' for a, b in tiles) + "</div>\n"


def _texts(statistics: Statistics) -> str:
    header, rows = statistics.text_table()
    counted = (
        f"Tokens by {statistics.tokenizer}, [CLS] and a [SEP] after each sub-caption counted. "
        if statistics.tokenizer
        else "Without a tokenizer: words and characters. "
    )
    note = (
        f"{counted}Sub-captions are split at “. ” as in training; “cleaned” counts those of the text as long-text retrieval "
        f"cleans it."
    )
    return f'<h2>Texts</h2>\n{_table(header, rows, left=2)}<p class="soft">{escape(note)}</p>\n'


def _documents(statistics: Statistics) -> str:
    if not statistics.each_document:
        return ""
    rows = []
    for name, n in statistics.each_document.items():
        above = f"{n[f'above_{DOCUMENT}']:.1%}" if f"above_{DOCUMENT}" in n else ""
        rows.append([name, f"{n['mean']:.2f}", *(f"{n[k]:,}" for k in ("p50", "p90", "max")), above])
    return "<h2>A document</h2>\n" + _table(["", "mean", "median", "90 %", "most", f"> {DOCUMENT}"], rows, left=1)


def _table(header: list[str], rows: list[list[str]], left: int) -> str:
    def line(cells: list[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=left' if place < left else ''}>{escape(cell)}</{tag}>" for place, cell in enumerate(cells)
        )

    body = "".join(f"<tr{' class=total' if row[1:2] == ['all'] else ''}>{line(row, 'td')}</tr>\n" for row in rows)
    return f'<div class="scroll"><table><tr>{line(header, "th")}</tr>\n{body}</table></div>\n'


def _cards(data: DataSet, rows: list[int]) -> Iterator[str]:
    reader = Reader(data, keep_groups=1)
    for row in rows:
        record = reader.take(np.array([row])).to_pylist()[0]
        inside = _pair(record, data.manifest.classes) if data.manifest.kind == "pairs" else _document(record)
        yield f'<div class="card">{inside}</div>\n'


def _pair(row: dict[str, Any], classes: tuple[str, ...]) -> str:
    label = row["label"]
    named = f", {classes[label]}" if label is not None and 0 <= label < len(classes) else ""
    head = f'<div class="soft">{escape(row["key"])} · {row["width"]} × {row["height"]}{escape(named)}</div>'
    texts = "".join(
        f'<p><span class="source {escape(c["role"])}">{escape(c["source"])} · {escape(c["role"])}</span>'
        f"{escape(c['text'] or '')}</p>"
        for c in row["captions"] or []
    )
    return f'{_picture(row["image"])}<div class="body">{head}{texts}</div>'


def _document(row: dict[str, Any]) -> str:
    """Its images among the texts beside them; longer runs of text are told by their number."""
    segments = row["segments"] or []
    images = [place for place, segment in enumerate(segments) if segment["kind"] == "image"]
    near = {place + step for place in images or [0] for step in range(-_BESIDE, _BESIDE + 1)}
    shown, left_out = "", 0
    for place, segment in enumerate([*segments, None]):
        if segment is not None and (place not in near or place > _SEGMENTS):
            left_out += 1
            continue
        shown += f'<p class="soft">… {left_out:,} more segments</p>' if left_out else ""
        left_out = 0
        if segment is not None:
            shown += (
                f"<p>{escape(segment['text'] or '')}</p>" if segment["kind"] == "text" else _picture(segment["image"])
            )
    head = f"{row['key']} · {len(segments):,} segments, {len(images):,} images"
    return f'<div class="body"><div class="soft">{escape(head)}</div>{shown}</div>'


def _picture(data: bytes | None) -> str:
    try:
        picture = decode(data or b"")
    except BadImage as error:
        return f'<p class="body bad">{escape(str(error))}</p>'
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=82)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}">'
