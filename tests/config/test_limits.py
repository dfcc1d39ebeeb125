"""The limits of a server: short forms, and messages for invalid ones."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.config import AuditSettings, CircuitBreaker, CrashLimit, RateLimit, parse_config, parse_server
from gateway.errors import ConfigError


@pytest.mark.parametrize(
    ("fields", "limits"),
    [
        ({}, (None, None, {})),
        ({"rate_limit": 5}, (RateLimit(5.0, 10), None, {})),
        ({"rate_limit": "${RATE}"}, (RateLimit(2.5, 10), None, {})),
        ({"rate_limit": {"per_second": 0.5, "burst": 1}}, (RateLimit(0.5, 1), None, {})),
        ({"circuit_breaker": True}, (None, CircuitBreaker(5, 30.0), {})),
        ({"circuit_breaker": False}, (None, None, {})),
        ({"circuit_breaker": {"failures": 2}}, (None, CircuitBreaker(2, 30.0), {})),
        ({"tool_timeouts": {"build_*": 600, "x": 1.5}}, (None, None, {"build_*": 600.0, "x": 1.5})),
    ],
)
def test_limits(fields: dict[str, object], limits: tuple[object, ...]) -> None:
    server = parse_server("s", {"command": "x", **fields}, environ={"RATE": "2.5"})
    assert (server.rate_limit, server.circuit_breaker, server.tool_timeouts) == limits


@pytest.mark.parametrize(
    ("fields", "named", "wanted"),
    [
        ({"rate_limit": 0}, "'rate_limit'", "above 0"),
        ({"rate_limit": "5"}, "'rate_limit'", "without quotes"),
        ({"rate_limit": [5]}, "'rate_limit'", "not a list"),
        ({"rate_limit": {"burst": 5}}, "'rate_limit'", "needs 'per_second'"),
        ({"rate_limit": {"per_second": 1, "burst": 0}}, "'rate_limit.burst'", "at least 1"),
        ({"circuit_breaker": 5}, "'circuit_breaker'", "an object, true or false"),
        ({"crash_limit": 5}, "'crash_limit'", "an object, true or false"),
        ({"crash_limit": {"crashes": 0}}, "'crash_limit.crashes'", "at least 1"),
        ({"circuit_breaker": {"open_for": -1}}, "'circuit_breaker.open_for'", "above 0"),
        ({"tool_timeouts": 5}, "'tool_timeouts'", "an object of seconds"),
        ({"tool_timeouts": {"a": "long"}}, "'tool_timeouts.a'", "a number of seconds"),
        ({"ping_interval": 0}, "'ping_interval'", "above 0"),
        ({"max_call_time": "x"}, "'max_call_time'", "a number of seconds"),
        ({"retry": "yes"}, "'retry'", "true or false"),
        ({"required": 1}, "'required'", "true or false"),
    ],
)
def test_wrong_limits_are_named(fields: dict[str, object], named: str, wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_server("s", {"command": "x", **fields}, environ={})
    (problem,) = caught.value.problems
    assert named in problem
    assert wanted in problem


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (True, AuditSettings()),
        (False, None),
        (None, None),
        ({}, AuditSettings()),
        ({"file": "/var/log/calls", "arguments": True}, AuditSettings("/var/log/calls", arguments=True)),
    ],
)
def test_audit_has_short_forms(given: object, expected: AuditSettings | None) -> None:
    assert parse_config({"mcpServers": {}, "gateway": {"audit": given}}, environ={}).gateway.audit == expected


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("yes", "gateway: field 'audit' must be an object, true or false, not a string"),
        ({"arguments": 1}, "gateway: field 'audit.arguments' must be true or false, not a number"),
        ({"file": ""}, "gateway: field 'audit.file' must not be empty"),
    ],
)
def test_invalid_audit_settings_are_refused(given: object, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"mcpServers": {}, "gateway": {"audit": given}}, environ={})
    assert caught.value.problems == (problem,)


@pytest.mark.parametrize(
    ("said", "limit"),
    [
        ({}, CrashLimit(3, 600.0)),
        ({"crash_limit": True}, CrashLimit(3, 600.0)),
        ({"crash_limit": False}, None),
        ({"crash_limit": {"crashes": 1, "within": 5}}, CrashLimit(1, 5.0)),
    ],
)
def test_the_crash_limit_applies_unless_disabled(said: Any, limit: CrashLimit | None) -> None:
    assert parse_server("s", {"command": "x", **said}, environ={}).crash_limit == limit
