"""The two kinds of record that shards contain, with their Arrow schemas.

A *pair* is one image with any number of captions. A caption has a role: `raw` captions are the short, noisy texts that came
with the image, `long` captions describe it in detail, `rewrite` captions are raw ones that a language model has put in other
words without seeing the image (LaCLIP), `foil` captions are deliberately false.
A *document* is a sequence of segments in reading order, each of them one text or one image.
Images stay encoded (JPEG, PNG, WebP) until the decode actors of the stream, so that less data is moved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

Role = Literal["raw", "long", "rewrite", "foil"]
ROLES: tuple[Role, ...] = ("raw", "long", "rewrite", "foil")

CAPTION = pa.struct([pa.field("source", pa.string()), pa.field("role", pa.string()), pa.field("text", pa.string())])

PAIRS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("image", pa.binary()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("captions", pa.list_(CAPTION)),
        pa.field("label", pa.int32()),
        pa.field("group", pa.string()),
        pa.field("extra", pa.string()),
    ]
)

SEGMENT = pa.struct(
    [
        pa.field("kind", pa.string()),  # text or image
        pa.field("text", pa.string()),
        pa.field("image", pa.binary()),
        pa.field("extra", pa.string()),
    ]
)

DOCUMENTS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("segments", pa.list_(SEGMENT)),
        pa.field("extra", pa.string()),
    ]
)


@dataclass(frozen=True)
class Caption:
    """One text of an image: its author or field (`source`), its `role`, and the text."""

    source: str
    role: Role
    text: str


@dataclass(frozen=True)
class Pair:
    """One image and its captions. `label` indexes the class names of the manifest, `group` names a set of look-alikes."""

    key: str
    image: bytes
    width: int
    height: int
    captions: tuple[Caption, ...]
    label: int | None = None
    group: str | None = None
    extra: str | None = None

    def as_row(self) -> dict[str, Any]:
        """The record as a row of the `PAIRS` schema."""
        return {
            "key": self.key,
            "image": self.image,
            "width": self.width,
            "height": self.height,
            "captions": [{"source": c.source, "role": c.role, "text": c.text} for c in self.captions],
            "label": self.label,
            "group": self.group,
            "extra": self.extra,
        }


@dataclass(frozen=True)
class Segment:
    """A text or an encoded image of a document, never both. `extra` is JSON (for an image: `matched_sim`, ...)."""

    text: str | None = None
    image: bytes | None = None
    extra: str | None = None

    def __post_init__(self) -> None:
        if (self.text is None) == (self.image is None):
            raise ValueError("a segment is either a text or an image: give exactly one of them")

    def as_row(self) -> dict[str, Any]:
        """The segment as a value of the `SEGMENT` type."""
        kind = "text" if self.image is None else "image"
        return {"kind": kind, "text": self.text, "image": self.image, "extra": self.extra}


@dataclass(frozen=True)
class Document:
    """An interleaved document of texts and images. `extra` is JSON."""

    key: str
    segments: tuple[Segment, ...]
    extra: str | None = None

    def as_row(self) -> dict[str, Any]:
        """The record as a row of the `DOCUMENTS` schema."""
        return {"key": self.key, "segments": [s.as_row() for s in self.segments], "extra": self.extra}


Record = Pair | Document
SCHEMAS: dict[str, pa.Schema] = {"pairs": PAIRS, "documents": DOCUMENTS}
