from __future__ import annotations

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from cornerstone.data.manifest import Manifest
from cornerstone.data.records import PAIRS
from cornerstone.data.scenes.sets import EVALUATION_SETS, pair
from cornerstone.data.scenes.world import ScenesSpec
from cornerstone.data.scenes.write import (
    finish_scenes,
    write_evaluation_sets,
    write_scenes,
    write_scenes_shard,
)
from cornerstone.data.shards import ROWS_PER_GROUP
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_one_and_two_workers_write_the_same_bytes(tmp_path):
    told: list[tuple[int, int]] = []
    for workers in (1, 2):
        write_scenes(
            tmp_path / str(workers),
            pairs=150,
            rows_per_shard=64,
            workers=workers,
            progress=lambda done, total: told.append((done, total)),
        )
    one, two = files(tmp_path / "1"), files(tmp_path / "2")
    assert sorted(one) == ["manifest.json", "shard-00000.parquet", "shard-00001.parquet", "shard-00002.parquet"]
    assert one == two
    assert told[2] == told[5] == (150, 150)
    assert sorted(told[3:]) == told[3:]


def test_shards_can_be_written_by_anyone_in_any_order(tmp_path):
    spec = ScenesSpec(rows=100, rows_per_shard=40)
    folder = Location.of(tmp_path / "parts")
    shards = {index: write_scenes_shard(folder, index, spec) for index in (2, 0, 1)}
    manifest = finish_scenes(folder, spec, [shards[i] for i in range(spec.shards)])
    whole = write_scenes(tmp_path / "whole", pairs=100, rows_per_shard=40, workers=1)
    assert manifest == whole == Manifest.read(str(tmp_path / "parts"), "pairs")
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    with pytest.raises(CornerstoneError, match="shards 0 to 2"):
        write_scenes_shard(folder, 3, spec)


def test_shards_hold_the_rows_in_order_and_the_manifest_tells_how_they_came_about(tmp_path):
    manifest = write_scenes(tmp_path / "scenes", pairs=100, seed=3, image_size=32, workers=1)
    assert (manifest.kind, manifest.name, manifest.rows, manifest.tasks) == ("pairs", "scenes", 100, ())
    assert manifest.row_groups == (ROWS_PER_GROUP, 100 - ROWS_PER_GROUP)
    table = pq.read_table(tmp_path / "scenes" / manifest.shards[0].file)
    assert table.schema.equals(PAIRS)
    spec = ScenesSpec(**Manifest.read(str(tmp_path / "scenes")).source["scenes"])
    assert (spec.rows, spec.seed, spec.image_size) == (100, 3, 32)
    assert table.to_pylist() == [pair(spec, i).as_row() for i in range(100)]


def test_equal_specs_have_equal_hashes_and_others_have_others(tmp_path):
    def hashed(name, **spec):
        return write_scenes(tmp_path / name, pairs=20, workers=1, **spec).content_hash

    first = hashed("a")
    assert first == hashed("b")
    assert len({first, hashed("c", seed=1), hashed("d", image_size=32), hashed("e", sentences=(3, 4))}) == 4


def test_evaluation_sets_lie_in_folders_of_their_own(tmp_path):
    manifests = write_evaluation_sets(tmp_path, images=30, class_images=50, validation_images=10, pool=20, workers=1)
    assert tuple(manifests) == EVALUATION_SETS
    assert {name: m.rows for name, m in manifests.items()} == {
        "long-human": 30,
        "long-captioner": 30,
        "short": 30,
        "class": 50,
        "lookalike": 28,
        "validation": 10,
    }
    for name, manifest in manifests.items():
        assert Manifest.read(str(tmp_path / name)) == manifest
        assert manifest.name == name
        assert manifest.pool == (None if name in ("class", "lookalike") else min(20, manifest.rows))
    write_scenes(tmp_path / "scenes", pairs=50, workers=1)
    pictures = {}
    for name in ("scenes", *EVALUATION_SETS):
        table = pq.read_table(tmp_path / name / "shard-00000.parquet", columns=["image", "extra"])
        pictures[name] = {json.dumps(json.loads(extra)["scene"]) for extra in table["extra"].to_pylist()}
    assert len(set.union(*pictures.values())) == sum(map(len, pictures.values()))


def test_some_sets_are_enough_and_unknown_ones_are_refused(tmp_path):
    manifests = write_evaluation_sets(tmp_path, sets=["lookalike"], groups=3, workers=1)
    assert {name: m.rows for name, m in manifests.items()} == {"lookalike": 12}
    with pytest.raises(CornerstoneError, match="did you mean 'class'"):
        write_evaluation_sets(tmp_path, sets=["clas"])


def test_a_finished_data_set_is_not_overwritten(tmp_path):
    write_scenes(tmp_path / "scenes", pairs=5, workers=1)
    before = files(tmp_path)
    with pytest.raises(CornerstoneError, match="already holds"):
        write_scenes(tmp_path / "scenes", pairs=6, workers=1)
    assert files(tmp_path) == before


def test_no_torch_is_needed():
    code = (
        "import sys, cornerstone.data.scenes.write, cornerstone.data.scenes.tokenizer; "
        "sys.exit(sorted({'torch', 'ray', 'timm', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr in ("", "[]\n")
