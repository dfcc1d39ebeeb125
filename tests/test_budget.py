"""The bound of all buffers together: eviction, refusal, and accounting afterwards."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.budget import MAX_BUFFERED_BYTES, SMALL_BYTES, Budget, Intake, Share
from gateway.config.model import GatewaySettings


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


def test_the_default_bound_is_the_config_default() -> None:
    assert GatewaySettings().max_buffered_bytes == MAX_BUFFERED_BYTES


@pytest.mark.parametrize(
    ("held", "unread", "count", "evict", "fits", "closed"),
    [
        (50, 40, 10, False, True, 0),
        (50, 40, 11, False, False, 0),
        (50, 40, 11, True, True, 1),
        (50, 40, 51, True, False, 0),  # closing a connection would not help
    ],
)
def test_bytes_without_a_connection_are_kept_if_they_fit(
    *, held: int, unread: int, count: int, evict: bool, fits: bool, closed: int
) -> None:
    budget = Budget(100)
    assert budget.hold(held)
    holder = Holder(budget)
    holder.share.add(unread)
    assert budget.hold(count, evict=evict) is fits
    assert holder.closed == closed
    assert budget.used == held + (count if fits else 0) + holder.share.size
    assert budget.unsent == holder.share.size


def test_an_intake_counts_all_but_a_small_rest() -> None:
    budget = Budget(4 * SMALL_BYTES)
    one, other = Intake(budget, evict=True), Intake(budget, evict=True)
    for size in range(0, 3 * SMALL_BYTES, 1_000):
        assert one.fits(size)
        assert size - SMALL_BYTES <= budget.used <= size
    assert not other.fits(3 * SMALL_BYTES)
    assert one.fits(SMALL_BYTES)
    assert budget.used == SMALL_BYTES
    assert other.fits(3 * SMALL_BYTES)
    for _ in range(2):
        one.release()
        other.release()
    assert budget.used == 0


@given(st.randoms(use_true_random=False), st.integers(1, 300))
def test_whatever_happens_the_sum_is_within_the_bound(source: random.Random, most: int) -> None:
    budget = Budget(most)
    holders = [Holder(budget) for _ in range(8)]
    held = 0
    for _ in range(200):
        holders = [Holder(budget) if holder.closed else holder for holder in holders]
        holder = source.choice(holders)
        match source.randrange(4):
            case 0 | 1:
                holder.share.add(source.randint(0, 80))
            case 2:
                holder.share.remove(source.randint(0, holder.share.size))
            case _ if held and source.random() < 0.5:
                budget.used -= held
                held = 0
            case _:
                count = source.randint(0, 80)
                held += count if budget.hold(count, evict=source.random() < 0.5) else 0
        assert budget.used == held + sum(sizes(holders)) <= most
    for holder in holders:
        holder.share.release()
    assert budget.used == held
