"""The bootstrap over clusters: its width against theory, and what has no spread."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cornerstone.evaluation.interval import clustered_interval, wilson


def test_independent_queries_have_the_binomial_interval():
    rng = np.random.default_rng(1)
    values = 100.0 * (rng.random(2_000) < 0.3)
    low, high = clustered_interval(values, np.arange(2_000))
    error = 100 * math.sqrt(0.3 * 0.7 / 2_000)
    assert (high - low) / (2 * 1.96) == pytest.approx(error, rel=0.1)
    assert low < values.mean() < high


def test_queries_of_one_image_are_not_independent():
    """Five captions that are all right or all wrong say no more than one."""
    rng = np.random.default_rng(1)
    images = 100.0 * (rng.random(400) < 0.5)
    five, cluster = np.repeat(images, 5), np.repeat(np.arange(400), 5)
    low, high = clustered_interval(five, cluster)
    alone = clustered_interval(images, np.arange(400))
    assert (low, high) == pytest.approx(alone)
    naive = clustered_interval(five, np.arange(2_000))
    assert (high - low) / (naive[1] - naive[0]) == pytest.approx(math.sqrt(5), rel=0.1)


def test_clusters_of_unequal_size_weigh_by_their_queries():
    """Images with nine texts that are found, and as many with one that is not: 90 % of the texts are found."""
    values = np.array([100.0] * 9 * 40 + [0.0] * 40)
    cluster = np.concatenate([np.repeat(np.arange(40), 9), np.arange(40, 80)])
    low, high = clustered_interval(values, cluster)
    assert 80 < low < 90 < high < 95


def test_draws_belong_to_the_queries_and_parts_change_nothing(monkeypatch):
    values, cluster = 100.0 * (np.arange(300) % 3 == 0), np.arange(300) // 2
    whole = clustered_interval(values, cluster)
    assert clustered_interval(values, cluster) == whole
    monkeypatch.setattr("cornerstone.evaluation.interval._AT_ONCE", 150 * 7)
    assert clustered_interval(values, cluster) == whole


def test_without_spread_it_is_wilsons():
    assert clustered_interval(np.full(50, 100.0), np.arange(50) // 5) == wilson(100, 10)
    assert clustered_interval(np.zeros(3), np.zeros(3)) == wilson(0, 1)
    assert clustered_interval(np.full(4, 12.5), np.arange(4)) == (12.5, 12.5)  # a score is no share
    assert all(map(math.isnan, clustered_interval([], [])))
