"""The index as a data set: made in parallel, keyed, checked; and on real documents."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cornerstone import cli
from cornerstone.data import verify as verify_module
from cornerstone.data.documents import PackedSequences, PackingConfig, PackingKeys, check_packing
from cornerstone.data.importers import import_pairs
from cornerstone.data.manifest import Manifest
from cornerstone.data.parallel import map_tasks
from cornerstone.data.shards import DataSet, Reader, write_row_groups
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError
from cornerstone.jobs import packing
from cornerstone.jobs.packing import write_packing

CONFIG = PackingConfig(token_budget=32, image_tokens=3, groups_together=2)


@pytest.fixture
def documents(words):
    return words.write("data", [["one", n, "two three", "five"] for n in range(21)])


def test_a_row_group_is_read_from_the_groups_it_was_packed_from(words, documents):
    out, manifest = words.pack(documents, CONFIG)
    assert [shard.file for shard in manifest.shards] == [f"shard-0000{n}.parquet" for n in range(3)]
    reader = Reader(DataSet.open(out, "packing"))
    touched = [
        {piece["row"] // 4 for row in reader.group(group)["pieces"].to_pylist() for piece in row}
        for group in range(len(manifest.row_groups))
    ]
    assert touched == [{0}, {1}, {2}, {3}, {4}, {5}]
    assert sorted(p["row"] for g in range(6) for row in reader.group(g)["pieces"].to_pylist() for p in row) == [
        *range(21)
    ]
    packed = manifest.source["packed"]
    assert packed["found"] == {"documents": 21, "images": 21, "texts": 63, "text tokens": 84}
    assert packed["left_out"] == {}
    assert packed["sequences"] == manifest.rows == 11  # 11 tokens a document, two of four in each
    assert packed["padding"] == pytest.approx(1 - 21 * 11 / (11 * 32))
    assert Manifest.read(out, "packing") == manifest


@pytest.mark.usefixtures("ray_cluster")
def test_ray_makes_the_same_bytes(words, documents, monkeypatch, tmp_path):
    _, alone = words.pack(documents, CONFIG)
    monkeypatch.setattr(packing, "map_tasks", map_tasks)
    told = []
    parallel = write_packing(documents, tmp_path / "ray", words.tokenizer, CONFIG, lambda *done: told.append(done))
    assert parallel == alone
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_an_index_that_does_not_fit_is_refused_naming_what_differs(words, documents):
    out, manifest = words.pack(documents, CONFIG)
    keys = PackingKeys.of(DataSet.open(documents).manifest.content_hash, words.tokenizer, CONFIG)
    assert check_packing(out, keys).manifest == manifest
    for changed, said in [
        (replace(keys, data="x"), f"the documents (content hash): packed with {keys.data!r}, needed 'x'"),
        (replace(keys, tokenizer="x"), f"the tokenizer: packed with {keys.tokenizer!r}, needed 'x'"),
        (replace(keys, config=replace(CONFIG, token_budget=64)), "the token budget: packed with 32, needed 64"),
        (replace(keys, config=replace(CONFIG, rule="obelics")), "rule: packed with 'mmc4', needed 'obelics'"),
        (replace(keys, config=replace(CONFIG, seed=1)), "seed: packed with 0, needed 1"),
    ]:
        with pytest.raises(CornerstoneError) as refused:
            check_packing(out, changed)
        assert said in str(refused.value)
        assert str(refused.value).count("packed with") == 1
        assert changed.digest() != keys.digest()
    with pytest.raises(CornerstoneError, match="the token budget: packed with 32, needed 33"):
        PackedSequences([documents], [out], words.tokenizer, replace(CONFIG, token_budget=33))


def test_nothing_to_pack_is_an_error_that_says_why(words, documents, pairs_folder):
    with pytest.raises(CornerstoneError, match=r"by the rule laion with 32 tokens .*21 × not one image and one text"):
        words.pack(documents, replace(CONFIG, rule="laion"))
    with pytest.raises(CornerstoneError, match="holds pairs, but documents are needed"):
        words.pack(pairs_folder, CONFIG)
    out, _ = words.pack(documents, CONFIG)
    with pytest.raises(CornerstoneError, match="already holds a finished data set"):
        write_packing(documents, out, words.tokenizer, CONFIG)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("rule", ["mmc4", "obelics"])
def test_real_documents(test_data, wordpiece, tmp_path, capsys, rule):
    import_pairs(rule, test_data / "openstax" / f"docs_{rule}.jsonl", tmp_path / "data", limit_rows=60)
    options = [f"--tokenizer={wordpiece}", f"--rule={rule}", "--image-tokens=16", "--budget=8192"]
    said = {}
    for name, more in (("packed", []), ("alone", ["--one-document"])):
        file = tmp_path / f"{name}.json"
        cli.main(["data", "pack", f"{tmp_path}/data", f"--out={tmp_path}/{name}", f"--json={file}", *options, *more])
        said[name] = json.loads(file.read_text())
    assert f"{said['packed']['padding']:.1%} padding" in capsys.readouterr().out
    assert said["packed"]["found"] == said["alone"]["found"]
    assert said["packed"]["left_out"] == said["alone"]["left_out"]
    assert said["packed"]["tokens"] >= said["alone"]["tokens"] - 60  # an <eos> here or there
    assert said["packed"]["padding"] < said["alone"]["padding"]
    config = PackingConfig(token_budget=8192, image_tokens=16, rule=rule)
    opened = PackedSequences([str(tmp_path / "data")], [str(tmp_path / "packed")], wordpiece.read_text(), config)
    rows = np.arange(said["packed"]["rows"])
    table = opened.take(rows, np.zeros_like(rows))
    real = sum((np.asarray(document) >= 0).sum() for document in table["document"].to_pylist())
    assert real == said["packed"]["tokens"]
    left = sum(said["packed"]["left_out"].get("images", {}).values())
    assert sum(map(len, table["images"].to_pylist())) == said["packed"]["found"]["images"] - left


def test_an_interrupted_packing_goes_on_after_its_finished_files(words, documents, monkeypatch):
    whole, manifest = words.pack(documents, CONFIG, "whole")
    in_line = packing.map_tasks

    def interrupted(work, items, failed, progress=None):
        yield work(items[1])
        raise CornerstoneError("away")

    monkeypatch.setattr(packing, "map_tasks", interrupted)
    with pytest.raises(CornerstoneError, match="away"):
        words.pack(documents, CONFIG, "out")
    monkeypatch.setattr(packing, "map_tasks", in_line)
    out = Path(whole).with_name("out")
    (kept,) = out.glob("*.parquet")
    written = kept.stat().st_mtime_ns
    _, again = words.pack(documents, CONFIG, "out")
    assert kept.stat().st_mtime_ns == written
    assert again == manifest  # what was packed and left out, too, is counted as if nothing had happened
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in Path(whole).iterdir())

    monkeypatch.setattr(packing, "map_tasks", interrupted)
    with pytest.raises(CornerstoneError, match="away"):
        words.pack(documents, CONFIG, "other")
    monkeypatch.setattr(packing, "map_tasks", in_line)
    other = replace(CONFIG, token_budget=40)
    assert words.pack(documents, other, "other")[1].shards == words.pack(documents, other, "fresh")[1].shards


def test_verify_looks_at_sequences_too(words, documents, monkeypatch, tmp_path):
    monkeypatch.setattr(verify_module, "map_tasks", lambda work, items, failed, progress=None: map(work, items))
    folder, manifest = words.pack(documents, CONFIG)
    verdict = verify_module.verify(folder)
    assert (verdict.rows, verdict.problems) == (manifest.rows, ())
    assert verdict.images > 0
    table = pq.read_table(Path(folder) / manifest.shards[0].file)
    rows = table.to_pylist()
    rows[0]["tokens"] += 1
    rows[1]["pieces"] = []
    Location.of(folder).join("manifest.json").remove()
    groups = [pa.Table.from_pylist(rows, schema=table.schema)]
    shard = write_row_groups(Location.of(folder), manifest.shards[0].file, groups)
    replace(manifest, shards=(shard,)).write(Location.of(folder))
    found = [(problem.kind, problem.row) for problem in verify_module.verify(folder).problems]
    assert found == [("other length", 0), ("empty sequence", 1)]
