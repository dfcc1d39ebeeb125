"""Large messages: their long strings are set aside, and put back."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import jsonrpc, large

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ODD = ['"', "\\", "\\\\", '\\"', "a", "\n", "é", "\U0001f600", "\ud83d", "\ude00", "\\ud83d", "/", "\x7f", "\u2028"]
texts = st.lists(st.sampled_from(ODD), max_size=60).map("".join)
values = st.recursive(
    texts | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)


def encode(value: object, is_ascii: bool) -> bytes:
    return json.dumps(value, ensure_ascii=is_ascii).encode(errors="surrogatepass")


message_bytes = st.builds(encode, values, st.booleans())
damage = st.none() | st.tuples(
    st.integers(0, 400), st.sampled_from([b"", b'"', b"\\", b"\x01", b"\xff", b"\\ud83d", b"u"])
)


@pytest.fixture(autouse=True, scope="module")
def short_limits() -> Any:
    """Limits that small messages reach: every boundary is met."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "LONG_BYTES": 8,
            "FIRST_STEP": 13,
            "MAX_STEP": 17,
            "MAX_QUOTES": 2,
            "MAX_STRINGS": 6,
        }.items():
            patch.setattr(large, name, value)
        yield


def is_json(data: bytes) -> bool:
    try:
        data.decode()
        msgspec.json.decode(data, type=msgspec.Raw)
    except ValueError:
        return False
    return True


def set_aside(data: bytes) -> tuple[bytes, jsonrpc.LongStrings] | None:
    return trio.run(large.set_aside, data)


@settings(deadline=None, max_examples=300)  # a busy machine is not a failure
@given(message_bytes, damage)
def test_what_is_left_is_valid_if_and_only_if_the_whole_is(data: bytes, change: tuple[int, bytes] | None) -> None:
    if change is not None:
        at, what = change
        at %= len(data) + 1
        data = data[:at] + what + data[at + 1 :]
    found = set_aside(data)
    if found is None:
        return  # then the text is read as a whole
    rest, strings = found
    assert b"".join(strings.restore(rest)) == data
    assert is_json(rest) is is_json(data)
    assert strings.size + len(rest) >= len(data)


@pytest.mark.parametrize(
    "text",
    ["x" * 100, '"' * 100, "\\" * 101, "é" * 100, "\U0001f600" * 100, '\\"' * 50, "a\\" * 50, "\u2028\n" * 40],
    ids=["letters", "quotes", "backslashes", "two bytes", "pairs", "both", "mixed", "separators"],
)
@pytest.mark.parametrize("is_ascii", [True, False])
@pytest.mark.parametrize("shift", range(14))
def test_long_strings_are_found_wherever_the_steps_fall(text: str, is_ascii: bool, shift: int) -> None:
    data = json.dumps({"k": ["y" * shift + text, 1]}, ensure_ascii=is_ascii).encode()
    found = set_aside(data)
    if found is None:
        assert text == "\\" * 101  # a run of backslashes that is longer than a step
        return
    rest, strings = found
    assert re.fullmatch(rb'\{"k": \["[0-9a-f]{32}0", 1\]\}', rest)
    assert b"".join(strings.restore(rest)) == data


def same(rest: bytes) -> bytes:
    return rest


def twice(rest: bytes) -> bytes:
    return rest + rest


def dropped(rest: bytes) -> bytes:
    return rest[:1] + b"}"


def encoded_again(rest: bytes) -> bytes:
    return jsonrpc.encode(jsonrpc.decode_any(rest))


@pytest.mark.parametrize("change", [same, twice, dropped, encoded_again])
def test_the_rest_may_be_changed_before_strings_return(change: Callable[[bytes], bytes]) -> None:
    data = b'{"a":"%b","b":[1,"%b"]}' % (b"x" * 50, b"\\n" * 50)
    found = set_aside(data)
    assert found is not None
    assert b"".join(found[1].restore(change(found[0]))) == change(data)


def test_messages_without_long_strings_are_left_alone() -> None:
    for data in (b"", b"{}", b'{"a":"b"}', b'["short","s","t"]', b'"unfinished', b'"' + b"x" * 100):
        assert set_aside(data) is None


def test_a_text_with_many_strings_is_not_searched() -> None:
    few, many = b'["a","b","%b"]' % (b"x" * 50), b'["a","b","c","d","e","f","%b"]' % (b"x" * 50)
    assert set_aside(few) is not None
    assert set_aside(many) is None


async def turns_during(work: Callable[[], Awaitable[object]]) -> int:
    """How often another task runs while this is awaited."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        await work()
        nursery.cancel_scope.cancel()
    return turns


async def test_other_tasks_run_between_the_steps() -> None:
    async def work() -> None:
        assert await large.set_aside(b'["%b"]' % (b"x" * 1300)) is not None

    assert await turns_during(work) >= 1300 // large.MAX_STEP - 2


async def test_a_message_is_joined_between_other_tasks() -> None:
    async def work() -> None:
        assert await large.joined((b"[", memoryview(b"x" * 1300), b"]")) == b"[%b]" % (b"x" * 1300)

    assert await turns_during(work) >= 1300 // large.MAX_STEP - 2
