"""Sealed tokens: opened only by their principal, for their request, until they expire."""

from __future__ import annotations

import base64
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import jsonrpc
from gateway.calls import Call, Caller, Era
from gateway.errors import InvalidParams
from gateway.frontends.modern.request_state import LIFETIME, MAX_TOKEN, RequestStateCodec, digest_of

KEY, OTHER_KEY = b"k" * 32, b"o" * 32


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def call_of(
    arguments: str = '{"a":1,"b":2}',
    *,
    name: str = "s.ask",
    method: str = "tools/call",
    principal: str | None = None,
    **more: Any,
) -> Call:
    params = {"name": jsonrpc.raw(name), "arguments": msgspec.Raw(arguments.encode())}
    params |= {key: jsonrpc.raw(value) for key, value in more.items()}
    caller = Caller(era=Era.MODERN, version="2026-07-28", principal=principal)
    return Call(method=method, name=name, params=params, meta={}, caller=caller)


def refused(sealer: RequestStateCodec, call: Call, token: str) -> str:
    with pytest.raises(InvalidParams) as caught:
        sealer.decode(call, token)
    return str(caught.value)


def test_sealed_state_can_be_opened() -> None:
    sealer = RequestStateCodec()
    inner = jsonrpc.raw("the backend's own \u00e9\u0000")
    state = sealer.decode(call_of(), sealer.encode(call_of(), parked="p", backend="b", inner=inner))
    assert (state.parked, state.backend, bytes(state.inner)) == ("p", "b", bytes(inner))
    assert sealer.decode(call_of(), sealer.encode(call_of())).inner is jsonrpc.ABSENT


def test_tokens_are_unique_and_reveal_nothing() -> None:
    sealer = RequestStateCodec()
    tokens = [sealer.encode(call_of(), parked="the-key") for _ in range(3)]
    assert len(set(tokens)) == 3
    assert not any(b"the-key" in base64.urlsafe_b64decode(token) for token in tokens)


def test_a_retry_may_be_written_otherwise() -> None:
    sealer = RequestStateCodec()
    token = sealer.encode(call_of())
    retry = call_of('{ "b": 2, "a": 1 }', inputResponses={"input-1": {}}, requestState=token)
    sealer.decode(retry, token)


@pytest.mark.parametrize(
    "other",
    [
        call_of('{"a":1,"b":3}'),
        call_of('{"a":1}'),
        call_of('{"a":1,"b":"2"}'),
        call_of(name="s.other"),
        call_of(method="prompts/get"),
        call_of(extra=None),
        call_of(principal="eve"),
    ],
)
def test_a_token_is_for_one_request(other: Call) -> None:
    sealer = RequestStateCodec()
    assert "was given for another request" in refused(sealer, other, sealer.encode(call_of()))


def test_a_token_is_for_one_principal() -> None:
    sealer = RequestStateCodec()
    token = sealer.encode(call_of(principal="ada"))
    sealer.decode(call_of(principal="ada"), token)
    for principal in (None, "eve", "", "None"):
        assert "was given for another request" in refused(sealer, call_of(principal=principal), token)
    assert "another request" in refused(sealer, call_of(principal="None"), sealer.encode(call_of()))


def test_a_token_expires() -> None:
    clock = Clock()
    sealer = RequestStateCodec(clock=clock)
    token = sealer.encode(call_of())
    clock.now += LIFETIME
    sealer.decode(call_of(), token)
    clock.now += 0.001
    assert "has expired" in refused(sealer, call_of(), token)


@pytest.mark.parametrize(("keys", "outcome"), [((), ""), ((KEY,), "has expired")])
def test_only_shared_tokens_expire_by_the_wall_clock(
    keys: tuple[bytes, ...], outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    offset = 0.0
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + offset)
    sealer = RequestStateCodec(keys)
    token = sealer.encode(call_of())
    offset = -36_000.0
    sealer.decode(call_of(), token)
    offset = 36_000.0
    if outcome:
        assert outcome in refused(sealer, call_of(), token)
    else:
        sealer.decode(call_of(), token)


def test_keys_are_per_process_unless_given() -> None:
    token = RequestStateCodec().encode(call_of())
    assert "is not one that this server gave" in refused(RequestStateCodec(), call_of(), token)
    old, new, both = RequestStateCodec([OTHER_KEY]), RequestStateCodec([KEY]), RequestStateCodec([KEY, OTHER_KEY])
    both.decode(call_of(), old.encode(call_of()))
    new.decode(call_of(), both.encode(call_of()))
    refused(old, call_of(), both.encode(call_of()))


SEALER = RequestStateCodec([KEY])
TOKEN = SEALER.encode(call_of(), parked="p")


@given(st.integers(0, len(base64.urlsafe_b64decode(TOKEN)) * 8 - 1))
def test_every_flipped_bit_is_noticed(bit: int) -> None:
    sealed = bytearray(base64.urlsafe_b64decode(TOKEN))
    sealed[bit // 8] ^= 1 << bit % 8
    assert "is not one" in refused(SEALER, call_of(), base64.urlsafe_b64encode(sealed).decode())


@given(st.integers(0, len(TOKEN) - 1))
def test_no_part_of_a_token_is_accepted(length: int) -> None:
    assert "is not one" in refused(SEALER, call_of(), TOKEN[:length])


@given(st.text(max_size=200))
def test_invalid_tokens_are_refused(text: str) -> None:
    refused(SEALER, call_of(), text)


def test_overlong_tokens_are_refused() -> None:
    assert "is too long" in refused(SEALER, call_of(), "A" * (MAX_TOKEN + 1))


@pytest.mark.parametrize(
    "arguments", ["[" * 100_000 + "]" * 100_000, '{"a":1e999}', '{"a":123456789012345678901234567890}']
)
def test_undecodable_arguments_are_bound_by_their_bytes(arguments: str) -> None:
    token = SEALER.encode(call_of(arguments))
    SEALER.decode(call_of(arguments), token)
    refused(SEALER, call_of("[" + arguments + "]"), token)


def test_lone_surrogates_are_bound_by_value() -> None:
    token = SEALER.encode(call_of(r'{"a":"\ud83d","\ude00":1}'))
    SEALER.decode(call_of(r'{"\uDE00":1, "a":"\uD83D"}'), token)
    for other in (r'{"a":"\ud83e","\ude00":1}', r'{"a":"\ufffd","\ude00":1}', r'{"a":"\\ud83d","\ude00":1}'):
        refused(SEALER, call_of(other), token)


def test_the_digest_distinguishes_values() -> None:
    spans = ["{}", "[]", "null", "0", "false", '""', "[[]]", '{"a":null}', "12345678901234567890123", "1e400"]
    assert len({digest_of(call_of(span)) for span in spans}) == len(spans)
