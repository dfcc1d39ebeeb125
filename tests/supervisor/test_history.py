"""The statistics of one backend's calls."""

from __future__ import annotations

import trio

from gateway.calls import Era, Failure
from gateway.masking import SECRETS
from gateway.supervisor.history import MAX_TEXT, MAX_TIMES, CallStats, Latency
from tests.support.fakes import make_pending


async def test_durations_are_kept_by_tool() -> None:
    stats = CallStats()
    assert stats.latency_by_tool() == {}
    for tool, seconds in (("quick", 0.001), ("slow", 2.0), ("quick", 0.003)):
        stats.ended(make_pending(tool), seconds)
    stats.ended(make_pending("file:///x", method="resources/read"), 9.0)
    assert stats.latency_by_tool() == {"quick": Latency(2, 3.0, 3.0, 3.0, 3.0), "slow": Latency(1, *[2000.0] * 4)}
    assert stats.latency().calls == 4
    await trio.lowlevel.checkpoint()


async def test_only_the_latest_durations_are_kept() -> None:
    stats = CallStats()
    for number in range(MAX_TIMES + 2):
        stats.ended(make_pending("old" if number < 2 else "new"), 0.001)
    assert {tool: found.calls for tool, found in stats.latency_by_tool().items()} == {"new": MAX_TIMES}
    await trio.lowlevel.checkpoint()


async def test_errors_keep_little_of_what_a_client_called() -> None:
    stats = CallStats()
    pending = make_pending("memo://" + "x" * 1_000_000, method="resources/read")
    pending.finish(Failure(-32002, "y" * 1_000_000, None, Era.LEGACY))
    stats.ended(pending, 0.001)
    (kept,) = stats.errors
    assert kept.call is not None
    assert (len(kept.call), kept.call[:7]) == (MAX_TEXT + len("..."), "memo://")
    assert len(kept.error) == MAX_TEXT + len("...")
    await trio.lowlevel.checkpoint()


async def test_a_long_text_is_cut_before_it_is_masked() -> None:
    """The cost of masking grows with the parts of a text that resemble a secret."""
    holder, secret = object(), "github_pat_0123456789"
    SECRETS.hold(holder, [secret])
    try:
        stats = CallStats()
        pending = make_pending("github" * 1_000_000, method="resources/read")
        pending.finish(Failure(-32002, f"{secret} {'github' * 1_000_000}", None, Era.LEGACY))
        with trio.fail_after(5):
            stats.ended(pending, 0.001)
            await trio.lowlevel.checkpoint()
        assert secret not in stats.errors[0].error
    finally:
        SECRETS.release(holder)
