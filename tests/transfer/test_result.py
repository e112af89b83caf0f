"""Both uncertainties of a transfer's numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from cornerstone.transfer.printed import printed_beside
from cornerstone.transfer.result import Result, Row, few_seeds


def row(score, cluster=None, drawn=True) -> Row:
    score = np.array(score, dtype=float)
    cluster = np.arange(score.shape[1]) if cluster is None else np.array(cluster)
    return Row("top1", "tower", "frozen", "head", score, cluster, drawn=drawn)


def test_the_interval_over_seeds_is_students():
    low, high = row([[100, 0], [100, 100], [100, 100]]).over_seeds()
    mean, error = 250 / 3, np.std([50, 100, 100], ddof=1) / math.sqrt(3)
    assert (low, high) == pytest.approx((mean - 4.302653 * error, mean + 4.302653 * error))


def test_one_seed_and_a_measure_without_seeds_have_no_interval_over_seeds():
    assert all(map(math.isnan, row([[100, 0]]).over_seeds()))
    assert all(map(math.isnan, row([[100, 0], [0, 0]], drawn=False).over_seeds()))
    assert few_seeds(3) == ()
    assert "one seed" in few_seeds(1)[0]


def test_the_bootstrap_draws_images_with_all_their_queries():
    """Five queries of one image are one draw: the interval is wider than that of independent queries."""
    right = np.repeat(np.random.default_rng(0).integers(0, 2, 40) * 100, 5)[None]
    alone, together = row(right).over_images(), row(right, np.repeat(np.arange(40), 5)).over_images()
    share = right.mean() / 100
    for (low, high), queries in ((alone, 200), (together, 40)):
        half = 196 * math.sqrt(share * (1 - share) / queries)
        assert (high - low) / 2 == pytest.approx(half, rel=0.1)


def test_the_papers_numbers_stand_beside_sets_of_its_names():
    measured = replace(row([[100, 0]]), name="i2t_r1", metric="R@1")
    said = printed_beside(Result("coco", (measured, replace(measured, name="floor_i2t_r1")), (), 0.0))
    assert said[0].startswith("LCL, Table 1: pre-training on MMC4, COCO TR@1 (R@1): CLIP 46.4, CoCa 48.6")
    assert len(said) == 3  # two tables, one of the metrics, and how to read them
    assert "LCL 48.3" in said[1]
    assert printed_beside(Result("flowers", (measured,), (), 0.0)) == []


def test_several_benchmarks_stand_beside_table_4():
    rows = tuple(replace(row([[100, 0]]), name=name) for name in ("pope", "pope_precision", "mme"))
    said = printed_beside(Result("dialogue", rows, (), 0.0))
    assert len(said) == 3
    assert "LCL LAION + MMC4, frozen 81.7" in said[0]
    assert "OpenCLIP, full 1345.4" in said[1]
    assert "test-dev" in said[2]
