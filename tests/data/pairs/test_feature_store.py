from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from cornerstone.data.manifest import Manifest
from cornerstone.data.pairs.feature_store import FeatureKeys, check_store, feature_schema, store_width
from cornerstone.data.shards import Reader, write_row_groups
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError

KEYS = FeatureKeys("data-hash", "tower-hash", "centre-64-bicubic", "float16")


@pytest.fixture
def store(tmp_path) -> Location:
    """Vectors of 6 rows in 2 row groups."""
    folder = Location.of(tmp_path)
    schema = feature_schema(3, "float16")
    vectors = np.arange(18, dtype=np.float16)
    groups = (
        pa.Table.from_arrays(
            [pa.FixedSizeListArray.from_arrays(pa.array(part), 3), pa.array([""] * (len(part) // 3))], schema=schema
        )
        for part in (vectors[:12], vectors[12:])
    )
    shard = write_row_groups(folder, "shard-00000.parquet", groups)
    keys = {"data": KEYS.data, "tower": KEYS.tower, "transform": KEYS.transform, "dtype": KEYS.dtype}
    Manifest("features", "photos", (shard,), source={"width": 3}, keys=keys).write(folder)
    return folder


def test_a_store_that_fits_is_opened(store):
    opened = check_store(store, KEYS)
    assert store_width(opened.manifest) == 3
    assert opened.manifest.row_groups == (4, 2)
    table = Reader(opened).take(np.array([5, 0]))
    assert table["feature"].to_pylist() == [[15, 16, 17], [0, 1, 2]]
    assert table.schema.field("feature").type == pa.list_(pa.float16(), 3)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data": "other"}, "the rows (content hash): stored 'data-hash', needed 'other'"),
        ({"tower": "other"}, "the image tower's weights: stored 'tower-hash', needed 'other'"),
        ({"transform": "other"}, "the transform: stored 'centre-64-bicubic', needed 'other'"),
        ({"dtype": "float32"}, "the numbers' type: stored 'float16', needed 'float32'"),
    ],
)
def test_what_differs_is_named_and_nothing_else(store, changes, named):
    with pytest.raises(CornerstoneError) as refused:
        check_store(store, replace(KEYS, **changes))
    assert named in str(refused.value)
    assert str(refused.value).count("stored") == 1


def test_all_differences_are_named_at_once(store):
    with pytest.raises(CornerstoneError) as refused:
        check_store(store, replace(KEYS, data="x", tower="y"))
    assert "the rows" in str(refused.value)
    assert "the image tower's weights" in str(refused.value)


def test_pairs_are_no_store(pairs_folder):
    with pytest.raises(CornerstoneError, match="holds pairs, but stored features are needed"):
        check_store(pairs_folder, KEYS)


def test_a_store_is_named_by_all_that_it_depends_on():
    others = [replace(KEYS, **{name: "float32"}) for name in ("data", "tower", "transform", "dtype")]
    assert len({keys.digest() for keys in (KEYS, *others)}) == 5
    assert replace(KEYS).digest() == KEYS.digest()
