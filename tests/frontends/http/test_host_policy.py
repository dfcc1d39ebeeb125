"""Host and Origin checks of the HTTP frontend: a table of values, hostile pages included."""

from __future__ import annotations

import pytest

from gateway.frontends.http.host_policy import REMEMBERED, HostPolicy

LOOPBACK = "127.0.0.1"


@pytest.mark.parametrize(
    ("bound", "host", "ours"),
    [
        (LOOPBACK, b"127.0.0.1:8000", True),
        (LOOPBACK, b"127.0.0.1", True),
        (LOOPBACK, b"localhost:8000", True),
        (LOOPBACK, b"LocalHost", True),
        (LOOPBACK, b"[::1]:8000", True),
        (LOOPBACK, b"evil.example", False),  # DNS rebinding
        (LOOPBACK, b"localhost.evil.example", False),
        (LOOPBACK, b"evil.example:127.0.0.1", False),
        (LOOPBACK, b"localhost:port", False),
        (LOOPBACK, b"user@localhost", False),
        (LOOPBACK, b"evil.example@localhost", False),
        (LOOPBACK, b"localhost/x", False),
        (LOOPBACK, b"localhost?x", False),
        (LOOPBACK, b"localhost\\evil.example", False),
        (LOOPBACK, b"[::1", False),
        (LOOPBACK, b"", False),
        (LOOPBACK, b"\xff", False),
        (LOOPBACK, b"192.168.0.7", False),
        ("192.168.0.7", b"192.168.0.7:80", True),
        ("Gateway.Example", b"gateway.example", True),
        ("192.168.0.7", b"192.168.0.8", False),
        ("0.0.0.0", b"any.example", True),
        ("::", b"any.example", True),
        ("", b"any.example", True),
    ],
)
def test_hosts(bound: str, host: bytes, ours: bool) -> None:
    refusal = HostPolicy(bound).refusal({b"host": host})
    assert (refusal is None) is ours
    if refusal is not None:
        assert repr(host.decode("latin-1")) in refusal.text
        assert "access.allow_hosts" in refusal.text


@pytest.mark.parametrize("bound", [LOOPBACK, "0.0.0.0"])
@pytest.mark.parametrize(
    ("origin", "ours"),
    [
        (b"http://localhost:6274", True),
        (b"https://127.0.0.1", True),
        (b"http://[::1]:1", True),
        (b"http://evil.example", False),
        (b"https://localhost.evil.example", False),
        (b"null", False),  # a sandboxed frame, a file
        (b"", False),
        (b"file://", False),
        (b"chrome-extension://localhost", False),
        (b"http://localhost@evil.example", False),
        (b"http://localhost/path", False),
        (b"localhost", False),
    ],
)
def test_origins(bound: str, origin: bytes, ours: bool) -> None:
    refusal = HostPolicy(bound).refusal({b"host": b"localhost", b"origin": origin})
    assert (refusal is None) is ours
    if refusal is not None:
        assert repr(origin.decode("latin-1")) in refusal.text
        assert "access.allow_origins" in refusal.text


def test_only_the_host_header_is_required() -> None:
    assert HostPolicy(LOOPBACK).refusal({}) is not None
    assert HostPolicy(LOOPBACK).refusal({b"host": b"localhost"}) is None


def test_a_refusal_quotes_a_bounded_part() -> None:
    refusal = HostPolicy(LOOPBACK).refusal({b"host": b"x" * 10_000})
    assert refusal is not None
    assert len(refusal.text) < 300


def test_cached_verdicts_are_bounded() -> None:
    policy = HostPolicy(LOOPBACK)
    for number in range(3 * REMEMBERED):
        policy.refusal({b"host": b"%d.example" % number})
    info = policy.host_is_ours.cache_info()  # type: ignore[attr-defined]
    assert info.currsize == REMEMBERED
