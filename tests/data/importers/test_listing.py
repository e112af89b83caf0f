"""Lists beside image folders: each format's own shape, what it takes unasked, and what it refuses."""

from __future__ import annotations

import csv
import json

import pytest

from cornerstone.data.importers import FORMATS, ImportOptions, import_pairs
from cornerstone.data.importers.core import Quarantined, Sample, as_pair
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError


@pytest.fixture
def photos(make, tmp_path):
    """Writes numbered pictures under the names given."""

    def write(*names):
        for number, name in enumerate(names):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(make.image(number))
        return tmp_path

    return write


def dump(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def read(format, src, **options):
    """Pairs by key and refusals, without Ray; sent to the tasks as Ray would."""
    import pickle

    source = FORMATS[format](Location.of(src), ImportOptions(**options))
    plan = source.plan()
    sent = pickle.loads(pickle.dumps(source))
    found = [record for task in plan.tasks for record in sent.read(task)]
    pairs = [as_pair(record, source.options, plan.classes) for record in found if isinstance(record, Sample)]
    return {pair.key: pair for pair in pairs}, {r.key: r.reason for r in found if isinstance(r, Quarantined)}


def texts(pair):
    return [(caption.role, caption.text) for caption in pair.captions]


def test_coco(make, photos):
    folder = photos("a.jpg", "b.jpg")
    found = dump(
        folder / "captions_val.json",
        {
            "images": [
                {"id": 7, "file_name": "a.jpg"},
                {"id": 9, "file_name": "b.jpg"},
                {"id": 3, "file_name": "c.jpg"},
            ],
            "annotations": [{"image_id": i, "id": n, "caption": f"{i} {n}"} for n, i in enumerate([7, 9, 7, 3])],
        },
    )
    pairs, refused = read("coco", found)
    assert {key: texts(pair) for key, pair in pairs.items()} == {
        "a.jpg": [("raw", "7 0"), ("raw", "7 2")],
        "b.jpg": [("raw", "9 1")],
    }
    assert pairs["b.jpg"].image == make.image(1)
    assert list(refused) == ["c.jpg"]
    assert refused["c.jpg"].startswith("missing file")


def test_karpathy_by_split(photos):
    folder = photos("val2014/a.jpg", "b.jpg")
    images = [
        {"filepath": "val2014", "filename": "a.jpg", "split": "test", "sentences": [{"raw": "one"}, {"raw": "two"}]},
        {"filename": "b.jpg", "split": "train", "sentences": [{"raw": "three"}]},
    ]
    found = dump(folder / "dataset_coco.json", {"images": images})
    assert {k: texts(p) for k, p in read("karpathy", found)[0].items()} == {
        "val2014/a.jpg": [("raw", "one"), ("raw", "two")],
        "b.jpg": [("raw", "three")],
    }
    assert list(read("karpathy", found, where="split=test")[0]) == ["val2014/a.jpg"]
    with pytest.raises(CornerstoneError, match=r"has split='tset'.*did you mean 'test'"):
        read("karpathy", found, where="split=tset")


def test_flickr30k_both_ways(photos):
    folder = photos("images/1.jpg", "images/2.jpg")
    lines = "1.jpg#0\tA dog .\n1.jpg#1\tIt runs, fast.\n2.jpg#0\tA cat .\n"
    expected = {"1.jpg": [("raw", "A dog ."), ("raw", "It runs, fast.")], "2.jpg": [("raw", "A cat .")]}
    pairs, _ = read("flickr30k", dump(folder / "results.token", lines), images=str(folder / "images"))
    assert {k: texts(p) for k, p in pairs.items()} == expected
    with (folder / "flickr.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["raw", "split", "filename"])
        writer.writerow([json.dumps(["A dog .", "It runs, fast."]), "test", "1.jpg"])
        writer.writerow([json.dumps(["A cat ." + " and" * 300_000]), "train", "2.jpg"])  # 1.2 MB
    pairs, _ = read("flickr30k", folder / "flickr.csv", images=str(folder / "images"))
    assert texts(pairs["1.jpg"]) == expected["1.jpg"]
    assert len(pairs["2.jpg"].captions[0].text) > 1_000_000
    with pytest.raises(CornerstoneError, match=r"line 2: expected `name.jpg#0⇥caption`"):
        read("flickr30k", dump(folder / "bad.token", "1.jpg#0\tx\nno tab here\n"))


def test_dci(photos):
    folder = photos("densely_captioned_images/photos/sa_1.jpg", "densely_captioned_images/photos/sa_2.jpg")
    root = folder / "densely_captioned_images"
    dump(root / "splits.json", {"test": ["sa_1.json"], "train": ["sa_2"]})
    for n in (1, 2):
        dump(
            root / f"annotations/sa_{n}.json", {"image": f"sa_{n}.jpg", "short_caption": f"S{n}", "extra_caption": "E"}
        )
    for src in (folder, root):
        pairs, _ = read("dci", src)
        assert texts(pairs["sa_2.jpg"]) == [("raw", "S2"), ("long", "S2\nE")]
    assert list(read("dci", root, where="split=test")[0]) == ["sa_1.jpg"]


def test_iiw_names_images_in_three_ways(photos):
    folder = photos("aar_1.jpg", "docci.jpg", "sa_3.jpg")
    rows = [{"IIW": "x", "image/key": "aar_1"}, {"IIW": "y", "image": "docci"}, {"IIW": "z", "image": "sa_3.jpg"}]
    dump(folder / "data.jsonl", "\n".join(map(json.dumps, rows)))
    pairs, _ = read("iiw", folder)
    assert {k: texts(p) for k, p in pairs.items()} == {
        "aar_1.jpg": [("long", "x")],
        "docci.jpg": [("long", "y")],
        "sa_3.jpg": [("long", "z")],
    }


def test_real_iiw_texts_are_listed(test_data):
    source = FORMATS["iiw"](Location.of(test_data / "iiw_text" / "IIW-400.jsonl"), ImportOptions())
    plan = source.plan()
    assert sum(map(len, plan.tasks)) == 400
    assert all(name.endswith(".jpg") and row["IIW"] for task in plan.tasks for _, name, row in task)


def test_sharegpt4v(photos):
    folder = photos("sam/a.jpg")
    turns = [{"from": "human", "value": "<image>\nDescribe"}, {"from": "gpt", "value": "A long text."}]
    found = dump(folder / "share.json", [{"id": "1", "image": "sam/a.jpg", "conversations": turns}] * 2)
    pairs, _ = read("sharegpt4v", found)
    assert list(pairs) in (["sam/a.jpg", "sam/a.jpg#1"], ["sam/a.jpg#1", "sam/a.jpg"])
    assert all(texts(pair) == [("long", "A long text.")] for pair in pairs.values())


def test_urban1k_takes_the_first_line(photos):
    folder = photos("image/1.jpg", "image/2.jpg")
    dump(folder / "caption/1.txt", "First.\nSecond.")
    dump(folder / "caption/2.txt", "Only.")
    assert {k: texts(p) for k, p in read("urban1k", folder)[0].items()} == {
        "1.jpg": [("long", "First.")],
        "2.jpg": [("long", "Only.")],
    }


@pytest.mark.usefixtures("ray_cluster")
def test_imagefolder_whole_import(make, photos, tmp_path):
    folder = photos("val/n02/x.JPEG", "val/n01/y.JPEG", "train/n01/z.JPEG")
    (folder / "val/n01/torn.JPEG").write_bytes(b"")
    report = import_pairs("imagefolder", folder, tmp_path / "out", where="split=val")
    assert report.manifest.classes == ("n01", "n02")
    assert report.manifest.tasks == ("classification",)
    assert {row["key"]: row["label"] for row in make.rows(tmp_path / "out")} == {
        "val/n02/x.JPEG": 1,
        "val/n01/y.JPEG": 0,
    }
    assert [line["key"] for line in make.quarantined(tmp_path / "out")] == ["val/n01/torn.JPEG"]
    with pytest.raises(CornerstoneError, match=r"expected \[split/\]class/name"):
        read("imagefolder", photos("deep/er/val/n01/q.jpg"))


def test_a_number_is_a_class_too_and_the_first_entries_are_enough(photos):
    folder = photos("0.jpg", "1.jpg", "2.jpg")
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "a text"}]
    dump(folder / "list.json", [{"id": n, "image": f"{n}.jpg", "conversations": turns} for n in range(3)])
    source = FORMATS["sharegpt4v"](Location.of(folder / "list.json"), ImportOptions(label="id", long=("caption",)))
    assert source.plan().classes == ("0", "1", "2")
    pairs, _ = read("sharegpt4v", folder / "list.json", first=2)
    assert sorted(pairs) == ["0.jpg", "1.jpg"]


def test_other_line_ends_of_unicode_stand_inside_texts(photos):
    folder = photos("a.jpg")
    text = "first\u2028second\u0085third"
    dump(folder / "data.jsonl", json.dumps({"image/key": "a", "IIW": text}, ensure_ascii=False) + "\n")
    pairs, _ = read("iiw", folder / "data.jsonl")
    assert pairs["a.jpg"].captions[0].text == text


def test_classes_by_their_names(make, photos, tmp_path):
    for folder, n in (("n01440764", 0), ("n01443537", 1)):
        (tmp_path / "net" / folder).mkdir(parents=True)
        (tmp_path / "net" / folder / "a.JPEG").write_bytes(make.image(n))
    (tmp_path / "words.txt").write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish\n")
    (tmp_path / "words.json").write_text('{"n01440764": "tench", "n01443537": "goldfish"}')
    for file, expected in (("words.txt", ("goldfish", "tench, Tinca tinca")), ("words.json", ("goldfish", "tench"))):
        options = ImportOptions(class_names=str(tmp_path / file))
        assert FORMATS["imagefolder"](Location.of(tmp_path / "net"), options).plan().classes == expected
    (tmp_path / "words.txt").write_text("n01440764 crane\nn01443537 crane\n")
    with pytest.raises(
        CornerstoneError, match="gives 'n01440764' and 'n01443537' the same name 'crane': give each class"
    ):
        FORMATS["imagefolder"](
            Location.of(tmp_path / "net"), ImportOptions(class_names=str(tmp_path / "words.txt"))
        ).plan()
    (tmp_path / "words.txt").write_text("n01440764 tench\n")
    with pytest.raises(CornerstoneError, match="no name for the class 'n01443537'"):
        FORMATS["imagefolder"](
            Location.of(tmp_path / "net"), ImportOptions(class_names=str(tmp_path / "words.txt"))
        ).plan()


def test_another_shape_is_refused(photos, tmp_path):
    folder = photos("a.jpg")
    with pytest.raises(CornerstoneError, match=r"expected images and annotations, found posts"):
        read("coco", dump(folder / "x.json", {"posts": []}))
    with pytest.raises(CornerstoneError, match=r"not JSON"):
        read("coco", dump(folder / "y.json", "{"))
    with pytest.raises(CornerstoneError, match=r"no entry of entries has 'conversations'"):
        read("sharegpt4v", dump(folder / "z.json", [{"image": "a.jpg"}]))
    with pytest.raises(CornerstoneError, match=r"No file at"):
        read("karpathy", folder / "nowhere.json")
    with pytest.raises(CornerstoneError, match=r"lists no image"):
        read("urban1k", tmp_path / "empty")


def test_nothing_outside_the_folder_is_read(photos, tmp_path):
    folder = photos("in/a.jpg", "secret.jpg")
    (folder / "in" / "link.jpg").symlink_to(folder / "secret.jpg")
    names = ["a.jpg", "../secret.jpg", "link.jpg", "/etc/hostname", "nul\0.jpg"]
    images = [{"id": n, "file_name": name} for n, name in enumerate(names)]
    notes = [{"image_id": n, "caption": "x"} for n in range(len(names))]
    pairs, refused = read("coco", dump(folder / "in" / "c.json", {"images": images, "annotations": notes}))
    assert list(pairs) == ["a.jpg"]
    assert len(refused) == 4
    assert all(reason.startswith("outside the image folder") for reason in refused.values())


def test_order_belongs_to_the_seed(photos):
    folder = photos(*(f"image/{n}.jpg" for n in range(12)))
    for n in range(12):
        dump(folder / f"caption/{n}.txt", str(n))
    order = {seed: list(read("urban1k", folder, seed=seed)[0]) for seed in (0, 1)}
    assert order[0] == list(read("urban1k", folder, seed=0)[0])
    assert order[0] != order[1]
    assert sorted(order[0]) == sorted(order[1])
    assert list(read("urban1k", folder, limit_rows=5)[0]) == order[0][:5]
