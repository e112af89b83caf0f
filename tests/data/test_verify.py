from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cornerstone import cli
from cornerstone.data import verify as module
from cornerstone.data.manifest import Manifest, Shard
from cornerstone.data.pairs.feature_store import feature_schema
from cornerstone.data.records import DOCUMENTS, PAIRS, Caption, Document, Segment
from cornerstone.data.shards import ShardWriter, write_row_groups
from cornerstone.data.storage import Location
from cornerstone.data.verify import verify
from cornerstone.errors import CornerstoneError

FIRST, SECOND = "shard-00000.parquet", "shard-00001.parquet"


@pytest.fixture
def here(monkeypatch):
    """The tasks run in this process: what they find does not depend on where."""

    def map_tasks(work, items, *, failed, progress=None):
        for done, item in enumerate(items, 1):
            yield work(item)
            if progress is not None:
                progress(done, len(items))

    monkeypatch.setattr(module, "map_tasks", map_tasks)


@pytest.fixture
def folder(pairs_folder, tmp_path) -> Path:
    """A copy to damage: 50 pairs of four classes in 4 shards."""
    return Path(shutil.copytree(pairs_folder, tmp_path / "pairs"))


def rewrite(folder: Path, file: str, table: pa.Table, rows_per_group: int = 4) -> None:
    """Another content for a shard, with a manifest whose bytes and hash fit it."""
    groups = (table.slice(i, rows_per_group) for i in range(0, len(table), rows_per_group))
    shard = write_row_groups(Location.of(str(folder)), file, groups)
    manifest = Manifest.read(str(folder))
    replace(manifest, shards=tuple(shard if s.file == file else s for s in manifest.shards)).write(
        Location.of(str(folder))
    )


def changed(folder: Path, file: str, row: int, **values) -> None:
    """One row of a shard with other values."""
    table = pq.read_table(folder / file)
    rows = table.to_pylist()
    rows[row] |= values
    rewrite(folder, file, pa.Table.from_pylist(rows, schema=table.schema))


def found(folder) -> list[tuple[str, str, int | None]]:
    return [(p.kind, p.shard, p.row) for p in verify(str(folder)).problems]


def test_a_whole_set_has_no_problem(here, pairs_folder):
    told = []
    verdict = verify(pairs_folder, lambda *done: told.append(done))
    assert verdict.problems == ()
    assert (verdict.shards, verdict.rows, verdict.images, verdict.captions) == (4, 50, 50, 200)
    assert (verdict.repeated_keys, verdict.unnamed) == (0, ())
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_missing_shard(here, folder):
    (folder / SECOND).unlink()
    assert found(folder) == [("missing shard", SECOND, None)]


def test_a_truncated_shard(here, folder):
    whole = (folder / SECOND).read_bytes()
    (folder / SECOND).write_bytes(whole[: len(whole) // 2])
    problems = verify(str(folder)).problems
    assert [(p.kind, p.shard) for p in problems] == [("other size", SECOND), ("unreadable shard", SECOND)]
    assert f"{len(whole) // 2:,} bytes, manifest.json says {len(whole):,}" in str(problems[0])
    assert "truncated or damaged" in str(problems[1])


def test_a_swapped_byte(here, folder):
    content = bytearray((folder / FIRST).read_bytes())
    place = content.index(b"IDAT") + 40  # inside a picture that zstd could not shrink: Parquet alone does not see it
    content[place] ^= 1
    (folder / FIRST).write_bytes(content)
    problems = verify(str(folder)).problems
    assert [(p.kind, p.shard, p.row) for p in problems] == [("other bytes", FIRST, None)]
    assert "SHA-256" in problems[0].detail


def test_a_manifest_that_does_not_fit(here, folder):
    manifest = Manifest.read(str(folder))
    first, second, *rest = manifest.shards
    wrong = replace(first, row_groups=(4, 4, 4, 5))
    replace(manifest, shards=(wrong, second, second, *rest)).write(Location.of(str(folder)))
    problems = {p.kind: str(p) for p in verify(str(folder)).problems}
    assert "16 rows in 4 row groups, manifest.json says 17 rows in 4 row groups" in problems["other row groups"]
    assert f"{SECOND}: named twice: 2 entries" in problems["named twice"]


def test_every_problem_of_rows_is_told(here, folder, small_data):
    caption = {"source": "web", "role": "raw", "text": "a text"}
    sideways = Image.new("RGB", (8, 6))
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    sideways.save(stream, "JPEG", exif=exif)
    changed(folder, FIRST, 0, image=small_data.picture(0)[:10])
    changed(folder, FIRST, 1, image=None)
    changed(folder, FIRST, 2, width=25)
    changed(folder, FIRST, 3, captions=[caption, {**caption, "role": "short"}, {**caption, "text": " "}])
    changed(folder, FIRST, 4, label=4)
    changed(folder, FIRST, 5, label=-1)
    changed(folder, FIRST, 6, label=None, captions=None)
    changed(folder, FIRST, 7, image=stream.getvalue(), width=6, height=8)  # as a viewer shows it
    changed(folder, SECOND, 9, image=stream.getvalue(), width=8, height=6)
    assert found(folder) == [
        ("bad image", FIRST, 0),
        ("bad image", FIRST, 1),
        ("other image size", FIRST, 2),
        ("unknown role", FIRST, 3),
        ("empty caption", FIRST, 3),
        ("label without class", FIRST, 4),
        ("label without class", FIRST, 5),
        ("other image size", SECOND, 9),
    ]
    assert "24 × 20, the row says 25 × 20" in str(verify(str(folder)).problems[2])


def test_texts_that_are_no_utf8(here, folder):
    table = pq.read_table(folder / FIRST)
    keys = [row["key"].encode() for row in table.to_pylist()]
    keys[6] = b"\xff\xfe"
    broken = pa.array(keys, pa.binary()).view(pa.string())
    rewrite(folder, FIRST, table.set_column(0, table.schema.field("key"), broken))
    (problem,) = verify(str(folder)).problems
    assert (problem.kind, problem.row) == ("not UTF-8", 6)
    assert "key: invalid start byte at byte 0" in problem.detail


def test_repeated_keys_and_unnamed_files_are_told_and_are_no_problem(here, folder):
    changed(folder, SECOND, 1, key="00002")
    changed(folder, SECOND, 2, key="00002")
    (folder / "shard-00009.parquet").write_bytes(b"")
    (folder / "quarantine.jsonl").write_text("")
    verdict = verify(str(folder))
    assert verdict.problems == ()
    assert verdict.repeated_keys == 2
    assert verdict.repeats[0] == f"{SECOND} row 1 has the key of {FIRST} row 2"
    assert verdict.unnamed == ("shard-00009.parquet",)


def test_another_schema(here, folder):
    table = pq.read_table(folder / FIRST).drop_columns(["group"])
    table = table.set_column(2, "width", table["width"].cast(pa.int64())).append_column("more", table["label"])
    rewrite(folder, FIRST, table)
    (problem,) = verify(str(folder)).problems
    assert problem.kind == "other schema"
    assert problem.detail.startswith("no column 'group'; unknown column 'more'; 'width' is int64, not int32")


@pytest.fixture
def documents(tmp_path, small_data) -> Path:
    folder = tmp_path / "documents"
    with ShardWriter(str(folder), name="docs", kind="documents") as writer:
        for i in range(6):
            segments = (Segment(text=f"text {i}"), Segment(image=small_data.picture(i)), Segment(text="end"))
            writer.add(Document(f"{i}", segments))
    return folder


def test_documents(here, documents):
    verdict = verify(str(documents))
    assert (verdict.kind, verdict.problems) == ("documents", ())
    assert (verdict.rows, verdict.images, verdict.captions) == (6, 6, 12)
    text = {"kind": "text", "text": "x", "image": None, "extra": None}
    changed(documents, FIRST, 0, segments=[])
    changed(documents, FIRST, 1, segments=[text, {**text, "kind": "image"}, {**text, "image": b"x"}, None])
    changed(documents, FIRST, 2, segments=[{**text, "kind": "image", "text": None, "image": b"x"}])
    problems = verify(str(documents)).problems
    assert [(p.kind, p.row) for p in problems] == [
        ("empty document", 0),
        ("unclear segment", 1),
        ("unclear segment", 1),
        ("unclear segment", 1),
        ("bad image", 2),
    ]
    assert "segment 1 has the kind 'image' but holds text" in problems[1].detail


def store(folder: Path, vectors: np.ndarray) -> Path:
    schema = feature_schema(3, "float16")
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float16).reshape(-1)), 3)
    table = pa.Table.from_arrays([column, pa.array([""] * len(vectors))], schema=schema)
    shard = write_row_groups(Location.of(str(folder)).make(), FIRST, [table])
    Manifest("features", "f", (shard,), source={"width": 3}, keys={"dtype": "float16"}).write(Location.of(str(folder)))
    return folder


def test_stored_features(here, tmp_path):
    vectors = np.ones((5, 3))
    folder = store(tmp_path / "features", vectors)
    assert (verify(str(folder)).rows, found(folder)) == (5, [])
    vectors[3, 1] = np.nan
    assert found(store(tmp_path / "bad", vectors)) == [("not a number", FIRST, 3)]
    (folder / FIRST).write_bytes((folder / FIRST).read_bytes()[:-8])
    assert [kind for kind, _, _ in found(folder)] == ["other size", "unreadable shard"]
    manifest = Manifest.read(str(tmp_path / "bad"))
    replace(manifest, source={"width": 4}).write(Location.of(str(tmp_path / "bad")))
    assert [kind for kind, _, _ in found(tmp_path / "bad")] == ["other schema"]


def test_what_is_no_data_set(tmp_path):
    with pytest.raises(CornerstoneError, match="the folder does not exist"):
        verify(str(tmp_path / "nowhere"))
    Manifest("mixture", "m", (Shard("a", (3,), 1, ""),)).write(Location.of(str(tmp_path)).make())  # type: ignore[arg-type]
    with pytest.raises(CornerstoneError, match="no shards of its own"):
        verify(str(tmp_path))


def test_schemas_survive_parquet():
    """What the comparison rests on."""
    for schema in (PAIRS, DOCUMENTS):
        stream = io.BytesIO()
        pq.write_table(schema.empty_table(), stream)
        assert module._differences(pq.ParquetFile(stream).schema_arrow, schema) == []


def test_the_command_in_parallel(ray_cluster, folder, small_data, tmp_path, capsys):
    cli.main(["data", "verify", str(folder)])
    said = capsys.readouterr().out
    assert f"{folder}: pairs, 4 shards, 50 rows, 50 images, 200 texts" in said
    assert "No problem found." in said
    (folder / "shard-00003.parquet").unlink()
    for row in range(3):
        changed(folder, SECOND, row, captions=[Caption("[web]", "raw", "").__dict__])
    with pytest.raises(SystemExit) as exit:
        cli.main(["data", "verify", str(folder), "--json", str(tmp_path / "verdict.json")])
    assert exit.value.code == 1
    said = " ".join(capsys.readouterr().out.split())
    assert f"empty caption 3 {SECOND} row 0" in said
    assert f"- {SECOND} row 2: empty caption: caption 0, of '[web]' (key '00018')" in said
    assert "Error: 4 problems in" in said
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert verdict["kinds"] == {"empty caption": 3, "missing shard": 1}
    assert [p["shard"] for p in verdict["problems"]] == [SECOND] * 3 + ["shard-00003.parquet"]


def test_real_documents(here, ray_cluster, test_data, tmp_path):
    from cornerstone.data.importers import import_pairs

    source = test_data / "recipes"
    listed = next((p for p in sorted(source.iterdir()) if "obelics" in p.name), None)
    if listed is None:
        pytest.skip(f"no documents in {source}")
    import_pairs("obelics", listed, tmp_path / "out", images=str(source))
    verdict = verify(str(tmp_path / "out"))
    assert verdict.problems == ()
    assert verdict.images > 50
