"""Mirrored headers: the SDK's own rules, and every possible difference from the body."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mcp.shared import inbound

from gateway.calls import Call, Caller, Era
from gateway.eras import headers
from gateway.eras.headers import HeaderMismatch

texts = st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from([
    "=?base64?=",
    "=?base64??=",
    "=?base64?YQ==?=",
    "=?BASE64?YQ==?=",
    "tab\tinside",
    " edge",
    "",
])


@settings(deadline=None)  # a busy machine is not a failure
@given(texts)
def test_our_encoding_is_decoded_by_the_sdk(value: str) -> None:
    encoded = headers.encode_value(value)
    assert inbound.decode_header_value(encoded) == value
    assert headers.decode_value("Mcp-Name", encoded.encode("ascii")) == value
    assert encoded == encoded.strip()


@settings(deadline=None)  # a busy machine is not a failure
@given(texts)
def test_the_sdks_encoding_is_decoded_by_us(value: str) -> None:
    assert headers.decode_value("Mcp-Name", inbound.encode_header_value(value).encode("ascii")) == value


@settings(deadline=None)  # a busy machine is not a failure
@given(
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20)
    | st.text("AQYabz019+/=-_ ", max_size=8).map(lambda inner: f"=?base64?{inner}?=")
)
@example("=?base64?YR==?=")  # no encoder writes these trailing bits, so a comparison of texts would miss them
@example("=?base64?Y Q==?=")
def test_both_refuse_the_same_values(value: str) -> None:
    theirs = inbound.decode_header_value(value)
    try:
        ours = headers.decode_value("Mcp-Name", value.encode("ascii"))
    except HeaderMismatch:
        ours = None
    assert ours == theirs


@pytest.mark.parametrize("value", ["caf\xe9".encode("latin-1"), b"a\x00b", b"a\x7f", b"a\r\nb"])
def test_characters_invalid_in_headers_are_refused(value: bytes) -> None:
    with pytest.raises(HeaderMismatch, match="Mcp-Name"):
        headers.decode_value("Mcp-Name", value)


def call(name: str = "time.now") -> Call:
    caller = Caller(era=Era.MODERN, version="2026-07-28")
    return Call(method="tools/call", name=name, params={}, meta={}, caller=caller)


GOOD = {b"mcp-protocol-version": b"2026-07-28", b"mcp-method": b"tools/call", b"mcp-name": b"time.now"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({b"mcp-protocol-version": None}, "MCP-Protocol-Version header is required"),
        ({b"mcp-protocol-version": b"2025-11-25"}, "MCP-Protocol-Version header value '2025-11-25' does not match"),
        ({b"mcp-method": None}, "Mcp-Method header is required"),
        ({b"mcp-method": b"tools/CALL"}, "Mcp-Method header value 'tools/CALL' does not match"),
        ({b"mcp-method": b"=?base64?dG9vbHMvY2FsbA==?="}, "Mcp-Method header value"),  # only names may be encoded
        ({b"mcp-name": None}, "Mcp-Name header is required"),
        ({b"mcp-name": b""}, "Mcp-Name header value '' does not match"),
        ({b"mcp-name": b"time.Now"}, "Mcp-Name header value 'time.Now' does not match"),
        ({b"mcp-name": b"=?base64?????="}, "does not decode"),
    ],
)
def test_headers_that_differ_from_the_body_are_refused(change: dict[bytes, bytes | None], said: str) -> None:
    found = {name: value for name, value in {**GOOD, **change}.items() if value is not None}
    with pytest.raises(HeaderMismatch) as caught:
        headers.check(found, call())
    assert said in str(caught.value)


def test_headers_that_agree_pass() -> None:
    headers.check(GOOD, call())
    headers.check({**GOOD, b"mcp-name": b"=?base64?w6k=?="}, call("\xe9"))
    headers.check({**GOOD, b"mcp-name": b"=?base64?dGltZS5ub3c=?="}, call())  # encoding more than needed is fine
    nameless = Call(method="tools/list", name="", params={}, meta={}, caller=call().caller)
    headers.check({**GOOD, b"mcp-method": b"tools/list"}, nameless)


def test_mirrored_headers_are_taken_once_and_counted() -> None:
    pairs = [(b"host", b"x"), (b"host", b"y"), (b"mcp-name", b" \tx\t ")]
    assert headers.mirrored(pairs) == {b"mcp-name": b"x"}
    with pytest.raises(HeaderMismatch, match="mcp-name appears more than once"):
        headers.mirrored([*pairs, (b"mcp-name", b"x")])
    many = [(b"mcp-param-%d" % number, b"x") for number in range(headers.MAX_MIRRORED)]
    assert len(headers.mirrored(many)) == headers.MAX_MIRRORED
    with pytest.raises(HeaderMismatch, match="too many"):
        headers.mirrored([*many, (b"mcp-name", b"x")])
