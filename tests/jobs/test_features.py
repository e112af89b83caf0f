"""The parts of a feature job, and that decoding and encoding in two actors gives what one actor gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cornerstone.data.images import Transform
from cornerstone.data.pairs.feature_store import FeatureKeys
from cornerstone.data.shards import DataSet
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError
from cornerstone.jobs import features
from cornerstone.jobs.features import FeatureJob, _Decode, _DecodeAndEncode, _Encode, _Work
from cornerstone.recipes import ImageTower


@pytest.fixture
def work(pairs_folder, tiny_tower, tmp_path):
    def of(precision="fp32", **tower):
        keys = FeatureKeys("data", "tower", "transform", "float16", precision)
        job = FeatureJob(DataSet.open(pairs_folder), Location.of(tmp_path), keys)
        return _Work((job,), ImageTower(tiny_tower, size=32, **tower), Transform(32, train=False))

    return of


def row(part: range, shard: int) -> dict:
    return {
        name: np.array([n]) for name, n in (("job", 0), ("shard", shard), ("first", part.start), ("stop", part.stop))
    }


def as_arrow_row(table) -> dict:
    """A block of one row as Ray Data gives it to the next actor."""
    return {name: np.array([table[name][0].as_py()], dtype=object) for name in table.column_names}


def test_parts_are_runs_of_row_groups(work, monkeypatch):
    (job,) = work().jobs
    groups = [shard.row_groups for shard in job.data.manifest.shards]
    assert [job.parts(s) for s in range(len(groups))] == [
        [range(sum(map(len, groups[:s])), sum(map(len, groups[: s + 1])))] for s in range(len(groups))
    ]  # a small shard is one part
    monkeypatch.setattr(features, "IMAGES_AT_ONCE", 5)
    for shard, sizes in enumerate(groups):
        parts, start = job.parts(shard), sum(map(len, groups[:shard]))
        assert [g for part in parts for g in part] == list(range(start, start + len(sizes)))
        rows = [sum(sizes[g - start] for g in part) for part in parts]
        assert all(n >= 5 for n in rows[:-1])


def test_two_actors_give_what_one_gives(work, monkeypatch):
    given = work()
    (job,) = given.jobs
    decode, encode, both = _Decode(given), _Encode(given), _DecodeAndEncode(given)
    for shard in range(2):
        part = job.parts(shard)[0]
        apart = encode(as_arrow_row(decode(row(part, shard))))
        whole = both(row(part, shard))
        vectors = np.frombuffer(whole["vectors"][0], np.float32).reshape(-1, 32)
        assert np.array_equal(np.frombuffer(apart["vectors"][0], np.float32).reshape(-1, 32), vectors)
        assert len(vectors) == sum(job.data.manifest.shards[shard].row_groups)
        assert list(apart["reasons"][0]) == whole["reasons"][0]
        assert (vectors != 0).any(axis=1).tolist() == [not reason for reason in whole["reasons"][0]]


def test_the_precision_is_that_of_the_keys(work):
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8).numpy()
    exact, fast = (_Encode(work(precision)).encoded(images, [""] * 4) for precision in ("fp32", "bf16"))
    assert 1e-4 < np.abs(exact - fast).max() < 0.1 * np.abs(exact).max()
    assert FeatureKeys("d", "t", "x", "float16").digest() != FeatureKeys("d", "t", "x", "float16", "bf16").digest()
    assert (
        "precision" not in FeatureKeys("d", "t", "x", "float16").as_dict()
    )  # stores of older versions keep their names


def test_a_tower_without_pooling_has_no_feature(work):
    images = torch.zeros((2, 3, 32, 32), dtype=torch.uint8).numpy()
    with pytest.raises(CornerstoneError, match="has no pooling"):
        _Encode(work(pooling="none")).encoded(images, ["", ""])


def test_an_actor_without_a_gpu_of_its_own_stays_on_the_cpu(monkeypatch):
    """Ray does not hide the machine's GPUs from it."""
    from cornerstone.runtime.device import actor_device

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.get_gpu_ids", list)
    assert actor_device() == torch.device("cpu")
    monkeypatch.setattr("ray.get_gpu_ids", lambda: [0])
    assert actor_device() == torch.device("cuda")
