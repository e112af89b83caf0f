from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cornerstone.data.plan import MASKED, Plan, share_size
from cornerstone.errors import CornerstoneError

GROUPS = (4, 4, 4, 3, 4, 1)  # 20 rows
WORKERS = (1, 2, 3, 7)


def stream(plan: Plan, places: int) -> tuple[list[int], list[int]]:
    """Row ids and epochs of the first places, batch after batch."""
    rows, epochs = [], []
    for step in range(-(-places // plan.batch_size)):
        ids, passes = plan.batch(step)
        rows += ids.tolist()
        epochs += passes.tolist()
    return rows[:places], epochs[:places]


@st.composite
def plans(draw):
    groups = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=8)))
    limit = draw(st.none() | st.integers(1, sum(groups) + 5))
    rows = min(sum(groups), limit or sum(groups))
    return Plan(groups, draw(st.integers(1, rows)), draw(st.integers(0, 2**40)), limit)


@settings(deadline=None)
@given(plan=plans())
def test_an_epoch_holds_every_row_once(plan):
    rows, epochs = stream(plan, 4 * plan.rows)
    for epoch in range(4):
        part = slice(epoch * plan.rows, (epoch + 1) * plan.rows)
        assert Counter(rows[part]) == Counter(range(plan.rows))
        assert epochs[part] == [epoch] * plan.rows


@settings(deadline=None)
@given(plan=plans(), step=st.integers(0, 200))
def test_every_number_of_workers_sees_the_same_rows_in_the_same_order(plan, step):
    rows, epochs = plan.batch(step)
    for workers in WORKERS:
        shares = [plan.share(step, worker, workers) for worker in range(workers)]
        assert {len(ids) for ids, _ in shares} == {share_size(plan.batch_size, workers)}
        ids, passes = (np.concatenate(parts) for parts in zip(*shares, strict=True))
        assert ids[: plan.batch_size].tolist() == rows.tolist()
        assert passes[: plan.batch_size].tolist() == epochs.tolist()
        assert (ids[plan.batch_size :] == MASKED).all()


@settings(deadline=None)
@given(plan=plans(), steps=st.lists(st.integers(0, 500), min_size=1, max_size=6))
def test_a_batch_depends_on_its_step_alone(plan, steps):
    again = Plan(plan.row_groups, plan.batch_size, plan.seed, plan.limit_rows)
    asked = {step: [part.tolist() for part in plan.batch(step)] for step in steps}
    for step in reversed(steps):
        assert [part.tolist() for part in again.batch(step)] == asked[step]


def test_a_used_plan_travels_and_goes_on():
    plan = Plan(GROUPS, 6, seed=3)
    before = plan.batch(11)[0].tolist()
    assert pickle.loads(pickle.dumps(plan)).batch(11)[0].tolist() == before
    assert pickle.loads(pickle.dumps(plan)) == plan


def test_order_changes_by_epoch_and_by_seed():
    orders = [stream(Plan(GROUPS, 5, seed), 40)[0] for seed in (0, 1)]
    passes = [order[start : start + 20] for order in orders for start in (0, 20)]
    assert len({tuple(order) for order in passes}) == 4


def test_groups_and_the_rows_within_them_are_both_shuffled():
    starts = np.cumsum((0, *GROUPS))
    seen_groups, seen_within = set(), set()
    for epoch in range(6):
        rows = stream(Plan(GROUPS, 20, seed=0), 120)[0][epoch * 20 : (epoch + 1) * 20]
        groups = (np.searchsorted(starts, rows, side="right") - 1).tolist()
        visits = [group for i, group in enumerate(groups) if i == 0 or group != groups[i - 1]]
        assert sorted(visits) == list(range(len(GROUPS)))  # a group's rows stay together: each is read once
        seen_groups.add(tuple(visits))
        seen_within.add(tuple(row for row, group in zip(rows, groups, strict=True) if group == 0))
    assert len(seen_groups) == 6
    assert len(seen_within) > 1


def test_a_batch_may_lie_across_an_edge_between_epochs():
    plan = Plan(GROUPS, 8, seed=0)  # places 16 to 23 of epochs of 20
    rows, epochs = plan.batch(2)
    assert epochs.tolist() == [0] * 4 + [1] * 4
    first_pass = [row for step in range(3) for row in plan.batch(step)[0].tolist()][:20]
    assert Counter(first_pass) == Counter(range(20))
    assert rows[:4].tolist() == first_pass[16:]


@pytest.mark.parametrize("limit", [1, 4, 5, 12, 19])
def test_a_limit_keeps_the_first_rows(limit):
    plan = Plan(GROUPS, 1, seed=0, limit_rows=limit)
    assert plan.rows == limit
    assert Counter(stream(plan, 3 * limit)[0]) == Counter(dict.fromkeys(range(limit), 3))


def test_a_batch_as_large_as_the_data_is_the_data():
    rows, epochs = Plan(GROUPS, 20, seed=0).batch(5)
    assert Counter(rows.tolist()) == Counter(range(20))
    assert set(epochs.tolist()) == {5}


@pytest.mark.parametrize(("limit", "rows"), [(None, 20), (7, 7)])
def test_a_batch_above_the_rows_names_the_largest_that_fits(limit, rows):
    with pytest.raises(CornerstoneError, match=f"--recipe.optimization.batch-size to {rows} or less"):
        Plan(GROUPS, 21, seed=0, limit_rows=limit)
