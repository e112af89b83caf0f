from __future__ import annotations

import pickle
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cornerstone.data.plan import MASKED, WINDOW, Part, Plan, share_size
from cornerstone.errors import CornerstoneError

GROUPS = (4, 4, 4, 3, 4, 1)  # 20 rows
ONE = (Part((GROUPS,)),)
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
    sizes = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)
    shards = tuple(draw(st.lists(sizes, min_size=1, max_size=5)))
    groups = [rows for shard in shards for rows in shard]
    limit = draw(st.none() | st.integers(1, sum(groups) + 5))
    rows = min(sum(groups), limit or sum(groups))
    return Plan((Part(shards),), draw(st.integers(1, rows)), draw(st.integers(0, 2**40)), limit)


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
    again = Plan(plan.parts, plan.batch_size, plan.seed, plan.limit_rows)
    asked = {step: [part.tolist() for part in plan.batch(step)] for step in steps}
    for step in reversed(steps):
        assert [part.tolist() for part in again.batch(step)] == asked[step]


def test_a_used_plan_travels_and_goes_on():
    plan = Plan(ONE, 6, seed=3)
    before = plan.batch(11)[0].tolist()
    assert pickle.loads(pickle.dumps(plan)).batch(11)[0].tolist() == before
    assert pickle.loads(pickle.dumps(plan)) == plan


def test_order_changes_by_epoch_and_by_seed():
    orders = [stream(Plan(ONE, 5, seed), 40)[0] for seed in (0, 1)]
    passes = [order[start : start + 20] for order in orders for start in (0, 20)]
    assert len({tuple(order) for order in passes}) == 4


def test_groups_and_the_rows_within_them_are_both_shuffled():
    starts = np.cumsum((0, *GROUPS))
    seen_groups, seen_within = set(), set()
    for epoch in range(6):
        rows = stream(Plan(ONE, 20, seed=0), 120)[0][epoch * 20 : (epoch + 1) * 20]
        groups = (np.searchsorted(starts, rows, side="right") - 1).tolist()
        visits = [group for i, group in enumerate(groups) if i == 0 or group != groups[i - 1]]
        assert sorted(visits) == list(range(len(GROUPS)))  # a group's rows stay together: each is read once
        seen_groups.add(tuple(visits))
        seen_within.add(tuple(row for row, group in zip(rows, groups, strict=True) if group == 0))
    assert len(seen_groups) == 6
    assert len(seen_within) > 1


def test_a_batch_may_lie_across_an_edge_between_epochs():
    plan = Plan(ONE, 8, seed=0)  # places 16 to 23 of epochs of 20
    rows, epochs = plan.batch(2)
    assert epochs.tolist() == [0] * 4 + [1] * 4
    first_pass = [row for step in range(3) for row in plan.batch(step)[0].tolist()][:20]
    assert Counter(first_pass) == Counter(range(20))
    assert rows[:4].tolist() == first_pass[16:]


@pytest.mark.parametrize("limit", [1, 4, 5, 12, 19])
def test_a_limit_keeps_the_first_rows(limit):
    plan = Plan(ONE, 1, seed=0, limit_rows=limit)
    assert plan.rows == limit
    assert Counter(stream(plan, 3 * limit)[0]) == Counter(dict.fromkeys(range(limit), 3))


def test_a_batch_as_large_as_the_data_is_the_data():
    rows, epochs = Plan(ONE, 20, seed=0).batch(5)
    assert Counter(rows.tolist()) == Counter(range(20))
    assert set(epochs.tolist()) == {5}


@pytest.mark.parametrize(("limit", "rows"), [(None, 20), (7, 7)])
def test_a_batch_above_the_rows_names_the_largest_that_fits(limit, rows):
    with pytest.raises(CornerstoneError, match=f"--recipe.optimization.batch-size to {rows} or less"):
        Plan(ONE, 21, seed=0, limit_rows=limit)


SMALL, LARGE = Part(((3, 4), (4, 1)), Fraction(2)), Part(((8, 8, 8), (8,), (7, 1)), Fraction(1, 2))
"""12 rows passed over twice while half of 40 are: 24 and 20 of 44 rows."""


def test_a_mixture_passes_over_each_data_set_as_often_as_its_weight_says():
    plan = Plan((SMALL, LARGE), 11, seed=5)
    assert (plan.rows, plan.offsets.tolist()) == (44, [0, 12])
    rows, epochs = stream(plan, 44 * 20)
    seen = {"small": [], "large": []}
    for row, epoch in zip(rows, epochs, strict=True):
        seen["small" if row < 12 else "large"].append((epoch, row))
    assert [len(own) for own in seen.values()] == [24 * 20, 20 * 20]
    for own, ids in zip(seen.values(), (range(12), range(12, 52)), strict=True):
        for number, start in enumerate(
            range(0, len(own), len(ids))
        ):  # each pass has every row once, and its own number
            assert Counter(own[start : start + len(ids)]) == Counter((number, row) for row in ids)


def test_every_batch_has_the_mixtures_composition_and_so_has_every_share():
    plan = Plan((Part(((50,) * 20,)), Part(((50,) * 20,), Fraction(1, 4))), 40, seed=0)
    for step in range(30):
        assert sum(plan.batch(step)[0] < 1000) == 32
        for worker in range(4):
            assert sum(plan.share(step, worker, 4)[0] < 1000) == 8


@settings(deadline=None)
@given(data=st.data(), step=st.integers(0, 300))
def test_a_mixtures_places_are_the_same_for_every_number_of_workers(data, step):
    sizes = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple), min_size=1, max_size=4).map(tuple)
    weights = st.sampled_from([Fraction(1), Fraction(1, 2), Fraction(7, 3)])
    parts = tuple(data.draw(st.lists(st.builds(Part, sizes, weights), min_size=1, max_size=4)))
    try:
        plan = Plan(parts, data.draw(st.integers(1, 30)), 7)
    except CornerstoneError:
        return
    rows, epochs = plan.batch(step)
    for workers in WORKERS:
        ids, passes = zip(*(plan.share(step, worker, workers) for worker in range(workers)), strict=True)
        assert np.concatenate(ids)[: plan.batch_size].tolist() == rows.tolist()
        assert np.concatenate(passes)[: plan.batch_size].tolist() == epochs.tolist()
    sizes = [sum(map(sum, part.shards)) for part in parts]
    seen = [Counter() for _ in parts]
    for row, epoch in zip(*map(list, stream(plan, plan.batch_size * 12)), strict=True):
        seen[int(np.searchsorted(np.cumsum(sizes), row, side="right"))][row, epoch] += 1
    assert all(count == 1 for own in seen for count in own.values())  # nothing twice in a pass
    for own, size in zip(seen, sizes, strict=True):
        passes = Counter(epoch for _, epoch in own)
        assert all(
            passes[epoch] == size for epoch in range(max(passes, default=0))
        )  # a pass ends before the next begins


def test_the_first_data_set_keeps_its_order_in_a_mixture():
    alone = stream(Plan((SMALL,), 6, seed=3), 36)[0]
    mixed = stream(Plan((SMALL, LARGE), 11, seed=3), 110)[0]
    assert [row for row in mixed if row < 12][:36] == alone


def test_a_batch_that_a_small_member_cannot_fill_is_refused():
    with pytest.raises(CornerstoneError, match="larger than the 22 rows that the mixture has before it repeats one"):
        Plan((SMALL, LARGE), 23, seed=0)
    with pytest.raises(CornerstoneError, match="too small for a mixture of 3"):
        Plan((SMALL, SMALL, SMALL), 2, seed=0)


def test_a_limit_keeps_the_same_share_of_every_member():
    plan = Plan((Part(SMALL.shards), Part(LARGE.shards)), 5, seed=0, limit_rows=26)
    rows = stream(plan, 5 * 26)[0]
    assert Counter(rows) == dict.fromkeys([*range(6), *range(12, 32)], 5)


def test_many_shards_are_shuffled_in_windows_and_any_place_is_planned_by_itself():
    plan = Plan((Part(((2, 1),) * 200),), 37, seed=1)
    rows, _ = stream(plan, 1200)
    for start in (0, 600):
        assert Counter(rows[start : start + 600]) == Counter(range(600))
    assert rows[:600] != rows[600:]
    shards = [row // 3 for row in rows[:192]]  # the first window: all rows of 64 shards, in no order of theirs
    assert len(set(shards)) == WINDOW
    assert len(set(shards[:40])) > 20
    assert Plan(plan.parts, 37, seed=1).batch(25)[0].tolist() == rows[25 * 37 : 26 * 37]


def test_a_billion_rows_are_planned_from_any_step():
    plan = Plan((Part(((64,) * 156 + (16,),) * 100_000),), 65_536, seed=0)
    assert plan.rows == 1_000_000_000
    assert len(pickle.dumps(plan)) < 10**6
    step = 7_629  # the middle of the first pass
    share, epochs = plan.share(step, 511, 1024)
    assert len(set(share.tolist())) == 64
    assert set(epochs.tolist()) == {0}
    (across, _), edge = plan.batch(15_258), plan.batch(15_258)[1]  # 1e9 / 65,536 = 15,258.8
    assert Counter(edge.tolist()) == {0: 10**9 - 15_258 * 65_536, 1: 15_259 * 65_536 - 10**9}
    assert across.max() < 10**9
