"""MMC4 and OBELICS: every text and every readable image of a document, in order, and what became of the others."""

from __future__ import annotations

import gzip
import hashlib
import json
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cornerstone.data.importers import FORMATS, ImportOptions, import_pairs
from cornerstone.data.importers.core import Quarantined
from cornerstone.data.records import Document
from cornerstone.data.shards import DataSet, Reader
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError


def read(format, src, **options):
    """Documents by key and refusals, without Ray."""
    source = FORMATS[format](Location.of(src), ImportOptions(**options))
    found = [record for task in source.plan().tasks for record in source.read(task)]
    documents = {record.key: record for record in found if isinstance(record, Document)}
    return documents, {r.key: r.reason for r in found if isinstance(r, Quarantined)}


def shown(document):
    """Texts as they are, images by the name that they came with."""
    return [s.text if s.image is None else {"image": json.loads(s.extra)["name"]} for s in document.segments]


def info(name, index, sim=0.3, url=None):
    return {"image_name": name, "raw_url": url, "matched_text_index": index, "matched_sim": sim}


@pytest.fixture
def folder(make, tmp_path):
    """Three pictures and a torn one."""
    for n in range(3):
        (tmp_path / f"{n}.jpg").write_bytes(make.image(n))
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8")
    return tmp_path


def record(*images, texts=("one", " ", "three")):
    return {"url": "http://x", "text_list": list(texts), "image_info": list(images), "similarity_matrix": [[0.1]]}


def test_an_image_stands_before_its_sentence(make, folder):
    rows = [record(info("1.jpg", 2, 0.2), info("0.jpg", 0), info("2.jpg", 2))]
    documents, refused = read("mmc4", make.write_list(folder, rows, "docs.jsonl") / "docs.jsonl")
    document = documents["docs/1"]
    assert shown(document) == [{"image": "0.jpg"}, "one", {"image": "1.jpg"}, {"image": "2.jpg"}, "three"]
    assert document.segments[2].image == make.image(1)
    assert json.loads(document.segments[2].extra) == {
        "name": "1.jpg", "matched_text_index": 2, "matched_sim": 0.2, "url": None,
    }  # fmt: skip
    assert json.loads(document.extra) == {"url": "http://x"}
    assert not refused


def test_lost_images_are_named_and_the_document_stays(make, folder):
    images = [info("0.jpg", 0), info("gone.jpg", 0), info("torn.jpg", 2), info("../x.jpg", 2), info("1.jpg", 9)]
    rows = [record(*images), record(info("gone.jpg", 0)), record(info("2.jpg", 0), texts=[" "]), {"a": 1}, b"{"]
    documents, refused = read("mmc4", make.write_list(folder, rows, "docs.jsonl") / "docs.jsonl")
    assert shown(documents["docs/1"]) == [{"image": "0.jpg"}, "one", "three"]
    assert list(documents) == ["docs/1"]
    kinds = {key: reason.partition(":")[0] for key, reason in refused.items()}
    assert kinds.pop("docs/1#torn.jpg") not in ("missing file", "")
    assert kinds == {
        "docs/1#gone.jpg": "missing file",
        "docs/1#../x.jpg": "outside the image folder",
        "docs/1#1.jpg": "no place",
        "docs/2#gone.jpg": "missing file",
        "docs/2": "no image",
        "docs/3": "no text",
        "docs/4": "wrong schema",
        "docs/5": "not JSON",
    }


def test_nothing_of_an_odd_record_is_lost(make, folder):
    """Lists of different lengths, an index with an image and a text, an image that is only named, none at all."""
    rows = [
        {"images": ["0.jpg", None, "1.jpg"], "texts": ["both", "alone"]},
        {"images": ["2.jpg"], "texts": [None, "one", "two"]},
    ]
    documents, refused = read("obelics", make.write_list(folder, rows, "docs.jsonl") / "docs.jsonl")
    found = [shown(document) for document in documents.values()]
    assert found == [[{"image": "0.jpg"}, "both", "alone", {"image": "1.jpg"}], [{"image": "2.jpg"}, "one", "two"]]
    assert not refused
    make.write_list(folder, [record(info("0.jpg", 0), "1.jpg", None)], "docs.jsonl")
    documents, refused = read("mmc4", folder / "docs.jsonl")
    assert [shown(document) for document in documents.values()] == [[{"image": "0.jpg"}, "one", "three"]]
    assert list(refused) == ["docs/1#1.jpg", "docs/1#None"]
    assert all(reason.startswith("no place: matched_text_index is None") for reason in refused.values())


def test_packed_lists_hold_the_same_documents(make, folder):
    rows = [record(info(f"{n % 3}.jpg", 0), texts=[f"text {n}"]) for n in range(7)]
    plain = (make.write_list(folder, rows, "docs.jsonl") / "docs.jsonl").read_bytes()
    expected = {key: shown(d) for key, d in read("mmc4", folder / "docs.jsonl")[0].items()}
    assert len(expected) == 7
    with gzip.open(folder / "docs.jsonl.gz", "wb") as packed:
        packed.write(plain)
    with zipfile.ZipFile(folder / "docs.jsonl.zip", "w") as packed:
        packed.writestr("docs_shard_1_v2.jsonl", plain)
    for name in ("docs.jsonl.gz", "docs.jsonl.zip"):
        assert {key: shown(d) for key, d in read("mmc4", folder / name)[0].items()} == expected
    (folder / "docs.jsonl.zip").write_bytes((folder / "docs.jsonl.zip").read_bytes()[:-30])
    assert read("mmc4", folder / "docs.jsonl.zip")[1]["docs.jsonl.zip"].startswith("damaged file")
    assert len(read("mmc4", folder / "docs.jsonl", limit_rows=3)[0]) == 3


def test_the_files_of_every_release_are_found_beside_their_images(make, folder):
    names = ("docs_shard_0_v1.jsonl", "docs_shard_11_v2.jsonl.zip", "docs_no_face_shard_3_v3.jsonl")
    for n, name in enumerate(names):
        line = json.dumps(record(info(f"{n}.jpg", 0), texts=[f"text {n}"])).encode()
        if name.endswith(".zip"):
            with zipfile.ZipFile(folder / name, "w") as packed:
                packed.writestr(name.removesuffix(".zip"), line)
        else:
            (folder / name).write_bytes(line)
    documents, refused = read("mmc4", folder)
    assert not refused
    assert sorted(documents) == [
        "docs_no_face_shard_3_v3/1",
        "docs_shard_0_v1/1",
        "docs_shard_11_v2/1",
    ]


def test_obelics_in_parquet_finds_images_by_their_address(make, folder):
    addresses = ["http://a/0.jpg?w=3", "http://b/x", "http://c/y"]
    (folder / hashlib.md5(addresses[1].encode()).hexdigest()).write_bytes(make.image(1))
    (folder / f"{hashlib.sha1(addresses[2].encode()).hexdigest()}.jpg").write_bytes(make.image(2))
    row = {
        "images": [addresses[0], None, addresses[1], None, addresses[2]],
        "texts": [None, "first", None, "second", None],
        "metadata": json.dumps([{"alt_text": "a"}, None, {"alt_text": "b"}, None, None]),
        "general_metadata": "{}",
    }
    pq.write_table(pa.Table.from_pylist([row]), folder / "part.parquet")
    documents, refused = read("obelics", folder / "part.parquet")
    assert not refused
    document = documents["part/1"]
    assert shown(document) == [
        {"image": addresses[0]},
        "first",
        {"image": addresses[1]},
        "second",
        {"image": addresses[2]},
    ]
    assert [s.image for s in document.segments if s.image] == [make.image(n) for n in range(3)]
    assert json.loads(document.segments[2].extra) == {"name": addresses[1], "alt_text": "b"}
    (folder / "part.parquet").write_bytes((folder / "part.parquet").read_bytes()[:-9])
    assert read("obelics", folder / "part.parquet")[1]["part.parquet"].startswith("damaged file")


def test_a_document_ends_where_its_authors_say(make, folder):
    mark = "END_OF_DOCUMENT_TOKEN_TO_BE_REPLACED"
    row = {"images": ["0.jpg", None, "1.jpg", None], "texts": [None, f"one {mark} two", None, f"three{mark}{mark}lost"]}
    make.write_list(folder, [row], "docs.jsonl")
    documents, refused = read("obelics", folder / "docs.jsonl")
    assert {key: shown(document) for key, document in documents.items()} == {
        "docs/1": [{"image": "0.jpg"}, "one"],
        "docs/1.1": ["two", {"image": "1.jpg"}, "three"],
    }
    assert refused == {"docs/1.2": "no image: none of the document's images could be read"}


def test_an_address_that_is_none_loses_its_image_alone(make, folder):
    addresses = ["http://[id]/a.jpg", "http://exa\ud800mple/b.jpg"]
    rows = [record(info(None, 0, url=address), info("0.jpg", 0)) for address in addresses]
    make.write_list(folder, rows, "docs.jsonl")
    documents, refused = read("mmc4", folder / "docs.jsonl")
    assert len(documents) == 2
    assert len(refused) == 2


def test_what_has_no_effect_is_refused(make, folder):
    source = make.write_list(folder, [record()], "docs.jsonl")
    with pytest.raises(CornerstoneError, match="have no effect on documents"):
        read("mmc4", source, raw="title")
    with pytest.raises(CornerstoneError, match=r"No image folder at .*nowhere"):
        read("mmc4", source, images=str(folder / "nowhere"))
    (folder / "empty").mkdir()
    with pytest.raises(CornerstoneError, match=r"expected files that end with .*\.zip"):
        read("obelics", folder / "empty")


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("format", "rows"), [("mmc4", 115), ("obelics", 115)])
def test_real_documents(test_data, tmp_path, format, rows):
    report = import_pairs(format, test_data / "recipes" / f"docs_{format}.jsonl", tmp_path / "out")
    assert report.manifest.kind == "documents"
    assert report.manifest.tasks == ()
    assert report.rows + sum(1 for reason in report.reasons if reason == "no image") <= rows
    assert report.rows > 100
    found = Reader(DataSet.open(str(tmp_path / "out"), "documents")).take(np.arange(report.rows)).to_pylist()
    assert report.captions["image"] == sum(s["kind"] == "image" for row in found for s in row["segments"])
    assert all(s["image"] if s["kind"] == "image" else s["text"] for row in found for s in row["segments"])
    with pytest.raises(CornerstoneError, match=r"holds documents, but pairs are needed"):
        DataSet.open(str(tmp_path / "out"), "pairs")


@pytest.mark.usefixtures("ray_cluster")
def test_documents_without_their_images_say_so(test_data, tmp_path):
    with pytest.raises(CornerstoneError, match=r"No usable row in .*missing file.*Check --images"):
        import_pairs("mmc4", test_data / "mmc4_sample", tmp_path / "out")
