"""A tiny tower and small shards with known bad rows, on which whole runs take seconds."""

from __future__ import annotations

import colorsys
import io
from dataclasses import dataclass
from pathlib import Path

import pytest

TORN, TEXTLESS = (7, 40, 83), (22, 61)
"""Rows whose image is torn, and rows without any text."""
LARGE = range(88, 92)
"""Rows that take a while to decode; with seed 3 they stand in the first block, which others could overtake."""


@dataclass(frozen=True)
class Shards:
    """Folders: 100 training pairs with the bad rows above, a set for retrieval and one for classification."""

    train: str
    retrieval: str
    classes: str
    tower: str


def picture(i: int, enlarged: int = 1) -> bytes:
    """Four fields whose colours nobody else has."""
    from PIL import Image

    image = Image.new("RGB", (40, 36))
    for place in range(4):
        colour = colorsys.hsv_to_rgb(
            (i * 0.618 + place * 0.27 * (1 + i % 3)) % 1, 0.4 + 0.15 * (i % 5), 0.5 + 0.1 * place
        )
        image.paste(tuple(round(255 * c) for c in colour), (20 * (place % 2), 18 * (place // 2), 40, 36))
    stream = io.BytesIO()
    image.resize((40 * enlarged, 36 * enlarged), Image.Resampling.NEAREST).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="session")
def shards(tmp_path_factory, small_data, wordpiece, tiny_tower) -> Shards:
    from cornerstone.data.records import Caption

    def pair(i: int):
        image = picture(i)
        return small_data.pair(i, image=image[: len(image) // 2] if i in TORN else image, width=40, height=36)

    def training(i: int):
        if i in TEXTLESS:
            return small_data.pair(i, captions=(Caption("web", "raw", "  "), Caption("a", "long", "")))
        if i in LARGE:
            return small_data.pair(i, image=picture(i, enlarged=120), width=4800, height=4320)
        return pair(i)

    folder = tmp_path_factory.mktemp("shards")
    train = small_data.write(folder / "train", map(training, range(100)))
    (Path(train) / "tokenizer.json").write_text(wordpiece.read_text())
    retrieval = small_data.write(
        folder / "birds", map(pair, range(70, 103)), tasks=("retrieval",)
    )  # a torn one is in it
    names = {"classes": ("cat", "dog", "bus", "sky"), "prompts": ("a photo of a {}.",), "tasks": ("classification",)}
    return Shards(train, retrieval, small_data.write(folder / "kinds", map(pair, range(200, 240)), **names), tiny_tower)
