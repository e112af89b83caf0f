"""The verdict below a table: its numbers, its words, and the interval of one seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from cornerstone.evaluation.averages import long_text_retrieval
from cornerstone.evaluation.judged import SCHEMA
from cornerstone.evaluation.sets import EvaluationSet
from cornerstone.evaluation.tasks import TASKS
from cornerstone.evaluation.tasks.retrieval import LONG, RAW
from cornerstone.sweeps import Claim
from cornerstone.sweeps.statistics import clustered_difference
from cornerstone.sweeps.verdict import verdict

METRICS = ["eval/dci/i2t_r1", "eval/dci/t2i_r1"]
CLAIM = Claim("2", "2 corner tokens", "c", "the control", "the weight of long captions")


@dataclass(frozen=True)
class Trial:
    point: str
    seed: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    run: str = ""
    queries: Mapping[str, int] = field(default_factory=dict)
    chance: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def trial(point, value, seed=0, **fields):
    return Trial(point, seed, dict.fromkeys(METRICS, value), run=f"{point}-{seed}", **fields)


def answers(share, n=400, rng=None):
    """Per-query results of both directions of the set `dci`, `share` of them correct."""
    rng = rng or np.random.default_rng(int(share * 1000))
    tables = []
    for metric in ("i2t_r1", "t2i_r1"):
        query = pa.array(np.arange(n))
        columns = [pa.array(["dci"] * n), pa.array([metric] * n), query, query, pa.array(rng.random(n) < share)]
        tables.append(pa.Table.from_arrays(columns, schema=SCHEMA))
    return pa.concat_tables(tables)


def said(base, point, control, **queries):
    rows = [trial("0", base), trial("2", point), trial("c", control)]
    return verdict(CLAIM, "0", rows, METRICS, lambda run: queries.get(run.partition("-")[0]))


def test_a_control_that_gains_as_much_explains_the_gain():
    tables = {"0": answers(0.2), "2": answers(0.5), "c": answers(0.5, rng=np.random.default_rng(9))}
    first, second = verdict(
        CLAIM, "0", [trial("0", 20.0), trial("2", 50.0), trial("c", 50.5)], METRICS, lambda run: tables[run[0]]
    )
    assert first.startswith("Verdict: 2 corner tokens raise long-text retrieval by 30.0 ± ")
    assert "the control raises it by 30.5 ± " in first
    assert "mean R@1 over dci; compared with '0'" in first
    assert "over the queries of one seed" in first
    assert second == (
        f"The two differ by 0.5 ± {1.96 * clustered_difference(tables['2'], tables['c'], METRICS).error:.1f} points, within "
        "the interval: in this run the weight of long captions is enough to explain the gain."
    )


def test_a_better_control_and_a_better_point():
    better = said(20.0, 50.0, 70.0, **{"0": answers(0.2), "2": answers(0.5), "c": answers(0.7)})
    assert better[1].startswith("The control is 20.0 ± ")
    assert better[1].endswith("is enough to explain the gain.")
    worse = said(20.0, 50.0, 30.0, **{"0": answers(0.2), "2": answers(0.5), "c": answers(0.3)})
    assert worse[1].startswith("2 corner tokens add 20.0 ± ")
    assert worse[1].endswith("the weight of long captions is not all of the gain.")


def test_no_gain_needs_no_explanation():
    (lower,) = said(50.0, 20.0, 50.0, **{"0": answers(0.5), "2": answers(0.2), "c": answers(0.5)})
    assert "2 corner tokens lower long-text retrieval by 30.0" in lower
    (same,) = said(50.0, 50.4, 50.0, **{"0": answers(0.5), "2": answers(0.504), "c": answers(0.5)})
    assert "2 corner tokens change (within the interval) long-text retrieval by 0.4" in same


def test_several_seeds_have_the_interval_of_a_paired_t_test():
    rng = np.random.default_rng(0)
    luck, gains = rng.normal(0, 5, 5), rng.normal(8, 1, 5)
    rows = [trial("0", 40 + luck[s], s) for s in range(5)] + [trial("2", 40 + luck[s] + gains[s], s) for s in range(5)]
    (line,) = verdict(CLAIM, "0", rows, METRICS, lambda run: pytest.fail("no queries are needed"))
    interval = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    assert f"raise long-text retrieval by {gains.mean():.1f} ± {(interval.high - interval.low) / 2:.1f} points" in line
    assert "over 5 seeds" in line


def test_without_a_row_or_a_file_the_verdict_says_less():
    (alone,) = said(20.0, 50.0, 50.0)
    assert alone.startswith(
        "Verdict: 2 corner tokens raise long-text retrieval by 30.0 points; the control raises it by 30.0"
    )
    assert "no interval" in alone
    assert verdict(CLAIM, "0", [trial("0", 20.0)], METRICS, lambda run: None) == []
    assert verdict(CLAIM, "0", [trial("0", 20.0), trial("2", 9.0, error="failed")], METRICS, lambda run: None) == []
    assert verdict(CLAIM, "0", [trial("0", 20.0), trial("2", 50.0)], [], lambda run: None) == []


def test_the_clustered_error_is_that_of_the_images():
    """Both directions of an image count as one draw: the error is that of the mean of each image's two differences."""
    rng = np.random.default_rng(1)
    n = 2_000
    image = rng.random(n)  # an image that is easy in one direction is easy in the other
    right = {name: [image + rng.normal(0, 0.2, n) < bar for _ in range(2)] for name, bar in (("a", 0.6), ("b", 0.4))}

    def table(name):
        query = pa.array(np.arange(n))
        return pa.concat_tables(
            pa.Table.from_arrays(
                [pa.array(["dci"] * n), pa.array([m] * n), query, query, pa.array(correct)], schema=SCHEMA
            )
            for m, correct in zip(("i2t_r1", "t2i_r1"), right[name], strict=True)
        )

    found = clustered_difference(table("a"), table("b"), METRICS)
    each = 100 * (np.mean(right["a"], axis=0) - np.mean(right["b"], axis=0))
    assert found.mean == pytest.approx(each.mean())
    assert found.error == pytest.approx(each.std() / math.sqrt(n))
    other = table("b").slice(1)
    assert math.isnan(clustered_difference(table("a"), other, METRICS).error)


def test_long_text_retrieval_is_r1_of_sets_with_long_texts():
    def one(name, task, view):
        return EvaluationSet(name, TASKS[task], "", 10, view, "hash")

    sets = [one("dci", "retrieval", LONG), one("coco", "retrieval", RAW), one("class", "classification", ())]
    assert long_text_retrieval(sets) == METRICS
