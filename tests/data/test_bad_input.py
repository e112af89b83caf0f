"""What the web holds, from import to batch: each odd file is used or set aside with its reason, and nothing falls over.

Damage to whole files is tested where they are read: tars and tables (importers), shards and manifests (`test_shards`,
`test_verify`), full disks and second writers (`test_output`).
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sources import RAW, pair_evaluation, pair_source

from cornerstone.data.images import Transform
from cornerstone.data.importers import import_pairs
from cornerstone.data.shards import DataSet, Reader
from cornerstone.data.statistics import statistics
from cornerstone.data.verify import verify
from cornerstone.runtime.tokenizer import tokenizer_for

pytestmark = pytest.mark.usefixtures("ray_cluster")
RED, GREEN, BLUE = (230, 20, 20), (20, 230, 20), (20, 20, 230)
MEGABYTE = "a long tale of a red fox. " * 40_000


def encoded(image: Image.Image, format: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def rotated() -> bytes:
    """A JPEG that lies on its side: red on top once it stands."""
    lying = Image.new("RGB", (40, 20), GREEN)
    lying.paste(RED, (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(lying, "JPEG", exif=exif, quality=95)


def bomb() -> bytes:
    """A PNG of 100,000 × 100,000 in some bytes."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunks = (header, b"IDAT" + zlib.compress(bytes(1000)), b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


def palette() -> Image.Image:
    return Image.new("RGB", (24, 24), RED).convert("P", palette=Image.Palette.ADAPTIVE)


USABLE = {
    "cmyk.jpg": (encoded(Image.new("RGB", (24, 24), RED).convert("CMYK"), "JPEG", quality=95), RED),
    "palette.png": (encoded(palette(), "PNG", transparency=5), RED),
    "palette.gif": (encoded(palette(), "GIF"), RED),
    "grey16.png": (encoded(Image.fromarray(np.full((24, 24), 40_000, np.uint16)), "PNG"), (156,) * 3),
    "animated.gif": (
        encoded(palette(), "GIF", save_all=True, append_images=[Image.new("RGB", (24, 24), BLUE)] * 3),
        RED,
    ),
    "animated.webp": (
        encoded(Image.new("RGB", (24, 24), RED), "WEBP", save_all=True, append_images=[Image.new("RGB", (24, 24))]),
        RED,
    ),
    "transparent.png": (encoded(Image.new("RGBA", (24, 24), (0, 0, 0, 0)), "PNG"), (255,) * 3),
    "rotated.jpg": (rotated(), None),
    "one pixel.png": (encoded(Image.new("RGB", (1, 1), RED), "PNG"), RED),
}
REFUSED = {
    "bomb.png": (bomb(), "too many pixels"),
    "empty.jpg": (b"", "empty"),
    "page.jpg": (b"<html>gone</html>", "not readable as an image"),
    "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not readable as an image"),
}


@pytest.fixture(scope="module")
def imported(ray_cluster, tmp_path_factory) -> Path:
    """All of it in one list, whose texts are odd too, as shards."""
    folder = tmp_path_factory.mktemp("odd")
    for name, (data, _) in (USABLE | REFUSED).items():
        (folder / name).write_bytes(data)
    plain = [{"image": name, "alt": f"the picture {name}"} for name in USABLE | REFUSED]
    odd = [
        {"image": "palette.png", "alt": MEGABYTE},
        {"image": "palette.gif", "alt": "a fox\0 and a \ud800 hound\u202e"},
        {"image": "cmyk.jpg", "alt": "\0 \t"},
    ]
    lines = [json.dumps(row).encode() for row in plain + odd]
    lines += [b'{"image": "grey16.png", "alt": "caf\xe9"}', b'{"image": "rotated.jpg", "alt": "cut']
    (folder / "captions.jsonl").write_bytes(b"\n".join(lines))
    import_pairs("pairs-jsonl", folder, folder / "out", raw="alt")
    return folder / "out"


def rows(folder: Path) -> list[dict]:
    data = DataSet.open(str(folder))
    return Reader(data).take(np.arange(len(data))).to_pylist()


def test_what_cannot_be_used_is_set_aside_with_its_reason(imported):
    found = [json.loads(line) for line in (imported / "quarantine.jsonl").read_text().splitlines()]
    reasons = {entry["key"]: entry["reason"].partition(":")[0] for entry in found}
    assert {key: reasons.pop(key) for key in REFUSED} == {key: reason for key, (_, reason) in REFUSED.items()}
    assert sorted(reasons.values()) == ["not JSON", "not JSON"]  # by their place in the list
    assert all("captions.jsonl at byte" in key for key in reasons)
    kept = sorted(row["key"] for row in rows(imported))
    assert kept == sorted([*USABLE, "palette.png", "palette.gif", "cmyk.jpg"])


def test_odd_texts_come_through_as_they_are(imported):
    texts = {row["captions"][0]["text"] for row in rows(imported)}
    assert MEGABYTE.strip() in texts
    assert "a fox\0 and a \N{REPLACEMENT CHARACTER} hound\u202e" in texts


def test_verify_finds_no_problem_and_tells_the_repeated_keys(imported):
    verdict = verify(str(imported))
    assert verdict.problems == ()
    assert verdict.repeated_keys == 3
    assert "has the key of" in verdict.repeats[0]


def test_statistics_count_them(imported, wordpiece):
    counted = statistics(str(imported), tokenizer_for(str(imported), str(wordpiece), print))
    assert counted.count.rows == len(USABLE) + 3
    assert counted.count.unreadable == 0


@pytest.mark.parametrize("training", [True, False])
def test_every_row_becomes_a_sample(imported, wordpiece, training):
    tokenizer, transform = wordpiece.read_text(), Transform(16, (0.9, 1.0))
    source = (
        pair_source(str(imported), tokenizer, transform, sub_captions=3)
        if training
        else pair_evaluation(str(imported), tokenizer, transform, RAW)
    )
    wanted = rows(imported)
    places = np.arange(len(wanted))
    for row, sample in zip(wanted, source.open().take(places, np.zeros_like(places)).to_pylist(), strict=True):
        reason, image = " ".join(bad["reason"] for bad in sample["bad"]), sample["image"]
        texts = [sample["raw"], sample["long"]] if training else sample["texts"]
        blank = training and not row["captions"][0]["text"].strip("\0 \t")
        assert reason == ("no text" if blank else ""), row["key"]
        assert max(map(len, texts)) <= 30  # the limit, less two corners
        pixels = np.array(image).reshape(3, 16, 16).astype(int)
        colour = USABLE[row["key"]][1]
        if colour is None:
            top, bottom = pixels[:, :5].mean((1, 2)), pixels[:, -5:].mean((1, 2))
            assert top[0] > 180 > 60 > bottom[0], "the picture stands upright"
        else:
            assert np.abs(pixels - np.array(colour)[:, None, None]).max() < 12, row["key"]
