"""Layouts that people really write: members of tars, columns of Parquet, and lists of another download."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cornerstone.data.importers import ImportOptions, check, core, import_pairs
from cornerstone.errors import CornerstoneError


@pytest.fixture
def read(tmp_path):
    """Rows, quarantined records and the plan of an import, without Ray."""

    def imported(format, source, **options):
        reader = check(format, source, tmp_path / "out", ImportOptions(**options))
        plan, outcome = reader.plan(), core._Outcome()
        found = [r for t in plan.tasks for r in core._records(reader.read(t), reader.options, plan.classes, outcome)]
        return found, [*plan.quarantined, *outcome.quarantined], plan

    return imported


def texts(rows):
    return sorted(caption.text for row in rows for caption in row.captions)


def test_classes_stand_beside_the_tars(make, tmp_path, read):
    members = [part for n in range(8) for part in ((f"s{n}.cls", f"{n % 3}\n".encode()), (f"s{n}.webp", make.image(n)))]
    make.write_tar(tmp_path / "set" / "test" / "0.tar", [*members, ("s9.cls", b"7"), ("s9.webp", make.image(9))])
    (tmp_path / "set" / "classnames.txt").write_text("pond\ncrane\ncrane\n")  # ImageNet has names that occur twice
    (tmp_path / "set" / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\na map of a {c}.\n")
    rows, refused, plan = read("webdataset", tmp_path / "set" / "test")
    assert plan.classes == ("pond", "crane", "crane")
    assert plan.prompts == ("a photo of a {}.", "a map of a {}.")
    assert sorted((row.image, row.label) for row in rows) == sorted((make.image(n), n % 3) for n in range(8))
    assert [one.reason for one in refused] == ["no such class: .cls is '7', there are 3"]


def test_lines_are_captions_only_of_raw_texts(make, tmp_path, read):
    members = [("a.jpg", make.image(1)), ("a.txt", b"one\n\ntwo\n"), ("a.long.txt", b"First line.\nSecond line.")]
    tar = make.write_tar(tmp_path / "a.tar", members)
    rows, _, _ = read("webdataset", tar, raw="txt", long="long.txt")
    assert texts(rows) == ["First line.\nSecond line.", "one", "two"]


@pytest.mark.parametrize("order", ["images first", "metadata last", "mixed"])
def test_members_of_a_sample_may_be_scattered(make, tmp_path, read, order):
    images = [(f"p/{n}.jpg", make.image(n)) for n in range(6)]
    captions = [(f"p/{n}.txt", f"text {n}".encode()) for n in range(6)]
    extra = [(f"p/{n}.json", json.dumps({"url": n}).encode()) for n in range(6)]
    members = {
        "images first": images + captions + extra,
        "metadata last": captions + images + extra,
        "mixed": [images[0], captions[0], extra[0], captions[3], images[5], captions[1], images[3], images[1],
                  captions[5], extra[1], extra[3], images[2], captions[4], extra[5], images[4], captions[2],
                  extra[2], extra[4]],
    }[order]  # fmt: skip
    rows, refused, _ = read("webdataset", make.write_tar(tmp_path / "a.tar", members))
    assert sorted((row.image, row.captions[0].text, json.loads(row.extra)["url"]) for row in rows) == sorted(
        (make.image(n), f"text {n}", n) for n in range(6)
    )
    assert refused == []


def test_what_comes_too_late_is_named(make, tmp_path, read):
    members = [*make.samples(range(3)), ("000001.json", b"{}")]
    rows, refused, _ = read("webdataset", make.write_tar(tmp_path / "a.tar", members))
    assert len(rows) == 3
    assert ["tar --sort=name" in one.reason for one in refused] == [True]


def test_keys_may_have_dots(make, tmp_path, read):
    days = ["2023.05.10", "2023.05.11", "2023.06.01"]
    members = [
        part for n, day in enumerate(days) for part in ((f"{day}.jpg", make.image(n)), (f"{day}.txt", day.encode()))
    ]
    rows, refused, _ = read("webdataset", make.write_tar(tmp_path / "a.tar", members))
    assert texts(rows) == days
    assert refused == []


def test_an_ending_of_several_parts_is_an_image_if_it_is_the_only_one(make, tmp_path, read):
    members = [
        part
        for n in range(3)
        for part in ((f"{n}.input.jpg", make.image(n)), (f"{n}.outputs.txt", f"text {n}".encode()))
    ]
    rows, _, _ = read("webdataset", make.write_tar(tmp_path / "a.tar", members), raw="outputs.txt")
    assert texts(rows) == ["text 0", "text 1", "text 2"]
    with pytest.raises(CornerstoneError, match=r"has a field 'txt'. Valid: outputs.txt"):
        read("webdataset", tmp_path / "a.tar")
    both = [(f"{n}.{kind}.jpg", make.image(n)) for n in range(3) for kind in ("input", "edited")]
    tar = make.write_tar(tmp_path / "b.tar", [*both, *((f"{n}.txt", b"x") for n in range(3))])
    with pytest.raises(CornerstoneError, match=r"several images \(.edited.jpg, .input.jpg\): choose one with --image"):
        read("webdataset", tar)
    assert len(read("webdataset", tar, image="input.jpg")[0]) == 3


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def parquet(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path.parent


def pictures(make, numbers):
    return pa.array([{"bytes": make.image(n), "path": None} for n in numbers], IMAGE)


def test_a_column_of_splits_goes_before_the_name_of_the_file(make, tmp_path, read):
    splits = ["train", "val", "train", "test"]
    for part in range(2):
        numbers = range(4 * part, 4 * part + 4)
        folder = parquet(
            tmp_path / "data" / f"test-0000{part}-of-00002.parquet",
            image=pictures(make, numbers),
            caption=pa.array([[f"c{n}", f"d{n}"] for n in numbers], pa.large_list(pa.large_string())),
            split=pa.array(splits, pa.large_string()).dictionary_encode(),
        )
    rows, _, _ = read("hf-parquet", folder, where="split=train")
    assert texts(rows) == ["c0", "c2", "c4", "c6", "d0", "d2", "d4", "d6"]
    assert len(read("hf-parquet", folder, where="split=test")[0]) == 2


def test_images_may_stand_in_lists_of_one(make, tmp_path, read):
    one, two = ([{"bytes": make.image(n), "path": None} for n in range(k)] for k in (1, 2))
    folder = parquet(tmp_path / "a" / "x.parquet", images=pa.array([one, two, []], pa.list_(IMAGE)), text=list("abc"))
    rows, refused, _ = read("hf-parquet", folder)
    assert texts(rows) == ["a"]
    assert {one.reason.partition(":")[0] for one in refused} == {"several images", "no image"}


def test_of_several_images_the_one_named_so_is_taken_and_no_other_is_kept(make, tmp_path, read):
    numbers = {"conditioning_image": [8, 9], "image": [0, 1]}
    columns = {name: pictures(make, chosen) for name, chosen in numbers.items()}
    folder = parquet(tmp_path / "a" / "x.parquet", **columns, text=["a", "b"])
    rows, _, _ = read("hf-parquet", folder)
    assert {row.image for row in rows} == {make.image(0), make.image(1)}
    assert all(len(row.extra or "") < 100 for row in rows)
    assert {row.image for row in read("hf-parquet", folder, image="conditioning_image")[0]} == {
        make.image(8),
        make.image(9),
    }
    other = parquet(tmp_path / "b" / "x.parquet", before=pictures(make, [0]), after=pictures(make, [1]), text=["a"])
    with pytest.raises(CornerstoneError, match=r"several image columns \(before, after\): choose one with --image"):
        read("hf-parquet", other)


@pytest.mark.ray
def test_files_that_could_not_be_read_are_reported_by_name(ray_cluster, make, tmp_path):
    folder = parquet(tmp_path / "in" / "photos.parquet", image=pictures(make, range(3)), text=list("abc"))
    parquet(tmp_path / "in" / "vectors.parquet", text=["x"], vector=[[0.5]])
    report = import_pairs("hf-parquet", folder, tmp_path / "out")
    assert report.rows == 3
    assert report.damaged == ("vectors.parquet: another schema: no column image, unlike photos.parquet; left out",)


THINGS = ("a lighthouse", "two donkeys", "an iron bridge", "a bowl of plums", "the old tram", "three kites")


@pytest.fixture
def downloaded(make, tmp_path, ray_cluster):
    """A data set that img2dataset downloaded: keys by number, raw captions, URLs."""
    members = []
    for n, thing in enumerate(THINGS):
        meta = {"url": f"http://x/{7 * n}.jpg", "caption": thing, "status": "success"}
        key = f"{n:09d}"
        members += [(f"{key}.jpg", make.image(n)), (f"{key}.txt", thing.encode())]
        members.append((f"{key}.json", json.dumps(meta).encode()))
    make.write_tar(tmp_path / "tars" / "00000.tar", members)
    import_pairs("img2dataset", tmp_path / "tars", tmp_path / "images")
    return tmp_path / "images"


@pytest.mark.ray
def test_a_list_of_another_download_is_refused_and_one_by_url_is_joined(downloaded, tmp_path, read):
    def table(name, keys, things):
        lines = [
            "image,raw_caption,longIB_captions",
            *(f"{k},{t},{t} long." for k, t in zip(keys, things, strict=True)),
        ]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        return tmp_path / name

    shifted = [*THINGS[3:], *THINGS[:3]]
    wrong = table("by_path.csv", [f"00000/{n:09d}.jpg" for n in range(6)], shifted)
    with pytest.raises(CornerstoneError, match=r"another download: of 6 joined rows .* only 0 agree .*--trust-keys"):
        read("dreamlip-csv", wrong, images=str(downloaded))
    assert len(read("dreamlip-csv", wrong, images=str(downloaded), trust_keys=True)[0]) == 6
    right = table("by_url.csv", [f"http://x/{7 * n}.jpg" for n in range(6)], THINGS)
    rows, _, _ = read("dreamlip-csv", right, images=str(downloaded))
    assert sorted(texts(rows))[:2] == ["a bowl of plums", "a bowl of plums long."]


def test_options_that_a_format_does_not_know_are_refused(make, tmp_path, read):
    tar = make.write_tar(tmp_path / "a.tar", make.samples(range(2)))
    with pytest.raises(CornerstoneError, match=r"--follow-links has no effect on webdataset"):
        read("webdataset", tar, follow_links=True)
    with pytest.raises(CornerstoneError, match=r"--trust-keys has no effect on webdataset"):
        read("webdataset", tar, trust_keys=True)
