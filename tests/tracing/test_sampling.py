"""The samplers that `OTEL_TRACES_SAMPLER` names."""

from __future__ import annotations

import pytest

from gateway.tracing.sampling import Sampler
from gateway.tracing.trace_context import TraceContext

LOW, HIGH = "0" * 31 + "1", "f" * 32
"""Trace ids that every share above 0 takes, and that only the whole takes."""


@pytest.mark.parametrize(
    ("name", "argument", "root", "sampled", "unsampled"),
    [
        ("always_on", "", True, True, True),
        ("always_off", "", False, False, False),
        ("traceidratio", "0", False, False, False),
        ("traceidratio", "1", True, True, True),
        ("traceidratio", "", True, True, True),
        ("parentbased_always_on", "", True, True, False),
        ("parentbased_always_off", "", False, True, False),
        ("parentbased_traceidratio", "0.0", False, True, False),
    ],
)
def test_decision_of_each_sampler(name: str, argument: str, *, root: bool, sampled: bool, unsampled: bool) -> None:
    sampler = Sampler.named(name, argument)
    assert sampler.begin(None).is_sampled is root
    assert sampler.begin(TraceContext(HIGH, "1" * 16, 1)).is_sampled is sampled
    assert sampler.begin(TraceContext(HIGH, "1" * 16, 0)).is_sampled is unsampled


def test_share_depends_on_the_trace_alone() -> None:
    sampler = Sampler.named("traceidratio", "0.5")
    assert sampler.begin(TraceContext(LOW, "1" * 16, 0)).is_sampled
    assert not sampler.begin(TraceContext(HIGH, "1" * 16, 1)).is_sampled


@pytest.mark.parametrize(
    ("name", "argument"), [("other", ""), ("traceidratio", "x"), ("traceidratio", "2"), ("parentbased_", "")]
)
def test_unknown_sampler_is_refused(name: str, argument: str) -> None:
    with pytest.raises(ValueError, match=r"sampler|share|float"):
        Sampler.named(name, argument)
