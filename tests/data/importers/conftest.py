"""Small sources for the importers' tests."""

from __future__ import annotations

import io
import json
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from cornerstone.data.shards import DataSet, Reader


def image(number: int, format: str = "JPEG") -> bytes:
    """A small picture that only this number has."""
    pixels = np.full((6 + number % 3, 8, 3), (number * 37 % 256, number * 91 % 256, number // 256), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format)
    return stream.getvalue()


def write_list(folder, rows, name="captions.jsonl"):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    (folder / name).write_bytes(b"\n".join(lines) + b"\n")
    return folder


def write_tar(path, members, mode="w"):
    """Members are (name, bytes) or a TarInfo for what is no file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return path


def samples(numbers, text="caption {}"):
    """The members of whole samples: a JPEG and a text each."""
    return [part for n in numbers for part in ((f"{n:06d}.jpg", image(n)), (f"{n:06d}.txt", text.format(n).encode()))]


def rows(folder):
    """All rows of a finished folder, in order."""
    data = DataSet.open(str(folder), "pairs")
    return Reader(data).take(np.arange(len(data))).to_pylist()


def quarantined(folder):
    return [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def make():
    """The helpers above."""
    helpers = (image, write_list, write_tar, samples, rows, quarantined)
    return SimpleNamespace(**{helper.__name__: helper for helper in helpers})
