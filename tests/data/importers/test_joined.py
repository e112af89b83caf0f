"""Lists of texts whose images lie in shards."""

from __future__ import annotations

import csv
import json
import pickle

import numpy as np
import pytest

from cornerstone.data.importers import FORMATS, ImportOptions, import_pairs
from cornerstone.data.importers.core import Quarantined, Sample, as_pair
from cornerstone.data.records import Caption, Document, Pair, Segment
from cornerstone.data.shards import ShardWriter
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError

ROWS = 25


def address(number: int) -> str:
    return f"http://example.org/{number}.jpg?size=1"


@pytest.fixture
def store(make, tmp_path):
    """What `data import img2dataset` makes of tars: keys of tar and sample, addresses in `extra`; 4 shards."""
    with ShardWriter(str(tmp_path / "store"), name="store", rows_per_shard=8, rows_per_group=3) as writer:
        for number in range(ROWS + 1):  # the last one is of no address
            extra = json.dumps({"url": address(number), "original_width": 8}) if number < ROWS else None
            caption = Caption("txt", "raw", f"alt {number}")
            writer.add(Pair(f"00000/{number:09d}", make.image(number), 8, 6 + number % 3, (caption,), extra=extra))
    return str(tmp_path / "store")


def write_table(path, rows, header=("Image Path", "raw_caption", "longSV_captions")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def joined(format, src, **options):
    """Pairs in order and refusals, without Ray; sent to the tasks as Ray would."""
    source = FORMATS[format](Location.of(src), ImportOptions(**options))
    plan = source.plan()
    sent = pickle.loads(pickle.dumps(source))
    found = [record for task in plan.tasks for record in sent.read(pickle.loads(pickle.dumps(task)))]
    pairs = [as_pair(record, source.options, plan.classes) for record in found if isinstance(record, Sample)]
    return pairs, {r.key: r.reason for r in found if isinstance(r, Quarantined)}, plan


def test_dreamlips_table_finds_its_images_by_address(make, store, tmp_path):
    order = np.random.default_rng(0).permutation(ROWS + 3).tolist()  # three were never downloaded
    table = write_table(tmp_path / "list.csv", [(address(n), f"raw {n}", f"First.\nThen {n}.") for n in order])
    pairs, refused, plan = joined("dreamlip-csv", table, images=store)
    assert [pair.key for pair in pairs] == [f"00000/{n:09d}" for n in range(ROWS)]
    for number, pair in enumerate(pairs):
        assert pair.image == make.image(number)
        texts = [(caption.source, caption.role, caption.text) for caption in pair.captions]
        assert texts == [("raw", "raw", f"raw {number}"), ("longSV", "long", f"First.\nThen {number}.")]
        assert json.loads(pair.extra) == {"url": address(number), "original_width": 8}
    assert refused == {
        address(n): f"no image: {store} has no image with this key or URL" for n in range(ROWS, ROWS + 3)
    }
    assert [len(task) for task in plan.tasks] == [8, 8, 8, 1, 3]
    assert plan.order == {"rows": "as the images"}


@pytest.mark.parametrize("ending", ["", ".jpg", ".JPEG"])
def test_images_are_found_by_key(store, tmp_path, ending):
    rows = [{"image": f"00000/{n:09d}{ending}", "text": f"text {n}"} for n in (20, 3, 3, 9)]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"text": "no image"}])))
    pairs, refused, _ = joined("pairs-jsonl", tmp_path, images=store, raw=("text",), trust_keys=True)
    found = [(pair.key, pair.captions[0].text) for pair in pairs]
    assert found == [(f"00000/{n:09d}", f"text {n}") for n in (3, 3, 9, 20)]
    assert list(refused.values()) == ["no image: `image` is None"]


def test_the_first_of_two_images_of_one_address_is_taken(make, tmp_path):
    with ShardWriter(str(tmp_path / "store"), name="store", rows_per_shard=3) as writer:
        for number in range(5):
            writer.add(
                Pair(f"{number}", make.image(number), 8, 6, (), 0, extra=json.dumps({"url": address(number % 2)}))
            )
    table = write_table(tmp_path / "list.csv", [(address(n), f"raw {n}", "") for n in (1, 0)])
    pairs, _, _ = joined("dreamlip-csv", table, images=str(tmp_path / "store"))
    assert [pair.key for pair in pairs] == ["0", "1"]


def test_a_full_name_goes_before_one_without_its_ending(make, tmp_path):
    with ShardWriter(str(tmp_path / "store"), name="store") as writer:
        for number, key in enumerate(("a", "a.jpg", "b")):
            writer.add(Pair(key, make.image(number), 8, 6, (), 0))
    table = write_table(tmp_path / "list.csv", [("a.jpg", "one", ""), ("b.jpg", "two", "")])
    pairs, _, _ = joined("dreamlip-csv", table, images=str(tmp_path / "store"))
    assert [(pair.key, pair.captions[0].text) for pair in pairs] == [("a.jpg", "one"), ("b", "two")]


def test_conditions_and_limits_hold(store, tmp_path):
    rows = [(address(n), f"raw {n}", "", "train" if n % 2 else "val") for n in range(ROWS)]
    table = write_table(tmp_path / "list.csv", rows, ("url", "raw", "longIB", "split"))
    pairs, refused, plan = joined("dreamlip-csv", table, images=store, where=("split=train",), limit_rows=7)
    assert [pair.captions[0].text for pair in pairs] == [f"raw {n}" for n in range(1, 14, 2)]
    assert not refused
    assert [len(task) for task in plan.tasks] == [4, 3]


def test_where_no_image_is_found_both_sides_are_shown(store, tmp_path):
    table = write_table(tmp_path / "list.csv", [("photos/1.jpg", "raw", "long"), ("", "raw", "long")])
    with pytest.raises(CornerstoneError) as refused:
        joined("dreamlip-csv", table, images=store)
    assert "has none of the 2 images that" in str(refused.value)
    assert "looked for `photos/1.jpg`; its keys are like `00000/000000000`" in str(refused.value)


def test_images_of_another_kind_of_data_set(tmp_path):
    with ShardWriter(str(tmp_path / "store"), name="store", kind="documents") as writer:
        writer.add(Document("a", (Segment(text="one"),)))
    table = write_table(tmp_path / "list.csv", [("a.jpg", "raw", "long")])
    with pytest.raises(CornerstoneError, match="holds documents, but pairs are needed here"):
        joined("dreamlip-csv", table, images=str(tmp_path / "store"))


def test_an_import_joins_in_parallel_and_counts_what_is_lost(ray_cluster, make, store, tmp_path):
    table = write_table(tmp_path / "list.csv", [(address(n), f"raw {n}", f"Long {n}.") for n in range(2, ROWS + 2)])
    report = import_pairs("dreamlip-csv", table, tmp_path / "out", images=store)
    assert (report.rows, report.quarantined, report.reasons) == (ROWS - 2, 2, {"no image": 2})
    rows = make.rows(tmp_path / "out")
    assert [row["key"] for row in rows] == [f"00000/{n:09d}" for n in range(2, ROWS)]
    assert report.manifest.source["order"] == {"rows": "as the images"}
