"""The total buffer bound of many connections: eviction, and accounting afterwards."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.budget import Budget, Share


class Holder:
    """A connection that ends at the test's command, or once it is closed."""

    def __init__(self, budget: Budget, *, ends_at_once: bool = True) -> None:
        self.closed = 0
        self.ends_at_once = ends_at_once
        self.share = Share(budget, self.close)

    def close(self) -> None:
        self.closed += 1
        if self.ends_at_once:
            self.share.release()


def sizes(holders: list[Holder]) -> list[int]:
    return [holder.share.size for holder in holders]


def test_within_the_bound_none_is_closed() -> None:
    budget = Budget(100)
    holders = [Holder(budget), Holder(budget)]
    holders[0].share.add(60)
    holders[1].share.add(40)
    holders[0].share.remove(10)
    assert (budget.used, budget.is_exceeded, sizes(holders)) == (90, False, [50, 40])
    assert [holder.closed for holder in holders] == [0, 0]


def test_the_largest_are_closed_until_the_rest_fits() -> None:
    budget = Budget(100)
    holders = [Holder(budget) for _ in range(4)]
    for holder, size in zip(holders, (30, 40, 20, 85), strict=True):
        holder.share.add(size)
    assert [holder.closed for holder in holders] == [0, 0, 0, 1]
    holders[2].share.add(75)
    assert [holder.closed for holder in holders] == [0, 0, 1, 1]
    assert (budget.used, sizes(holders)) == (70, [30, 40, 0, 0])


def test_the_oldest_of_equal_shares_is_closed() -> None:
    budget = Budget(100)
    holders = [Holder(budget) for _ in range(2)]
    holders[0].share.add(30)
    holders[1].share.add(60)
    holders[0].share.remove(30)
    holders[0].share.add(60)
    assert [holder.closed for holder in holders] == [0, 1]


def test_a_closed_share_counts_until_it_is_released() -> None:
    budget = Budget(100)
    slow, other = Holder(budget, ends_at_once=False), Holder(budget)
    slow.share.add(101)
    assert (budget.is_exceeded, slow.closed) == (True, 1)
    other.share.add(100)
    slow.share.add(1)
    assert (budget.is_exceeded, slow.closed, other.closed) == (True, 1, 0)
    slow.share.release()
    slow.share.release()
    assert (budget.is_exceeded, budget.used) == (False, 100)


def test_a_failed_close_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    budget = Budget(100)

    def fail() -> None:
        raise ZeroDivisionError

    Share(budget, fail).add(101)
    assert "because of a bug" in caplog.text


@given(st.randoms(use_true_random=False), st.integers(1, 300))
def test_whatever_happens_the_sum_is_within_the_bound(source: random.Random, most: int) -> None:
    budget = Budget(most)
    holders = [Holder(budget) for _ in range(8)]
    for _ in range(200):
        holders = [Holder(budget) if holder.closed else holder for holder in holders]
        holder = source.choice(holders)
        if source.random() < 0.6:
            holder.share.add(source.randint(0, 80))
        else:
            holder.share.remove(source.randint(0, holder.share.size))
        assert budget.used == sum(sizes(holders)) <= most
    for holder in holders:
        holder.share.release()
    assert budget.used == 0
