"""Every format against hostile and odd inputs. A new format needs one writer here, and gets all of these tests.

The readers run without Ray: `plan`, `read` and the conversion of records, as a task does it.
"""

from __future__ import annotations

import csv
import io
import json
import os
import struct
import zlib
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cornerstone.data.images import decode
from cornerstone.data.importers import FORMATS, check, core
from cornerstone.data.importers.core import ImportOptions
from cornerstone.data.records import Document


@dataclass
class Item:
    """A picture with its texts; without an image the list names none, as mixtures for instruction tuning do."""

    number: int
    image: bytes | None
    texts: tuple[str, ...] = ("a text",)
    ending: str = ".jpg"

    @property
    def name(self) -> str:
        return f"{self.number:09d}{self.ending}"


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def photos(folder, items):
    for item in items:
        if item.image is not None:
            put(folder / item.name, item.image)


def jsonl(path, rows):
    return put(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def named(item):
    return item.name if item.image is not None else None


def pairs_jsonl(root, items, make):
    photos(root, items)
    jsonl(root / "captions.jsonl", [{"image": named(i), "text": list(i.texts)} for i in items])
    return root, {"raw": ("text",)}


def members(items, with_json):
    found = []
    for item in items:
        key = f"{item.number:09d}"
        found += [(f"{key}{item.ending}", item.image)] if item.image is not None else []
        found.append((f"{key}.txt", "\n".join(item.texts).encode()))
        if with_json:
            found.append((f"{key}.json", json.dumps({"key": key, "status": "success"}).encode()))
    return found


def webdataset(root, items, make):
    make.write_tar(root / "a.tar", members(items, False))
    return root, {}


def img2dataset(root, items, make):
    make.write_tar(root / "00000.tar", members(items, True))
    return root, {}


def table(path, header, rows, delimiter):
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter).writerows([header, *rows])
    return put(path, stream.getvalue().encode())


def cc_tsv(root, items, make):
    photos(root, items)
    rows = [[named(i) or "", i.texts[0]] for i in items]
    return table(root / "list.tsv", ["filepath", "title"], rows, "\t"), {}


def dreamlip_csv(root, items, make):
    photos(root, items)
    header = ["Image Path", "raw_caption", "longIB_captions", "longSV_captions", "longLLA_captions"]
    return table(root / "list.csv", header, [[named(i) or "", *[i.texts[0]] * 4] for i in items], ","), {}


def hf_parquet(root, items, make):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [None if i.image is None else {"bytes": i.image, "path": i.name} for i in items]
    root.mkdir(parents=True, exist_ok=True)
    columns = {"image": pa.array(images, kind), "caption": pa.array([list(i.texts) for i in items])}
    pq.write_table(pa.table(columns), root / "train-00000-of-00001.parquet")
    return root, {}


def coco(root, items, make):
    photos(root / "photos", items)
    images = [{"id": i.number, **({"file_name": i.name} if i.image is not None else {})} for i in items]
    notes = [{"image_id": i.number, "caption": text} for i in items for text in i.texts]
    return put(root / "captions.json", {"images": images, "annotations": notes}), {"images": str(root / "photos")}


def karpathy(root, items, make):
    photos(root / "photos", items)
    images = [{"filename": named(i), "split": "test", "sentences": [{"raw": text} for text in i.texts]} for i in items]
    return put(root / "dataset.json", {"images": images}), {"images": str(root / "photos")}


def flickr30k(root, items, make):
    photos(root / "photos", items)
    header = ["raw", "split", "filename"]
    rows = [[json.dumps(list(i.texts)), "test", named(i) or ""] for i in items]
    return table(root / "flickr.csv", header, rows, ","), {"images": str(root / "photos")}


def dci(root, items, make):
    photos(root / "photos", items)
    put(root / "splits.json", {"test": [f"{i.number}.json" for i in items]})
    for i in items:
        row = {"image": named(i), "short_caption": i.texts[0], "extra_caption": "more"}
        put(root / "annotations" / f"{i.number}.json", row)
    return root, {}


def iiw(root, items, make):
    photos(root, items)
    jsonl(root / "data.jsonl", [{"image": named(i), "IIW": i.texts[0]} for i in items])
    return root, {}


def sharegpt4v(root, items, make):
    photos(root, items)
    turns = [{"from": "human", "value": "Describe."}]
    found = [{"id": i.number, "image": named(i), "conversations": [*turns, {"value": i.texts[0]}]} for i in items]
    return put(root / "list.json", found), {}


def urban1k(root, items, make):
    photos(root / "image", [Item(i.number, i.image, i.texts) for i in items])
    for i in items:
        put(root / "caption" / f"{i.number:09d}.txt", i.texts[0].encode())
    return root, {}


def imagefolder(root, items, make):
    for place, item in enumerate(items):
        if item.image is not None:
            put(root / "train" / ("heron", "wren")[place % 2] / item.name, item.image)
    return root, {}


def llava(root, items, make):
    photos(root, items)
    answers = [[{"from": "gpt", "value": text} for text in i.texts] for i in items]
    found = [
        {"id": i.number, "image": named(i), "conversations": [{"from": "human", "value": "<image>\nWhat?"}, *said]}
        for i, said in zip(items, answers, strict=True)
    ]
    return put(root / "list.json", found), {}


def mmc4(root, items, make):
    photos(root, items)
    rows = []
    for i in items:
        images = [] if i.image is None else [{"image_name": i.name, "matched_text_index": 0, "matched_sim": 0.3}]
        rows.append({"text_list": list(i.texts), "image_info": images})
    return jsonl(root / "docs.jsonl", rows), {}


def obelics(root, items, make):
    photos(root, items)
    rows = []
    for i in items:
        images = [] if i.image is None else [f"http://x/{i.name}"]
        rows.append({"images": [*images, None], "texts": [None] * len(images) + [i.texts[0]]})
    return jsonl(root / "docs.jsonl", rows), {}


WRITERS = {
    "pairs-jsonl": pairs_jsonl,
    "webdataset": webdataset,
    "img2dataset": img2dataset,
    "cc-tsv": cc_tsv,
    "dreamlip-csv": dreamlip_csv,
    "hf-parquet": hf_parquet,
    "coco": coco,
    "karpathy": karpathy,
    "flickr30k": flickr30k,
    "dci": dci,
    "iiw": iiw,
    "sharegpt4v": sharegpt4v,
    "urban1k": urban1k,
    "imagefolder": imagefolder,
    "llava": llava,
    "mmc4": mmc4,
    "obelics": obelics,
}
ONE_FILE = ("webdataset", "img2dataset", "hf-parquet")
"""Formats that hold their images: links and loose files do not concern them."""
SEVERAL_TEXTS = ("pairs-jsonl", "webdataset", "img2dataset", "hf-parquet", "coco", "karpathy", "flickr30k")
NO_EMPTY_ENTRY = ("imagefolder",)
"""Formats without a list: an entry without an image cannot be expressed."""


def test_every_format_has_a_writer():
    assert set(WRITERS) == set(FORMATS)


def imported(format, source, out, **options):
    """Rows and quarantined records, as the tasks of an import make them."""
    reader = check(format, source, out, ImportOptions(**options))
    plan, outcome = reader.plan(), core._Outcome()
    found = [
        row for task in plan.tasks for row in core._records(reader.read(task), reader.options, plan.classes, outcome)
    ]
    return found, [*plan.quarantined, *outcome.quarantined], plan


def images_of(rows):
    found = []
    for row in rows:
        found += [s.image for s in row.segments if s.image] if isinstance(row, Document) else [row.image]
    return sorted(found)


def encoded(picture, kind, **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@cache
def odd_images():
    """Pictures that every viewer opens."""
    base = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8))
    png, bomb = encoded(base, "PNG"), zlib.compress(b"x" * (70 << 20))
    pixels = png.index(b"IDAT") - 4
    wide = Image.fromarray((np.arange(768).reshape(24, 32) * 80).astype(np.uint16))
    animated = {"save_all": True, "append_images": [base.rotate(90)]}
    return {
        "a text beyond the decoder's limit": png[:pixels] + chunk(b"zTXt", b"k\0\0" + bomb) + png[pixels:],
        "a text behind the pixels": png[:-12] + chunk(b"zTXt", b"k\0\0" + bomb) + png[-12:],
        "a profile beyond the limit": png[:pixels] + chunk(b"iCCP", b"k\0\0" + bomb) + png[pixels:],
        "a broken EXIF block": encoded(base, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
        "a large profile": encoded(base, "JPEG", icc_profile=b"z" * 300_000),
        "trailing bytes": encoded(base, "JPEG") + b"junk" * 1000,
        "another format than the ending": encoded(base, "WEBP"),
        "an animated GIF": encoded(base, "GIF", **animated),
        "an animated PNG": encoded(base, "PNG", **animated),
        "an animated WebP": encoded(base, "WEBP", **animated),
        "several pictures (MPO)": encoded(base, "MPO", **animated),
        "AVIF": encoded(base, "AVIF"),
        "CMYK": encoded(base.convert("CMYK"), "JPEG"),
        "16-bit grey": encoded(wide, "PNG"),
        "grey with transparency": encoded(base.convert("LA"), "PNG"),
        "a palette with transparency": encoded(base.convert("P"), "PNG", transparency=3),
        "black and white": encoded(base.convert("1"), "PNG"),
        "LAB": encoded(base.convert("LAB"), "TIFF"),
    }


def items_of(make, count=4, **fields):
    return [Item(n, make.image(n), **fields) for n in range(count)]


@pytest.fixture(params=sorted(FORMATS))
def format(request):
    return request.param


def test_plain_rows(format, make, tmp_path):
    items = items_of(make)
    source, options = WRITERS[format](tmp_path / "in", items, make)
    rows, refused, _ = imported(format, source, tmp_path / "out", **options)
    assert images_of(rows) == sorted(item.image for item in items)
    assert refused == []


def test_debris_is_neither_row_nor_class_nor_shard(format, make, tmp_path):
    items = items_of(make)
    source, options = WRITERS[format](tmp_path / "in", items, make)
    apple = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(100)
    for folder, _, files in list(os.walk(tmp_path / "in")):
        for name in (".DS_Store", "Thumbs.db", "desktop.ini", *(f"._{file}" for file in files)):
            put(type(tmp_path)(folder) / name, apple)
        for file in files:
            put(type(tmp_path)(folder) / ".ipynb_checkpoints" / file, make.image(77))
            put(type(tmp_path)(folder) / "__MACOSX" / f"._{file}", apple)
    rows, refused, plan = imported(format, source, tmp_path / "out", **options)
    assert images_of(rows) == sorted(item.image for item in items)
    assert refused == []
    assert set(plan.classes) <= {"heron", "wren"}


@pytest.mark.parametrize("name", ["a [b] {c,d}", "what is this?", "100% #1", "ünïcødé 図", "-x", "a*b", "{00..02}"])
def test_a_path_that_exists_is_taken_as_it_is(format, make, tmp_path, name):
    items = items_of(make)
    source, options = WRITERS[format](tmp_path / name / name, items, make)
    rows, refused, _ = imported(format, source, tmp_path / "out", **options)
    assert images_of(rows) == sorted(item.image for item in items)
    assert refused == []


def test_pictures_that_every_viewer_opens_are_used(format, make, tmp_path):
    items = [Item(n, image) for n, image in enumerate(odd_images().values())]
    source, options = WRITERS[format](tmp_path / "in", items, make)
    rows, refused, _ = imported(format, source, tmp_path / "out", **options)
    assert [one.reason for one in refused] == []
    assert images_of(rows) == sorted(odd_images().values())


@pytest.mark.parametrize("what", sorted(odd_images()))
def test_such_a_picture_is_decoded(what):
    assert decode(odd_images()[what]).size == (32, 24)


def test_a_picture_that_cannot_be_opened_costs_one_row(format, make, tmp_path):
    items = [*items_of(make), Item(7, b"\xff\xd8"), Item(8, b"<html>"), Item(9, b"")]
    source, options = WRITERS[format](tmp_path / "in", items, make)
    rows, refused, _ = imported(format, source, tmp_path / "out", **options)
    assert images_of(rows) == sorted(item.image for item in items[:4])
    assert len(refused) >= 3


def test_entries_without_an_image_are_counted_and_the_rest_imported(format, make, tmp_path):
    if format in NO_EMPTY_ENTRY:
        pytest.skip("has no list: every file is an image")
    items = [Item(5, None), *items_of(make), Item(6, None)]
    source, options = WRITERS[format](tmp_path / "in", items, make)
    rows, refused, _ = imported(format, source, tmp_path / "out", **options)
    assert images_of(rows) == sorted(item.image for item in items[1:5])
    assert len(refused) == 2
    assert {one.reason.partition(":")[0] for one in refused} <= {"no image", "missing file"}


def test_several_captions_are_several_texts(format, make, tmp_path):
    if format not in SEVERAL_TEXTS:
        pytest.skip("has one text an image")
    texts = ("one", "two words", "three")
    source, options = WRITERS[format](tmp_path / "in", items_of(make, texts=texts), make)
    rows, _, _ = imported(format, source, tmp_path / "out", **options)
    assert [[caption.text for caption in row.captions] for row in rows] == [list(texts)] * 4


def test_a_file_of_something_else_beside_is_left_out(format, make, tmp_path):
    items = items_of(make)
    source, options = WRITERS[format](tmp_path / "in", items, make)
    folder = source if source.is_dir() else source.parent
    put(folder / "README.md", b"# a data set")
    put(folder / "nshards.txt", b"1")
    pq.write_table(pa.table({"vector": [[0.5] * 4] * 3, "other": ["x"] * 3}), folder / "a-vectors.parquet")
    rows, refused, _ = imported(format, source, tmp_path / "out", **options)
    assert images_of(rows) == sorted(item.image for item in items)
    assert {one.reason.partition(":")[0] for one in refused} <= {"another schema", "wrong schema"}


def moved_behind_links(root, away):
    """Replace every image file by a link to the same file elsewhere; how many there are."""
    count = 0
    for folder, _, files in os.walk(root):
        for file in files:
            path = type(root)(folder) / file
            if file.endswith(".jpg"):
                away.mkdir(exist_ok=True)
                target = away / f"{count}-{file}"
                path.rename(target)
                path.symlink_to(target)
                count += 1
    return count


def test_links_inside_the_folder_work(format, make, tmp_path):
    items = items_of(make)
    source, options = WRITERS[format](tmp_path / "in", items, make)
    (tmp_path / "link").symlink_to(tmp_path / "in")
    options = {k: v.replace("/in/", "/link/") if k == "images" else v for k, v in options.items()}
    through = tmp_path / "link" / source.relative_to(tmp_path / "in")
    rows, refused, _ = imported(format, through, tmp_path / "out", **options)
    assert images_of(rows) == sorted(item.image for item in items)
    assert refused == []


def test_links_out_of_the_folder_are_named_or_followed(format, make, tmp_path):
    if format in ONE_FILE:
        pytest.skip("holds its images")
    items = items_of(make)
    source, options = WRITERS[format](tmp_path / "in", items, make)
    assert moved_behind_links(tmp_path / "in", tmp_path / "away") == 4
    rows, refused, _ = imported(format, source, tmp_path / "out", **options)
    assert rows == []
    reasons = [one.reason for one in refused if "link" in one.reason]
    assert len(reasons) == 4
    assert all(f"a link leads to {tmp_path}/away/" in text and "--follow-links" in text for text in reasons)
    rows, refused, _ = imported(format, source, tmp_path / "out", follow_links=True, **options)
    assert images_of(rows) == sorted(item.image for item in items)
    assert refused == []


def test_a_snapshot_of_the_hub_needs_no_option(format, make, tmp_path):
    """Its files are links to `../../blobs`."""
    if format in ONE_FILE:
        pytest.skip("holds its images")
    items = items_of(make)
    snapshot = tmp_path / "datasets--a--b" / "snapshots" / "3f2a9c"
    source, options = WRITERS[format](snapshot, items, make)
    assert moved_behind_links(snapshot, tmp_path / "datasets--a--b" / "blobs") == 4
    rows, refused, _ = imported(format, source, tmp_path / "out", **options)
    assert images_of(rows) == sorted(item.image for item in items)
    assert refused == []
