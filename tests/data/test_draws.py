from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cornerstone.data import draws

ALL = 2**64 - 1


def reference(seed, purpose, *parts):
    """splitmix64's mixer, a component at a time, on Python's whole numbers."""

    def mix(x):
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & ALL
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & ALL
        return x ^ (x >> 31)

    golden = 0x9E3779B97F4A7C15
    state = mix((seed & ALL) + golden & ALL)
    state = mix(state ^ zlib.crc32(purpose.encode()))
    for part in parts:
        state = mix((state + golden + (part & ALL) * golden) & ALL)
    return state


whole = st.integers(-(2**62), 2**62)


@settings(deadline=None)
@given(
    seed=st.integers(-(2**70), 2**70),
    purpose=st.sampled_from(["", "crop", "größe"]),
    parts=st.lists(whole, min_size=1, max_size=3),
)
def test_the_hash_is_splitmix_whatever_numpy_does(seed, purpose, parts):
    assert draws.hashed(seed, purpose, *parts).tolist() == [reference(seed, purpose, *parts)]


@settings(deadline=None)
@given(rows=st.lists(st.integers(0, 10**9), min_size=1, max_size=20), seed=st.integers(0, 2**32))
def test_a_draw_is_the_same_alone_and_in_any_block(rows, seed):
    epochs = [row % 3 for row in rows]
    block = draws.uniform(seed, "crop", epochs, rows)
    alone = [draws.uniform(seed, "crop", epoch, row)[0] for epoch, row in zip(epochs, rows, strict=True)]
    assert block.tolist() == alone
    assert draws.uniform(seed, "crop", epochs[::-1], rows[::-1]).tolist() == alone[::-1]


def test_seed_purpose_epoch_and_row_each_change_the_draw():
    base = draws.uniform(0, "crop", 0, np.arange(100))
    for other in (
        draws.uniform(1, "crop", 0, np.arange(100)),
        draws.uniform(0, "captioner", 0, np.arange(100)),
        draws.uniform(0, "crop", 1, np.arange(100)),
        draws.uniform(0, "crop", 0, np.arange(100, 200)),
    ):
        assert not np.isin(other, base).any()


@pytest.mark.parametrize(
    "numbers",
    [
        draws.uniform(0, "crop", 0, np.arange(20_000)),  # rows of an epoch
        draws.uniform(0, "crop", np.arange(20_000), 7),  # a row's epochs
        np.concatenate([draws.uniform(seed, "crop", 3, 7) for seed in range(4_000)]),
    ],
    ids=["rows", "epochs", "seeds"],
)
def test_draws_are_uniform_and_unrelated_to_their_neighbours(numbers):
    counts, _ = np.histogram(numbers, bins=20, range=(0, 1))
    assert stats.chisquare(counts).pvalue > 1e-3
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 4 / np.sqrt(len(numbers))
    assert numbers.min() >= 0
    assert numbers.max() < 1


def test_choices_take_every_value_equally_often():
    found = draws.choice(3, 0, "captioner", 0, np.arange(9_000))
    assert stats.chisquare(np.bincount(found, minlength=3)).pvalue > 1e-3
    of_their_own = draws.choice(np.array([1, 2, 3, 1000]), 0, "first", 0, np.arange(4))
    assert (of_their_own < [1, 2, 3, 1000]).all()


def test_a_permutation_holds_every_place_once_and_favours_none():
    orders = [draws.permutation(5, 0, "rows", epoch) for epoch in range(2_000)]
    assert all(sorted(order.tolist()) == list(range(5)) for order in orders)
    firsts = np.bincount([order[0] for order in orders], minlength=5)
    assert stats.chisquare(firsts).pvalue > 1e-3
    assert draws.permutation(5, 0, "rows", 3).tolist() == orders[3].tolist()


def test_a_generator_belongs_to_its_sample():
    def numbers(seed, row):
        return draws.generator(seed, "noise", row).random(3).tolist()

    assert numbers(0, 5) == numbers(0, 5)
    assert numbers(0, 5) != numbers(0, 6)
    assert numbers(0, 5) != numbers(1, 5)
