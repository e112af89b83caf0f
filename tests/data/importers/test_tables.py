"""Tables of text, and Parquet or folders that hold their images: CC3M, CC12M, DreamLIP, Hugging Face, img2dataset."""

from __future__ import annotations

import csv
import hashlib
import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cornerstone.data.importers import FORMATS, ImportOptions, check, delimited, import_pairs
from cornerstone.data.importers.core import Quarantined, Sample, as_pair
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError


def read(format, src, **options):
    """Pairs by key and refusals, without Ray; sent to the tasks as Ray would."""
    source = FORMATS[format](Location.of(src), ImportOptions(**options))
    plan = source.plan()
    sent = pickle.loads(pickle.dumps(source))
    found = [*plan.quarantined, *(record for task in plan.tasks for record in sent.read(task))]
    pairs = [as_pair(record, source.options, plan.classes) for record in found if isinstance(record, Sample)]
    return {pair.key: pair for pair in pairs}, {r.key: r.reason for r in found if isinstance(r, Quarantined)}


def texts(pair):
    return [(caption.source, caption.role, caption.text) for caption in pair.captions]


@pytest.fixture
def photos(make, tmp_path):
    """Pictures 0 to 2 by name, by the hashes of their addresses, and by the last part of one."""
    folder = tmp_path / "images"
    folder.mkdir()
    addresses = [f"http://example.org/a/{n}.jpg?size=1" for n in range(3)]
    (folder / f"{hashlib.md5(addresses[0].encode()).hexdigest()}.jpg").write_bytes(make.image(0))
    (folder / hashlib.sha1(addresses[1].encode()).hexdigest()).write_bytes(make.image(1))
    (folder / "2.jpg").write_bytes(make.image(2))
    return folder, addresses


def test_cc3m_and_cc12m_without_a_header(make, photos, tmp_path):
    folder, addresses = photos
    captions = ['a "quoted" cat', "naïve, with a comma", "one"]
    lines = {
        "cc3m.tsv": [f"{c}\t{a}" for c, a in zip(captions, addresses, strict=True)],
        "cc12m.tsv": [f"{a}\t{c}" for c, a in zip(captions, addresses, strict=True)],
    }
    for name, content in lines.items():
        (tmp_path / name).write_text("\n".join([*content, content[0].replace("0.jpg", "9.jpg"), "no row"]), "utf-8")
        pairs, refused = read("cc-tsv", tmp_path / name, images=str(folder))
        assert {key: texts(pair) for key, pair in pairs.items()} == {
            address: [("caption", "raw", caption)] for address, caption in zip(addresses, captions, strict=True)
        }
        assert [pairs[address].image for address in addresses] == [make.image(n) for n in range(3)]
        broken, gone = sorted(refused.items())
        assert gone[0].endswith("9.jpg?size=1")
        assert gone[1].startswith("missing file")
        assert broken[1] == "no row: 1 cells, the list has 2 columns"


def test_a_table_that_nobody_proof_read(make, photos, tmp_path):
    """A quote that nothing closes, a carriage return, a NUL and bytes that are no UTF-8 cost no row but their own."""
    folder, _ = photos
    lines = [
        b"filepath,title",
        b"2.jpg,fine",
        b'2.jpg,"an open quote',
        b"2.jpg,with a \r return",
        b'2.jpg,"two\nlines, one ""text"""',
        b"2.jpg,nul\0 and caf\xe9",
        b"2.jpg,last",
    ]
    (tmp_path / "list.csv").write_bytes(b"\n".join(lines))
    source = FORMATS["cc-tsv"](Location.of(tmp_path / "list.csv"), ImportOptions(images=str(folder)))
    plan = source.plan()
    found = [*plan.quarantined, *(record for task in plan.tasks for record in source.read(task))]
    captions = sorted(record.fields["title"] for record in found if isinstance(record, Sample))
    assert captions == [
        "an open quote\n",
        "fine",
        "last",
        "nul and caf\N{REPLACEMENT CHARACTER}",
        'two\nlines, one "text"',
        "with a   return",
    ]
    assert len(found) == len(captions)
    tabs = b'"an open quote\thttp://a/2.jpg\nsecond "one"\thttp://a/2.jpg\n'
    (tmp_path / "list.tsv").write_bytes(tabs)
    source = FORMATS["cc-tsv"](Location.of(tmp_path / "list.tsv"), ImportOptions(images=str(folder)))
    found = [record for task in source.plan().tasks for record in source.read(task)]
    assert sorted(record.fields["caption"] for record in found) == ['"an open quote', 'second "one"']


def test_quotes_that_open_and_close_hold_lines_together(photos, tmp_path):
    """What makes no row is given back line by line, and nothing is lost."""
    (tmp_path / "list.csv").write_text("filepath,title\n")
    source = FORMATS["cc-tsv"](Location.of(tmp_path / "list.csv"), ImportOptions(images=str(photos[0])))

    def records(*lines):
        found = [record.decode() for record in delimited._quoted([line.encode() for line in lines], source._fits)]
        assert "".join(found) == "".join(lines)
        return found

    assert records('a,"1\n', '2"\n', "b,3\n") == ['a,"1\n2"\n', "b,3\n"]
    for apart in (
        ('b,"open\n', "c,3\n", 'd,"4"\n'),
        ("c,3\n", 'x,"open\n', "y,1\n"),
        ('a,12" pizza\n', "b,two\n", 'c,a 5" nail\n', "d,four\n"),
    ):
        assert records(*apart) == list(apart)


def test_a_list_of_tabs_with_a_header_is_quoted_as_pandas_does(make, photos, tmp_path):
    folder, _ = photos
    (tmp_path / "list.tsv").write_text('filepath\ttitle\n2.jpg\t"He said ""hi"""\n2.jpg\t"two\nlines"\n2.jpg\tplain\n')
    source = FORMATS["cc-tsv"](Location.of(tmp_path / "list.tsv"), ImportOptions(images=str(folder)))
    found = [record.fields["title"] for task in source.plan().tasks for record in source.read(task)]
    assert sorted(found) == ['He said "hi"', "plain", "two\nlines"]


def test_splits_of_one_folder_stay_apart(make, tmp_path):
    for name, n in (("train-00000-of-00002", 0), ("train-00001-of-00002", 1), ("test-00000-of-00001", 2)):
        table = pa.table({"image": [{"bytes": make.image(n), "path": ""}], "text": [f"{n}"], "status": ["draft"]})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    with pytest.raises(CornerstoneError, match="holds the splits test, train: choose one, --where split=train"):
        read("hf-parquet", tmp_path)
    pairs, refused = read("hf-parquet", tmp_path, where=("split=train",))
    assert sorted(texts(pair)[0][2] for pair in pairs.values()) == ["0", "1"]
    assert not refused  # a column `status` is img2dataset's alone
    with pytest.raises(CornerstoneError, match="no split 'trian'; did you mean 'train'"):
        read("hf-parquet", tmp_path, where=("split=trian",))
    assert len(read("hf-parquet", tmp_path / "test-00000-of-00001.parquet")[0]) == 1


def test_the_image_column_may_have_any_name(make, photos, tmp_path):
    folder, _ = photos
    (tmp_path / "list.csv").write_text("photo,words\n2.jpg,a text\n")
    options = {"images": str(folder), "raw": ("words",)}
    pairs, _ = read("cc-tsv", tmp_path / "list.csv", image="photo", **options)
    assert [texts(pair) for pair in pairs.values()] == [[("words", "raw", "a text")]]
    with pytest.raises(CornerstoneError, match=r"no image column among photo, words. Name it with --image FIELD"):
        read("cc-tsv", tmp_path / "list.csv", **options)
    with pytest.raises(CornerstoneError, match="'foto'; did you mean 'photo'"):
        read("cc-tsv", tmp_path / "list.csv", image="foto", **options)
    table = pa.table({"scan": [make.image(1)], "text": ["one"]})
    pq.write_table(table, tmp_path / "t.parquet")
    pairs, _ = read("hf-parquet", tmp_path / "t.parquet", image="scan")
    assert [pair.image for pair in pairs.values()] == [make.image(1)]
    with pytest.raises(CornerstoneError, match="--image has no effect on coco"):
        check("coco", tmp_path, tmp_path / "out", ImportOptions(image="photo"))


def test_a_text_that_is_no_utf8_sets_its_row_aside(make, tmp_path):
    words = pa.array([b"fine", b"caf\xe9"], pa.binary())
    broken = pa.Array.from_buffers(pa.string(), 2, words.buffers())
    pq.write_table(pa.table({"jpg": [make.image(0), make.image(1)], "caption": broken}), tmp_path / "t.parquet")
    pairs, refused = read("hf-parquet", tmp_path / "t.parquet")
    assert [texts(pair) for pair in pairs.values()] == [[("caption", "raw", "fine")]]
    assert list(refused.values()) == ["not UTF-8: unexpected end of data"]


def test_open_clips_table(make, photos, tmp_path):
    folder, _ = photos
    for name, delimiter in (("list.csv", ","), ("list.tsv", "\t")):
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
            rows = [
                ["filepath", "title", "split"],
                ["2.jpg", "two", "train"],
                ["../x", "out", "train"],
                ["2.jpg", "no", "val"],
            ]
            csv.writer(file, delimiter=delimiter).writerows(rows)
        pairs, refused = read("cc-tsv", tmp_path / name, images=str(folder), where="split=train")
        assert {key: texts(pair) for key, pair in pairs.items()} == {"2.jpg": [("title", "raw", "two")]}
        assert "outside the image folder" in refused["../x"]


@pytest.mark.parametrize(
    "header",
    [
        ["image", "raw", "shortIB", "longIB", "shortSV", "longSV", "shortLLA", "longLLA"],
        ["Image Path", "raw_caption", "shortIB_captions", "longIB_captions", "shortSV_captions", "longSV_captions",
         "shortLLA_captions", "longLLA_captions"],
    ],
)  # fmt: skip
def test_dreamlip_under_either_release(make, photos, tmp_path, header):
    folder, _ = photos
    path = tmp_path / "dreamlip.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, ["2.jpg", *(f'{n}. A line,\n"and" more' for n in range(7))]])
    (pair,) = read("dreamlip-csv", path, images=str(folder))[0].values()
    assert texts(pair) == [
        ("raw", "raw", '0. A line,\n"and" more'),
        *((f"long{by}", "long", f'{n}. A line,\n"and" more') for n, by in ((2, "IB"), (4, "SV"), (6, "LLA"))),
    ]
    assert set(json.loads(pair.extra)) == {"shortIB", "shortSV", "shortLLA"}
    (pair,) = read("dreamlip-csv", path, images=str(folder), raw=("raw", "shortSV"), long=("longSV",))[0].values()
    assert [(source, role) for source, role, _ in texts(pair)] == [
        ("raw", "raw"),
        ("shortSV", "raw"),
        ("longSV", "long"),
    ]


def test_tables_that_are_none_say_what_was_expected(photos, tmp_path):
    def refused(format, name, content):
        (tmp_path / name).write_text(content)
        with pytest.raises(CornerstoneError) as error:
            read(format, tmp_path / name, images=str(photos[0]))
        return str(error.value)

    assert "3 columns and no known header" in refused("cc-tsv", "a.csv", "x,y,z\n")
    assert "by default one of filepath, image" in refused("cc-tsv", "b.csv", "caption,file\nx,y\n")
    assert "begins with an empty line" in refused("cc-tsv", "c.tsv", "")
    assert "No DreamLIP column" in refused("dreamlip-csv", "d.csv", "image,title\nx,y\n")
    with pytest.raises(CornerstoneError, match="No list at"):
        read("cc-tsv", tmp_path / "nothing.tsv")


IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])


def write_hf(path, rows):
    table = {name: [row.get(name) for row in rows] for name in rows[0]}
    schema = pa.schema([("image", IMAGE), *((name, pa.string()) for name in table if name != "image")])
    pq.write_table(pa.table(table, schema), path)


def test_hugging_faces_tables(make, photos, tmp_path):
    rows = [{"image": {"bytes": make.image(n), "path": None}, "caption": f"c {n}", "split": "train"} for n in range(3)]
    rows += [{"image": {"bytes": None, "path": "2.jpg"}, "caption": "by path", "split": "train"}]
    rows += [{"image": None, "caption": "none", "split": "train"}, {**rows[0], "split": "val"}]
    write_hf(tmp_path / "train-00000.parquet", rows)
    pairs, refused = read("hf-parquet", tmp_path, images=str(photos[0]), where="split=train")
    assert {key: (pair.image, texts(pair)[0][2]) for key, pair in pairs.items()} == {
        **{f"train-00000/{n}": (make.image(n), f"c {n}") for n in range(3)},
        "train-00000/3": (make.image(2), "by path"),
    }
    assert refused == {"train-00000/4": "no image: image has neither bytes nor a path"}
    assert "name the folder with --images" in read("hf-parquet", tmp_path)[1]["train-00000/3"]
    with pytest.raises(CornerstoneError, match=r"no column 'capton'.*did you mean 'caption'"):
        read("hf-parquet", tmp_path, raw="capton")


def test_a_truncated_table_is_refused_whole_and_a_damaged_one_says_where_it_ends(make, tmp_path):
    rows = [{"image": {"bytes": make.image(n % 7), "path": None}, "caption": f"c {n}"} for n in range(200)]
    write_hf(tmp_path / "a.parquet", rows)
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(content[: len(content) // 2])
    pairs, refused = read("hf-parquet", tmp_path)
    assert len(pairs) == 200
    assert "damaged file: the rest is lost after 0 rows" in refused["b.parquet"]
    with pytest.raises(CornerstoneError, match="not a complete Parquet file"):
        read("hf-parquet", tmp_path / "b.parquet")


META = {"url": "http://x", "status": "success", "error_message": None, "width": 8, "height": 6}


def sample(make, n, **changes):
    meta = {**META, "caption": f"caption {n}", "key": f"{n:09d}", **changes}
    return {"jpg": make.image(n), "txt": meta["caption"].encode(), "json": json.dumps(meta).encode()}


def parts(make):
    """A whole sample, one without text, one without image, one that failed, one with a broken JSON."""
    return {
        "000000000": sample(make, 0),
        "000000001": {k: v for k, v in sample(make, 1).items() if k != "txt"},
        "000000002": {k: v for k, v in sample(make, 2).items() if k != "jpg"},
        "000000003": sample(make, 3, status="failed_to_resize", error_message="too small"),
        "000000004": {**sample(make, 4), "json": b"{"},
    }


def check_img2dataset(make, pairs, refused):
    assert {key: (pair.image, texts(pair)) for key, pair in pairs.items()} == {
        f"00000/{n:09d}": (make.image(n), [("txt", "raw", f"caption {n}")]) for n in (0, 1)
    }
    assert json.loads(pairs["00000/000000000"].extra)["url"] == "http://x"
    assert refused["00000/000000002"].startswith("no image")
    assert refused["00000/000000003"] == "not downloaded: too small"
    assert refused["00000/000000004"].startswith("not JSON")


def test_img2datasets_tars(make, tmp_path):
    members = [(f"{key}.{ending}", part) for key, found in parts(make).items() for ending, part in found.items()]
    make.write_tar(tmp_path / "00000.tar", members)
    pq.write_table(pa.table({"url": ["http://x"], "caption": ["c"]}), tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text("{}")
    check_img2dataset(make, *read("img2dataset", tmp_path))


def test_img2datasets_folders(make, tmp_path):
    for key, found in parts(make).items():
        for ending, part in found.items():
            path = tmp_path / "00000" / f"{key}.{ending}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(part)
    pq.write_table(pa.table({"url": ["http://x"], "caption": ["c"]}), tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text("{}")
    check_img2dataset(make, *read("img2dataset", tmp_path))


def test_img2datasets_parquet(make, tmp_path):
    rows = [
        {"jpg": make.image(0), "caption": "caption 0", "key": "000000000", "status": "success", "error_message": None},
        {"jpg": None, "caption": "caption 1", "key": "000000001", "status": "failed", "error_message": "HTTP 404"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "00000.parquet")
    pairs, refused = read("img2dataset", tmp_path)
    assert {key: texts(pair) for key, pair in pairs.items()} == {"00000/0#000000000": [("caption", "raw", "caption 0")]}
    assert refused == {"00000/1#000000001": "not downloaded: HTTP 404"}


def test_what_img2dataset_did_not_write(tmp_path):
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(CornerstoneError, match=r"not an output of img2dataset: expected tars.*found x.txt"):
        read("img2dataset", tmp_path)


def test_a_table_is_imported_in_a_seeded_order(ray_cluster, make, tmp_path):
    for n in range(40):
        (tmp_path / f"{n}.jpg").write_bytes(make.image(n))
    (tmp_path / "list.csv").write_text("filepath,title\n" + "".join(f"{n}.jpg,t {n}\n" for n in range(40)))
    orders = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        report = import_pairs("cc-tsv", tmp_path / "list.csv", tmp_path / name, seed=seed, rows_per_shard=16)
        assert report.rows == 40
        orders.append([row["key"] for row in make.rows(tmp_path / name)])
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])
