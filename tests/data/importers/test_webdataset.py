"""`webdataset`: tars of all kinds, whole and damaged."""

from __future__ import annotations

import json
import os
import tarfile

import pytest

from cornerstone.data.importers import files, import_pairs, webdataset
from cornerstone.data.importers.core import run_import
from cornerstone.data.importers.files import braces, find_files
from cornerstone.data.manifest import Manifest
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError

pytestmark = pytest.mark.usefixtures("ray_cluster")


def numbers(rows):
    return [int(row["key"].rpartition("/")[2]) for row in rows]


@pytest.fixture
def tars(make, tmp_path):
    for t in range(3):
        make.write_tar(tmp_path / "tars" / f"{t:05d}.tar", make.samples(range(t * 10, t * 10 + 10)))
    return tmp_path / "tars"


def test_rows_arrive_once(make, tars, tmp_path):
    report = import_pairs("webdataset", tars, tmp_path / "out", rows_per_shard=4, seed=1)
    rows = make.rows(tmp_path / "out")
    assert sorted(numbers(rows)) == list(range(30))
    for row, n in zip(rows, numbers(rows), strict=True):
        assert row["image"] == make.image(n)
        assert row["key"] == f"{n // 10:05d}/{n:06d}"
        assert [(c["source"], c["role"], c["text"]) for c in row["captions"]] == [("txt", "raw", f"caption {n}")]
    assert [shard.rows for shard in report.manifest.shards] == [4, 4, 4, 4, 4, 4, 2, 2, 2]
    assert report.manifest.source["order"] == {"tars": "permuted", "shuffle_buffer": 1000, "seed": 1}
    inside = [n for n in numbers(rows) if n < 10]
    assert inside != sorted(inside)


def test_content_depends_on_the_seed_and_not_on_the_workers(tars, tmp_path):
    def content(out, **options):
        return import_pairs("webdataset", tars, tmp_path / out, **options).manifest.content_hash

    assert content("a", workers=1) == content("b", workers=2)
    assert content("c", seed=1) != content("d", seed=2)


@pytest.fixture
def interrupted(tars, tmp_path):
    """An import to `out` that stops in its last tar, in four rows a shard."""

    class Stumbling:
        kind = "pairs"

        def __init__(self):
            self.source = webdataset.WebDataset(
                Location.of(tars), webdataset.ImportOptions(rows_per_shard=4, workers=1)
            )
            self.options, self.last = self.source.options, self.source.plan().tasks[-1]

        def plan(self):
            return self.source.plan()

        def read(self, task):
            if task == self.last:
                raise OSError("the store is away")
            return self.source.read(task)

    with pytest.raises(CornerstoneError, match=r"run the same command again to resume.*the store is away"):
        run_import("webdataset", Stumbling(), Location.of(tars), Location.of(tmp_path / "out"), None)
    with pytest.raises(CornerstoneError, match="is unfinished: it is being written, or the writing was interrupted"):
        Manifest.read(str(tmp_path / "out"))
    return tmp_path / "out"


def test_an_interrupted_import_goes_on_after_its_finished_tars(interrupted, tars, tmp_path):
    kept = {path: path.stat().st_mtime_ns for path in interrupted.glob("*.parquet")}
    assert len(kept) == 6
    report = import_pairs("webdataset", tars, interrupted, rows_per_shard=4, workers=2)
    assert (report.kept, report.rows, report.captions) == (2, 30, {"raw": 30})
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    whole = import_pairs("webdataset", tars, tmp_path / "whole", rows_per_shard=4)
    assert (whole.kept, whole.manifest.shards) == (0, report.manifest.shards)
    assert sorted(os.listdir(interrupted)) == sorted(os.listdir(tmp_path / "whole"))


@pytest.mark.parametrize("changed", ["seed", "a tar", "all tars", "shard"])
def test_what_was_made_otherwise_is_made_anew(interrupted, tars, tmp_path, changed):
    options = {"rows_per_shard": 4, "seed": 9 if changed == "seed" else 0}
    first, *others = webdataset.WebDataset(Location.of(tars), webdataset.ImportOptions()).plan().tasks
    for ((_, tar),) in {"a tar": [first], "all tars": [first, *others]}.get(changed, []):
        os.utime(tar.uri, (1, 1))
    if changed == "shard":
        next(interrupted.glob("*.parquet")).write_bytes(b"PAR1 half")
    report = import_pairs("webdataset", tars, interrupted, **options)
    assert report.kept == (1 if changed in ("shard", "a tar") else 0)  # of the two that were finished
    assert report.manifest.shards == import_pairs("webdataset", tars, tmp_path / "whole", **options).manifest.shards


def test_limited_rows_come_from_the_first_tars(make, tars, tmp_path):
    import_pairs("webdataset", tars, tmp_path / "out", limit_rows=14)
    found = numbers(make.rows(tmp_path / "out"))
    assert len(set(found)) == 14
    assert len({n // 10 for n in found}) == 2


def test_a_window_keeps_every_sample_once(make, tars, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SHUFFLE_BUFFER", 4)
    source = webdataset.WebDataset(Location.of(tars / "00001.tar"), webdataset.ImportOptions(seed=5))
    keys = [sample.key for sample in source.read(source.plan().tasks[0])]
    order = [int(key[-2:]) for key in keys]
    assert sorted(order) == list(range(10, 20))
    assert order != sorted(order)
    assert all(n - 10 <= place + 4 for place, n in enumerate(order))  # nothing leaves before it has been read
    assert keys == [sample.key for sample in source.read(source.plan().tasks[0])]


def test_fields_of_text_and_json_parts(make, tmp_path):
    members = []
    for n in range(4):
        meta = {
            "caption": f"raw {n}",
            "long": [f"one {n}", f"two {n}"],
            "status": "success" if n else "failed",
            "url": "u",
        }
        members += [(f"./a.b/{n}.JPG", make.image(n)), (f"./a.b/{n}.json", json.dumps(meta).encode())]
        members += [
            (f"./a.b/{n}.sv.txt", f"\ufeffsv {n}".encode()),
            (f"./a.b/{n}.bin", bytes(9)),
            ("./a.b/.hidden.jpg", b""),
        ]
    src = make.write_tar(tmp_path / "x.tar.gz", members, "w:gz")
    import_pairs("webdataset", src, tmp_path / "out", raw="caption", long=("long.1", "sv.txt"), where="status=success")
    rows = make.rows(tmp_path / "out")
    assert sorted(row["key"] for row in rows) == ["x/a.b/1", "x/a.b/2", "x/a.b/3"]
    n = rows[0]["key"][-1]
    assert [(c["source"], c["role"], c["text"]) for c in rows[0]["captions"]] == [
        ("caption", "raw", f"raw {n}"), ("long.1", "long", f"two {n}"), ("sv.txt", "long", f"sv {n}"),
    ]  # fmt: skip
    assert json.loads(rows[0]["extra"]) == {"status": "success", "url": "u"}


def link(name, target, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_bad_entries_are_quarantined(make, tmp_path):
    src = make.write_tar(tmp_path / "bad.tar", [
        *make.samples([1]),
        ("2.txt", b"no picture"), ("3.jpg", make.image(3)), ("4.jpg", make.image(4)), ("4.txt", b" \n"),
        ("5.jpg", b""), ("5.txt", b"empty picture"), ("6.jpg", make.image(6)), ("6.json", b"{broken"),
        ("../7.jpg", make.image(7)), ("/etc/8.jpg", make.image(8)),
        link("9.jpg", "/etc/passwd", tarfile.SYMTYPE), ("9.txt", b"a link"),
        link("10.jpg", "000001.jpg", tarfile.LNKTYPE), link("11.jpg", "", tarfile.FIFOTYPE),
        link("folder", "", tarfile.DIRTYPE), *make.samples([12]),
    ])  # fmt: skip
    report = import_pairs("webdataset", src, tmp_path / "out")
    assert sorted(numbers(make.rows(tmp_path / "out"))) == [1, 12]
    reasons = {entry["key"]: entry["reason"].partition(":")[0] for entry in make.quarantined(tmp_path / "out")}
    assert reasons == {
        "bad/2": "no image", "bad/3": "no text", "bad/4": "no text", "bad/5": "empty", "bad/6": "not JSON",
        "bad/../7.jpg": "outside the folder", "bad//etc/8.jpg": "outside the folder", "bad/9.jpg": "not a file",
        "bad/9": "no image", "bad/10.jpg": "not a file", "bad/11.jpg": "not a file",
    }  # fmt: skip
    assert report.quarantined == len(reasons)


def test_a_part_that_comes_twice_is_told_and_the_first_one_stays(make, tmp_path):
    members = [*make.samples([1]), ("000001.jpg", make.image(9)), ("000001.txt", b"another"), *make.samples([2, 1])]
    import_pairs("webdataset", make.write_tar(tmp_path / "twice.tar", members), tmp_path / "out")
    rows = make.rows(tmp_path / "out")
    assert sorted(numbers(rows)) == [1, 1, 2]  # two samples of one name are two rows
    assert {row["image"] for row in rows} == {make.image(1), make.image(2)}
    assert [(e["key"], e["reason"].partition(":")[0]) for e in make.quarantined(tmp_path / "out")] == [
        ("twice/000001.jpg", "duplicate"),
        ("twice/000001.txt", "duplicate"),
    ]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_cut_tar_gives_what_lies_before_the_cut(make, tmp_path, mode):
    whole = make.write_tar(tmp_path / "whole.tar", make.samples(range(30)), mode).read_bytes()
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "cut.tar").write_bytes(whole[: len(whole) // 2 + 100])
    make.write_tar(tmp_path / "tars" / "fine.tar", make.samples(range(100, 103)))
    (tmp_path / "tars" / "empty.tar").write_bytes(b"")
    (tmp_path / "tars" / "page.tar").write_bytes(b"<html>" * 300)
    import_pairs("webdataset", tmp_path / "tars", tmp_path / "out")
    found = sorted(numbers(make.rows(tmp_path / "out")))
    assert found[-3:] == [100, 101, 102]
    assert found[:-3] == list(range(len(found) - 3))
    assert 5 < len(found) - 3 < 25
    reasons = {entry["key"]: entry["reason"] for entry in make.quarantined(tmp_path / "out")}
    assert set(reasons) == {"cut.tar", "empty.tar", "page.tar"}
    read = len(found) - 3
    lost = (f"rows from {read:06d} on are lost", f"rows after {read - 1:06d} are lost")
    assert any(f"damaged tar: {read} samples could be read, {text}" in reasons["cut.tar"] for text in lost)


def test_unknown_fields_are_refused_before_the_work(make, tars, tmp_path):
    for options, message in (
        ({"raw": "text"}, "None of the first 30 samples of .*has a field 'text'; did you mean 'txt'"),
        ({"where": "status=success"}, "has a field 'status'"),
        ({"label": "cls"}, "--label"),
        ({"images": "x"}, "--images has no effect"),
    ):
        with pytest.raises(CornerstoneError, match=message):
            import_pairs("webdataset", tars, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_only_damage_is_an_error(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"x" * 2000)
    with pytest.raises(CornerstoneError, match=r"all 1 are quarantined \(1 × damaged tar"):
        import_pairs("webdataset", tmp_path / "a.tar", tmp_path / "out")


def test_braces():
    assert braces("a/{008..011}.tar") == ["a/008.tar", "a/009.tar", "a/010.tar", "a/011.tar"]
    assert braces("{train,val}-{0..1}.tar") == ["train-0.tar", "train-1.tar", "val-0.tar", "val-1.tar"]
    assert braces("plain.tar") == ["plain.tar"]


def test_tars_by_name_folder_glob_and_braces(tars):
    def found(pattern):
        return [tar.uri.rpartition("/")[2] for tar in find_files(Location.of(pattern), (".tar",), "tar")]

    everything = ["00000.tar", "00001.tar", "00002.tar"]
    assert found(tars) == found(tars / "*.tar") == found(f"{tars}/{{00000..00002}}.tar") == everything
    assert found(tars / "0000[12].tar") == everything[1:]
    assert found(tars / "00001.tar") == everything[1:2]
    for pattern, message in (("{00002..00003}.tar", "No tar at"), ("*.zip", "No tar in"), ("absent", "Nothing at")):
        with pytest.raises(CornerstoneError, match=message):
            found(tars / pattern)


def test_human_captions_through_tars(make, test_data, tmp_path):
    folder = test_data / "coco"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    listed = list(map(json.loads, (folder / "captions.jsonl").open()))
    for start in range(0, len(listed), 40):
        members = []
        for row in listed[start : start + 40]:
            stem = row["image"].removeprefix("images/").removesuffix(".jpg")
            members += [
                (f"{stem}.jpg", (folder / row["image"]).read_bytes()),
                (f"{stem}.json", json.dumps(row).encode()),
            ]
        make.write_tar(tmp_path / "tars" / f"{start:05d}.tar", members)
    report = import_pairs("webdataset", tmp_path / "tars", tmp_path / "out", raw="captions")
    assert (report.rows, report.quarantined, report.captions) == (111, 0, {"raw": 555})
    by_name = {row["coco_id"]: row for row in listed}
    for row in make.rows(tmp_path / "out"):
        source = by_name[int(row["key"].rpartition("/")[2])]
        assert [c["text"] for c in row["captions"]] == [text.strip() for text in source["captions"]]
        assert row["image"] == (folder / source["image"]).read_bytes()
