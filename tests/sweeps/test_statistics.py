from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from cornerstone.sweeps.statistics import estimate, holm, paired_difference, query_error, smallest_detectable, wilson


def test_estimate():
    found = estimate([50.0, 52.0, 57.0])
    assert found.mean == pytest.approx(53)
    assert found.error == pytest.approx(stats.sem([50.0, 52.0, 57.0]))
    assert found.seeds == 3
    assert math.isnan(estimate([50.0]).error)
    assert math.isnan(estimate([]).mean)


def test_paired_difference_equals_scipys_test():
    rng = np.random.default_rng(0)
    luck = rng.normal(0, 5, 8)  # shared by both points of a seed
    point, baseline = 50 + luck + rng.normal(0, 0.4, 8), 49 + luck + rng.normal(0, 0.4, 8)
    found = paired_difference(dict(enumerate(point)), dict(enumerate(baseline)))
    reference = stats.ttest_rel(point, baseline)
    interval = reference.confidence_interval(0.95)
    assert found.p == pytest.approx(reference.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.mean == pytest.approx((point - baseline).mean())
    assert found.p < 0.01 < stats.ttest_ind(point, baseline).pvalue  # unpaired, the seeds' luck would hide it


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [2, 3, 8])
def test_paired_difference_equals_the_formula(n, seed):
    rng = np.random.default_rng(seed)
    point, baseline = rng.normal(50, 5, n), rng.normal(48, 5, n)
    found = paired_difference(dict(enumerate(point)), dict(enumerate(baseline)), confidence=0.9)
    differences = point - baseline
    mean, deviation = differences.mean(), differences.std(ddof=1)
    error = deviation / math.sqrt(n)
    reach = stats.t.ppf(0.95, n - 1) * error
    expected = (mean, error, mean - reach, mean + reach, 2 * stats.t.sf(abs(mean) / error, n - 1), deviation)
    assert (found.mean, found.error, found.low, found.high, found.p, found.deviation) == pytest.approx(
        expected, rel=1e-12
    )


def test_only_common_seeds_are_compared():
    found = paired_difference({0: 1.0, 1: 3.0, 5: 99.0}, {0: 0.0, 1: 1.0, 7: -99.0})
    assert (found.mean, found.seeds) == (1.5, 2)


def test_too_few_seeds_give_nan():
    one = paired_difference({0: 3.0}, {0: 1.0, 1: 1.0})
    assert (one.mean, one.seeds) == (2.0, 1)
    assert all(map(math.isnan, (one.error, one.low, one.high, one.p)))
    assert math.isnan(paired_difference({0: 3.0}, {1: 1.0}).mean)


def test_differences_without_any_spread():
    assert paired_difference({0: 1.0, 1: 1.0}, {0: 1.0, 1: 1.0}).p == 1
    constant = paired_difference({0: 2.0, 1: 2.0}, {0: 1.0, 1: 1.0})
    assert (constant.p, constant.low, constant.high) == (0, 1, 1)


@pytest.mark.parametrize(("seeds", "effect"), [(3, 3.3), (4, 2.1), (5, 1.7), (8, 1.2), (10, 1.0)])
def test_smallest_detectable_difference(seeds, effect):
    assert smallest_detectable(seeds) == pytest.approx(effect, abs=0.06)


def test_smallest_detectable_difference_by_simulation():
    rng, n = np.random.default_rng(1), 5
    draws = rng.normal(smallest_detectable(n), 1, (20000, n))
    assert (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.01)
    assert math.isnan(smallest_detectable(1))


def test_query_error_gives_the_tables_binomial_errors():
    assert query_error(49.46, 7805) == pytest.approx(0.57, abs=0.005)
    assert query_error(84.97, 612) == pytest.approx(1.45, abs=0.01)
    assert query_error(76.49, 10000) == pytest.approx(0.43, abs=0.01)
    assert query_error(50.34, 50000) == pytest.approx(0.22, abs=0.005)
    assert math.isnan(query_error(50, 0))


def test_holm():
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "none": float("nan")})
    assert math.isnan(adjusted.pop("none"))
    assert adjusted == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"only": 0.03}) == {"only": 0.03}
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


@pytest.mark.parametrize(("right", "queries"), [(0, 124), (124, 124), (3, 10), (500, 1000)])
def test_wilson_equals_scipys_interval(right, queries):
    reference = stats.binomtest(right, queries).proportion_ci(0.95, method="wilson")
    low, high = wilson(100 * right / queries, queries, z=float(stats.norm.ppf(0.975)))
    assert (low, high) == pytest.approx((100 * reference.low, 100 * reference.high))


def test_no_right_answer_has_an_error():
    assert query_error(0.0, 124) == pytest.approx(0.4, abs=0.01)
    assert query_error(50.0, 1000) == pytest.approx(100 * math.sqrt(0.25 / 1000), rel=1e-3)
    assert math.isnan(query_error(50.0, 0))
