"""Trace context from and to headers and `_meta`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import jsonrpc
from gateway.tracing import trace_context
from gateway.tracing.trace_context import TraceContext

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
VALID = f"00-{TRACE}-{SPAN}-01"


def hexadecimal(size: int) -> st.SearchStrategy[str]:
    return st.binary(min_size=size, max_size=size).filter(any).map(bytes.hex)


@given(hexadecimal(16), hexadecimal(8), st.integers(0, 255))
def test_every_valid_traceparent_is_read(trace_id: str, span_id: str, flags: int) -> None:
    found = trace_context.parse(f"00-{trace_id}-{span_id}-{flags:02x}")
    assert found == TraceContext(trace_id, span_id, flags)
    assert found.keys() == {"traceparent": f"00-{trace_id}-{span_id}-{flags:02x}"}


@given(st.text())
def test_no_text_breaks_the_reader(text: str) -> None:
    assert trace_context.parse(text) is None


@pytest.mark.parametrize(
    "traceparent",
    [
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        VALID.upper(),
        VALID + "\n",
        f"{VALID} ",
    ],
)
def test_invalid_traceparent_is_ignored(traceparent: str) -> None:
    assert trace_context.parse(traceparent) is None


def test_later_version_may_have_more_fields() -> None:
    assert trace_context.parse(f"01-{TRACE}-{SPAN}-01-more") == TraceContext(TRACE, SPAN, 1)


@pytest.mark.parametrize("state", ["a=\r\nb", "a=\u00fc", "a" * (trace_context.MAX_STATE + 1)])
def test_state_that_no_header_may_carry_is_dropped(state: str) -> None:
    assert trace_context.parse(VALID, state, state) == TraceContext(TRACE, SPAN, 1)


@pytest.mark.parametrize("value", [1, None, {}, ["a"], "", "00-a-b-01"])
def test_other_forms_in_meta_are_ignored(value: object) -> None:
    assert trace_context.from_meta({"traceparent": jsonrpc.raw(value)}) is None


def test_meta_and_headers_give_the_same_context() -> None:
    given_keys = {"traceparent": VALID, "tracestate": "a=1,b=2", "baggage": "k=v;p=1"}
    of_meta = trace_context.from_meta({name: jsonrpc.raw(value) for name, value in given_keys.items()})
    of_headers = trace_context.from_headers({name.encode(): value.encode() for name, value in given_keys.items()})
    assert of_meta == of_headers
    assert of_meta is not None
    assert of_meta.keys() == given_keys


def test_child_has_a_new_id_in_the_same_trace() -> None:
    parent = TraceContext(TRACE, SPAN, 3, "a=1", "k=v")
    child = parent.child(sampled=False)
    assert child.span_id != SPAN
    assert child == TraceContext(TRACE, child.span_id, 2, "a=1", "k=v")
