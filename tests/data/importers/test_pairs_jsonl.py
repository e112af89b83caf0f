"""`pairs-jsonl`: every row arrives once, and what is bad says why."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from cornerstone.data import draws
from cornerstone.data.importers import ImportOptions, import_pairs
from cornerstone.data.manifest import Manifest
from cornerstone.errors import CornerstoneError

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def photos(make, tmp_path):
    """25 pictures with two captions and a split; the list in a folder of its own."""
    (tmp_path / "photos" / "sub dir").mkdir(parents=True)
    rows = []
    for n in range(25):
        name = f"sub dir/ü {n}%20#?.jpg"  # characters that an address would have to escape
        (tmp_path / "photos" / name).write_bytes(make.image(n))
        captions = [f"long {n}", f"raw {n}"] if n % 5 else [f"long {n}"]
        rows.append(
            {"image": name, "captions": captions, "split": "val" if n % 4 == 0 else "train", "n": n, "credit": "me"}
        )
    return make.write_list(tmp_path / "photos", rows)


def test_rows_arrive_once_in_seeded_order(make, photos, tmp_path):
    seen = []
    report = import_pairs(
        "pairs-jsonl", photos, tmp_path / "out", long="captions.0", raw="captions.1", seed=3, rows_per_shard=10,
        progress=lambda *state: seen.append(state),
    )  # fmt: skip
    rows = make.rows(tmp_path / "out")
    order = draws.permutation(25, 3, "import-order").tolist()
    assert [json.loads(row["extra"])["n"] for row in rows] == order
    assert order != sorted(order)
    for row in rows:
        n = json.loads(row["extra"])["n"]
        assert row["image"] == make.image(n)
        assert (row["width"], row["height"]) == (8, 6 + n % 3)
        expected = [("captions.1", "raw", f"raw {n}")] * bool(n % 5) + [("captions.0", "long", f"long {n}")]
        assert [(c["source"], c["role"], c["text"]) for c in row["captions"]] == expected
        assert json.loads(row["extra"])["credit"] == "me"
        assert "captions" not in json.loads(row["extra"])
    assert report.rows == 25
    assert report.captions == {"long": 25, "raw": 20}
    assert report.quarantined == 0
    assert not (tmp_path / "out" / "quarantine.jsonl").exists()
    assert seen[-1] == (3, 3, 25)
    manifest = report.manifest
    assert [shard.rows for shard in manifest.shards] == [10, 10, 5]
    assert manifest == Manifest.read(str(tmp_path / "out"))
    assert (manifest.name, manifest.tasks, manifest.classes) == ("out", ("retrieval",), ())
    assert manifest.source["order"] == {"rows": "permuted", "seed": 3}
    assert manifest.source["quarantined"] == 0


def test_content_depends_on_the_seed_and_not_on_the_workers(photos, tmp_path):
    def content(out, **options):
        options = {"long": "captions.0", "rows_per_shard": 7, **options}
        return import_pairs("pairs-jsonl", photos, tmp_path / out, **options).manifest.content_hash

    assert content("a", workers=1) == content("b", workers=2)
    assert content("a2", seed=1) != content("b2", seed=2)


def test_a_whole_list_of_captions(make, photos, tmp_path):
    import_pairs("pairs-jsonl", photos / "captions.jsonl", tmp_path / "out", raw="captions", limit_rows=8)
    rows = make.rows(tmp_path / "out")
    assert len(rows) == 8
    assert {tuple(c["source"] for c in row["captions"]) for row in rows} == {
        ("captions.0",),
        ("captions.0", "captions.1"),
    }


def test_where_and_name(make, photos, tmp_path):
    options = ImportOptions(long=("captions.0",), where=("split=val",), name="held-out")
    report = import_pairs("pairs-jsonl", photos, tmp_path / "out", options)
    assert sorted(json.loads(row["extra"])["n"] for row in make.rows(tmp_path / "out")) == [0, 4, 8, 12, 16, 20, 24]
    assert report.manifest.name == "held-out"
    assert report.manifest.source["where"] == ["split=val"]


def test_labels_become_classes(make, tmp_path):
    rows = []
    for n, label in enumerate(["rose", "daisy", "rose", "tulip", None]):
        (tmp_path / f"{n}.png").write_bytes(make.image(n, "PNG"))
        rows.append({"image": f"{n}.png", "label": label, "n": n, "alt": "a flower" if label is None else ""})
    make.write_list(tmp_path / "lists", rows, "flowers.jsonl")
    src = tmp_path / "lists" / "flowers.jsonl"
    report = import_pairs("pairs-jsonl", src, tmp_path / "out", images=tmp_path, label="label", raw="alt")
    assert report.manifest.classes == ("daisy", "rose", "tulip")
    assert report.manifest.tasks == ("retrieval", "classification")
    assert "{}" in report.manifest.prompts[0]
    labels = {json.loads(row["extra"])["n"]: row["label"] for row in make.rows(tmp_path / "out")}
    assert labels == {0: 1, 1: 0, 2: 1, 3: 2, 4: None}


def test_bad_rows_are_quarantined_with_their_reason(make, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, content in {
        "good.jpg": make.image(1),
        "cut.jpg": make.image(2)[:-8],  # its header is whole: only decoding can find the damage
        "empty.jpg": b"",
        "page.jpg": b"<html>not found</html>",
        "dumb.jpg": make.image(3),
    }.items():
        (folder / name).write_bytes(content)
    (tmp_path / "secret.jpg").write_bytes(make.image(4))
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "up").symlink_to(tmp_path)
    (folder / "inner.jpg").symlink_to(folder / "good.jpg")
    os.mkfifo(folder / "pipe.jpg")  # opening it would wait for ever
    text = {"alt": "a text"}
    make.write_list(folder, [
        {"image": "good.jpg", **text}, {"image": "cut.jpg", **text}, {"image": "inner.jpg", **text},
        {"image": "empty.jpg", **text}, {"image": "page.jpg", **text}, {"image": "missing.jpg", **text},
        {"image": "dumb.jpg", "alt": "  "}, {"image": "dumb.jpg"}, {"image": "link.jpg", **text},
        {"image": "up/secret.jpg", **text}, {"image": "../secret.jpg", **text}, {"image": "/etc/passwd", **text},
        {"image": "pipe.jpg", **text}, {"image": "a\0b.jpg", **text}, {"image": 7, **text}, text,
        b"{broken", b"[1]", b"",
    ])  # fmt: skip
    report = import_pairs("pairs-jsonl", folder, tmp_path / "out", raw="alt")
    assert sorted(row["key"] for row in make.rows(tmp_path / "out")) == ["cut.jpg", "good.jpg", "inner.jpg"]
    reasons = {}
    for entry in make.quarantined(tmp_path / "out"):
        reasons.setdefault(entry["reason"].partition(":")[0], []).append(entry["key"])
    outside = ["../secret.jpg", "/etc/passwd", "a\0b.jpg", "link.jpg", "up/secret.jpg"]
    assert sorted(reasons.pop("outside the image folder")) == outside
    assert {kind: len(keys) for kind, keys in reasons.items()} == {
        "not JSON": 2, "empty": 1, "not readable as an image": 1, "missing file": 1, "no text": 2, "not a file": 1,
        "no image": 2,
    }  # fmt: skip
    assert report.quarantined == report.manifest.source["quarantined"] == 15
    assert report.reasons == report.manifest.source["reasons"]


def test_lone_surrogates_do_not_stop_an_import(make, tmp_path):
    (tmp_path / "a.jpg").write_bytes(make.image(1))
    make.write_list(tmp_path, [b'{"image": "a.jpg", "alt": "bad \\ud800 text", "other": "\\udfff"}'])
    import_pairs("pairs-jsonl", tmp_path, tmp_path / "out", raw="alt")
    assert make.rows(tmp_path / "out")[0]["captions"][0]["text"] == "bad \N{REPLACEMENT CHARACTER} text"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"raw": "caption"},
            r"field 'caption'; did you mean 'captions'\? Valid: captions, captions.0, captions.1, credit",
        ),
        ({"raw": "captions.2"}, "field 'captions.2'; did you mean"),
        ({"raw": "captions", "where": "spilt=train"}, "field 'spilt'; did you mean 'split'"),
        ({"raw": "captions", "where": "split=trian"}, "split='trian'; did you mean 'train'"),
        ({"raw": "captions", "where": ("split=train", "n=4")}, "meets all of --where split=train n=4"),
        ({"raw": "captions", "where": "split"}, "expected FIELD=VALUE"),
        ({"raw": "captions", "label": "klass"}, "field 'klass'"),
        ({"raw": "captions", "limit_rows": 0}, "--limit-rows 0"),
        ({"raw": "captions", "images": "/nowhere/at/all"}, "No image folder at /nowhere/at/all"),
        ({}, "--raw FIELD"),
    ],
)
def test_mistakes_are_named(photos, tmp_path, options, message):
    with pytest.raises(CornerstoneError, match=message):
        import_pairs("pairs-jsonl", photos, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_sources_that_are_none(make, tmp_path):
    for src, message in ((tmp_path / "absent", "Nothing at"), (tmp_path, "has no captions.jsonl")):
        with pytest.raises(CornerstoneError, match=message):
            import_pairs("pairs-jsonl", src, tmp_path / "out", raw="alt")
    make.write_list(tmp_path, [{"image": "a.jpg"}], "docs.jsonl")
    with pytest.raises(CornerstoneError, match=r"It has docs\.jsonl: name one"):
        import_pairs("pairs-jsonl", tmp_path, tmp_path / "out", raw="alt")
    (tmp_path / "captions.jsonl").write_bytes(b"\n[]\n")
    with pytest.raises(CornerstoneError, match="no JSON object in any line"):
        import_pairs("pairs-jsonl", tmp_path, tmp_path / "out", raw="alt")
    with pytest.raises(CornerstoneError, match="did you mean 'pairs-jsonl'"):
        import_pairs("pairs-json", tmp_path, tmp_path / "out", raw="alt")


def test_nothing_usable_is_an_error_and_leaves_no_data_set(make, tmp_path):
    make.write_list(tmp_path / "src", [{"image": f"{n}.jpg", "alt": "text"} for n in range(3)])
    with pytest.raises(CornerstoneError, match=r"all 3 are quarantined \(3 × missing file"):
        import_pairs("pairs-jsonl", tmp_path / "src", tmp_path / "out", raw="alt")
    assert len(make.quarantined(tmp_path / "out")) == 3
    with pytest.raises(CornerstoneError):
        Manifest.read(str(tmp_path / "out"))


def test_images_that_arrive_later_are_found_by_the_same_command(make, tmp_path):
    make.write_list(tmp_path / "src", [{"image": f"{n}.jpg", "alt": "text"} for n in range(3)])
    for _ in range(2):
        with pytest.raises(CornerstoneError, match="all 3 are quarantined"):
            import_pairs("pairs-jsonl", tmp_path / "src", tmp_path / "out", raw="alt")
    for n in range(3):
        (tmp_path / "src" / f"{n}.jpg").write_bytes(make.image(n))
    assert import_pairs("pairs-jsonl", tmp_path / "src", tmp_path / "out", raw="alt").rows == 3


def test_a_finished_folder_is_refused_and_an_unfinished_one_is_not(make, photos, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "shard-00000.parquet").write_bytes(b"left by an interrupted import")
    first = import_pairs("pairs-jsonl", photos, out, long="captions.0").manifest
    assert len(make.rows(out)) == 25
    with pytest.raises(CornerstoneError, match="already holds a finished data set"):
        import_pairs("pairs-jsonl", photos, out, long="captions.0", seed=9)
    assert Manifest.read(str(out)) == first


def test_a_failing_task_leaves_no_manifest(tmp_path):
    from cornerstone.data.importers.core import ImportPlan, run_import
    from cornerstone.data.storage import Location

    class Failing:
        kind = "pairs"
        options = ImportOptions(raw=("txt",))

        def plan(self):
            return ImportPlan([0], order={}, source=())

        def read(self, task):
            raise OSError("no space left on device")
            yield

    with pytest.raises(CornerstoneError, match=r"is unfinished .*: OSError: no space left on device"):
        run_import("failing", Failing(), Location.of(tmp_path), Location.of(tmp_path / "out"), None)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_textbook_photographs(make, test_data, tmp_path):
    src = test_data / "openstax"
    if not src.is_dir():
        pytest.skip(f"no {src}")
    fields = {"long": "captions.0", "raw": "captions.1"}
    train = import_pairs("pairs-jsonl", src, tmp_path / "train", where="split=train", **fields)
    val = import_pairs("pairs-jsonl", src, tmp_path / "val", where="split=val", **fields)
    assert (train.rows + val.rows, val.rows, train.quarantined + val.quarantined) == (770, 87, 0)
    listed = {row["image"]: row for row in map(json.loads, (src / "captions.jsonl").open())}
    for row in make.rows(tmp_path / "val"):
        source = listed[row["key"]]
        assert row["image"] == (src / row["key"]).read_bytes()
        assert (row["width"], row["height"]) == (source["width"], source["height"])
        roles = {caption["role"]: caption["text"] for caption in row["captions"]}
        expected = dict(zip(("long", "raw"), (text.strip() for text in source["captions"]), strict=False))
        assert roles == {role: text for role, text in expected.items() if text}


def test_human_captions(make, test_data, tmp_path):
    src = test_data / "coco"
    if not src.is_dir():
        pytest.skip(f"no {src}")
    report = import_pairs("pairs-jsonl", src, tmp_path / "out", raw="captions")
    assert report.rows == 111
    counts = np.array([len(row["captions"]) for row in make.rows(tmp_path / "out")])
    assert (counts == 5).all()
    assert report.captions == {"raw": 555}
