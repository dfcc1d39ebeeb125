"""Cache lifetimes of results: read, merged, and stated for combined lists."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway import jsonrpc
from gateway.catalog.listing import Item, Listing, clean
from gateway.catalog.parts import Naming, make_part
from gateway.catalog.snapshot import Snapshot
from gateway.eras.caching import KEEP_NOTHING, LONGEST_TTL_MS, Hint, merge_hints, read_hint
from gateway.eras.methods import Kind

LONG, SHORT, MINE = Hint(9000, public=True), Hint(5, public=True), Hint(7000)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"ttlMs": 5, "cacheScope": "public"}, Hint(5, public=True)),
        ({"ttlMs": 5, "cacheScope": "private"}, Hint(5)),
        ({"ttlMs": 5}, Hint(5)),
        ({"ttlMs": 5, "cacheScope": "PUBLIC"}, Hint(5)),
        ({"cacheScope": "public"}, KEEP_NOTHING),
        ({"ttlMs": "5", "cacheScope": "public"}, KEEP_NOTHING),
        ({"ttlMs": -5, "cacheScope": "public"}, Hint(0, public=True)),
        ({"ttlMs": 10**12}, Hint(LONGEST_TTL_MS)),
        ({"ttlMs": 10**40}, Hint(LONGEST_TTL_MS)),
        ({}, KEEP_NOTHING),
    ],
)
def test_cache_hints_come_from_the_result(said: Any, expected: Hint) -> None:
    found = read_hint(jsonrpc.decode_object(json.dumps(said).encode()))
    assert found == expected
    scope = "public" if expected.public else "private"
    assert json.loads(b"{" + found.encode() + b"}") == {"ttlMs": expected.ttl_ms, "cacheScope": scope}


@pytest.mark.parametrize(
    ("hints", "expected"),
    [
        ([], KEEP_NOTHING),
        ([LONG], LONG),
        ([LONG, SHORT, LONG], SHORT),
        ([LONG, MINE], Hint(7000)),
        ([LONG, KEEP_NOTHING], KEEP_NOTHING),
    ],
)
def test_the_least_of_all_parts_counts(hints: list[Hint], expected: Hint) -> None:
    assert merge_hints(hints) == expected


@pytest.mark.parametrize(
    ("parts", "listed", "expected"),
    [
        ({"a": (1, LONG), "b": (2, SHORT)}, "ab", SHORT),
        ({"a": (1, LONG), "b": (2, SHORT)}, "a", LONG),  # an unavailable backend is not in the list
        ({"a": (1, LONG), "b": (0, LONG)}, "ab", KEEP_NOTHING),  # an empty list may fill at any moment
        ({"a": (1, LONG), "b": None}, "ab", LONG),  # a backend without such a list does not count
        ({"a": (1, LONG), "b": (1, KEEP_NOTHING)}, "ab", KEEP_NOTHING),
        ({}, "", KEEP_NOTHING),
    ],
)
def test_a_merged_list(parts: Any, listed: str, expected: Hint) -> None:
    made = []
    for backend, part in parts.items():
        spans = [] if part is None else [jsonrpc.raw({"name": f"p{i}"}) for i in range(part[0])]
        items = {} if part is None else {Kind.PROMPTS: clean(Kind.PROMPTS, spans, part[1])[0]}
        made.append(make_part(backend, backend, Listing(items=items), Naming()))
    found = Snapshot(made, listed=frozenset(listed))
    assert found.hint(Kind.PROMPTS) == expected
    assert found.hint(Kind.PROMPTS) is found.hint(Kind.PROMPTS)


def test_items_from_an_earlier_run_are_not_cacheable() -> None:
    assert Item("x", b"{}").hint is KEEP_NOTHING
