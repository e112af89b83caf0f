"""LAION-Random and MMC4-Pair: what becomes of each row of the parent."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import pytest

from cornerstone.data.derive import derive
from cornerstone.data.importers import import_pairs
from cornerstone.data.parallel import map_here
from cornerstone.data.records import Caption, Document, Segment
from cornerstone.data.shards import DataSet, Reader, ShardWriter
from cornerstone.errors import CornerstoneError

SEEDS = {"one": 0, "again": 0, "other": 1}


def rows(folder) -> list[dict]:
    reader = Reader(DataSet.open(folder))
    return [row for group in range(len(reader.data.manifest.row_groups)) for row in reader.group(group).to_pylist()]


@pytest.fixture(scope="module")
def documents(tmp_path_factory, small_data) -> str:
    """40 documents of three images: matched well, matched badly, and with no similarity; in 3 shards."""
    folder = tmp_path_factory.mktemp("documents") / "docs"

    def image(i, sim):
        return Segment(image=small_data.picture(i), extra=json.dumps({"matched_sim": sim}))

    with ShardWriter(str(folder), name="docs", kind="documents", rows_per_shard=16, rows_per_group=4) as writer:
        for i in range(40):
            texts = [Segment(text=f"{word} {i}") for word in ("first", "second", "third")]
            parts = (texts[0], image(i, 0.24), image(i, 0.2399), texts[1], image(i, None), image(i, 0.9), texts[2])
            writer.add(Document(f"doc {i}", parts))
    return str(folder)


def test_a_document_for_each_pair(ray_cluster, tmp_path, small_data):
    def captions(i):
        several = [Caption("web", "raw", f"raw {i} {word}") for word in ("a", "b")]
        return () if i == 7 else (*several, Caption("x", "long", f"long {i}"))

    parent = small_data.write(tmp_path / "pairs", (small_data.pair(i, captions=captions(i)) for i in range(40)))
    report = derive("laion-random", parent, tmp_path / "out")
    assert (report.rows, report.reasons) == (39, {"no raw caption": 1})
    pairs = {row["key"]: row for row in rows(parent)}
    chosen = Counter()
    for row in rows(tmp_path / "out"):
        image, text = row["segments"]
        assert image["image"] == pairs[row["key"]]["image"]
        assert text["text"] in [c["text"] for c in pairs[row["key"]]["captions"] if c["role"] == "raw"]
        chosen[text["text"][-1]] += 1
    assert min(chosen["a"], chosen["b"]) > 8
    source = DataSet.open(tmp_path / "out").manifest.source
    assert (source["format"], source["order"]["parent"]) == (
        "laion-random", DataSet.open(parent).manifest.content_hash
    )  # fmt: skip

    again = derive("laion-random", parent, tmp_path / "again")
    assert again.manifest.content_hash == report.manifest.content_hash
    without_ray = derive("laion-random", parent, tmp_path / "here", mapped=map_here)
    assert without_ray.manifest.content_hash == report.manifest.content_hash
    other = derive("laion-random", parent, tmp_path / "other", seed=1)
    assert other.manifest.content_hash != report.manifest.content_hash
    long = derive("laion-random", parent, tmp_path / "long", role="long")
    assert {row["segments"][1]["text"][:4] for row in rows(tmp_path / "long")} == {"long"}
    assert long.rows == 39


def test_a_pair_for_each_well_matched_image(ray_cluster, documents, tmp_path, small_data):
    report = derive("mmc4-pair", documents, tmp_path / "out")
    assert (report.rows, report.reasons) == (80, {"no matched_sim": 40})
    found = {row["key"]: row for row in rows(tmp_path / "out")}
    for i in range(40):
        for place, word in ((1, "second"), (5, "third")):
            row = found[f"doc {i}#{place}"]
            assert row["image"] == small_data.picture(i)
            assert (row["width"], row["height"]) == (24, 20)
            assert row["captions"] == [{"source": "matched sentence", "role": "raw", "text": f"{word} {i}"}]
    order = [key.partition("#")[0] for key in found]
    assert sum(one == two for one, two in itertools.pairwise(order)) < 10  # images of a document lie apart
    assert derive("mmc4-pair", documents, tmp_path / "all", min_similarity=0.1).rows == 120
    here = derive("mmc4-pair", documents, tmp_path / "here", mapped=map_here)
    assert here.manifest.content_hash == report.manifest.content_hash


def test_without_ray_the_same_pairs_are_written(documents, tmp_path):
    here = [derive("mmc4-pair", documents, tmp_path / name, mapped=map_here, seed=seed) for name, seed in SEEDS.items()]
    assert [(report.rows, report.reasons) for report in here] == [(80, {"no matched_sim": 40})] * 3
    one, again, other = (report.manifest.content_hash for report in here)
    assert one == again != other
    found = {row["key"]: row["captions"][0]["text"] for row in rows(tmp_path / "one")}
    assert found == {f"doc {i}#{at}": f"{word} {i}" for i in range(40) for at, word in ((1, "second"), (5, "third"))}


def test_what_cannot_be_derived_is_said(documents, tmp_path, small_data):
    with pytest.raises(CornerstoneError, match=r"Unknown data set 'mmc4-pairs'.*mmc4-pair"):
        derive("mmc4-pairs", documents, tmp_path / "out")
    with pytest.raises(CornerstoneError, match="holds documents, but pairs are needed"):
        derive("laion-random", documents, tmp_path / "out")
    with pytest.raises(CornerstoneError, match="already holds a finished data set"):
        derive("mmc4-pair", documents, documents)


def test_documents_of_real_shape(ray_cluster, test_data, tmp_path):
    source = test_data / "openstax"
    import_pairs("mmc4", source / "docs_mmc4.jsonl", tmp_path / "docs", images=str(source / "images"))
    report = derive("mmc4-pair", tmp_path / "docs", tmp_path / "pairs")
    images = sum(segment["kind"] == "image" for row in rows(tmp_path / "docs") for segment in row["segments"])
    assert report.rows + report.quarantined == images
    assert report.rows > 0.9 * images
