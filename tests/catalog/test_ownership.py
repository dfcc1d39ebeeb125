"""Resource templates: the best match for a URI, in time no hostile template can stretch."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.catalog.listing import Item, Listing
from gateway.catalog.ownership import Route, template_weight
from gateway.catalog.parts import Naming, Part, make_part
from gateway.catalog.snapshot import Snapshot
from gateway.eras.methods import Kind


@pytest.mark.parametrize(
    ("template", "uri", "weight"),
    [
        ("file:///{path}", "file:///a/b", 8),
        ("file:///{+path}", "file:///a/b", 8),
        ("file:///{path}", "file:///", 8),  # an expression may expand to nothing
        ("file:///{path}", "http://a", -1),
        ("a://{x}/b", "a://q/b", 6),
        ("a://{x}/b", "a://q/c", -1),
        ("a://{x}/b/{y}", "a://q/b/r", 7),
        ("a://{x}/b/{y}", "a://q/c/r", -1),
        ("a://{x}bb", "a://b", -1),  # the end must not be counted twice
        ("a://{x}b{y}b", "a://b", -1),
        ("a://{x}b{y}b", "a://bb", 6),
        ("{x}", "anything", 0),
        ("a://fixed", "a://fixed", 9),
        ("a://fixed", "a://fixed/more", -1),
        ("", "", 0),
        ("a://{unclosed", "a://x", 4),
        ("a://}{x}", "a://}y", 5),
    ],
)
def test_template_matches_are_weighted(template: str, uri: str, weight: int) -> None:
    assert template_weight(template, uri) == weight


@settings(deadline=None)
@given(st.lists(st.text("ab/:", max_size=4), min_size=1, max_size=5), st.lists(st.text("xyz/", max_size=3), min_size=5))
def test_template_expansions_match_their_template(literals: list[str], values: list[str]) -> None:
    template, uri = "{v}".join(literals), literals[0]
    for value, literal in zip(values, literals[1:], strict=False):
        uri += value + literal
    assert template_weight(template, uri) == sum(map(len, literals))


def test_a_hostile_template_costs_nothing() -> None:
    started = time.perf_counter()
    assert template_weight("{a}a" * 20_000 + "b", "a" * 100_000) == -1
    assert time.perf_counter() - started < 1  # a matcher that backtracks needs years


def test_the_most_literal_template_wins() -> None:
    def part(backend: str, *templates: str) -> Part:
        items = tuple(Item(template, b"{}") for template in templates)
        return make_part(backend, backend, Listing(items={Kind.TEMPLATES: items}), Naming())

    found = Snapshot([part("any", "{uri}"), part("files", "file:///{p}"), part("logs", "file:///logs/{p}")])
    for uri, owner in (("file:///logs/a", "logs"), ("file:///etc", "files"), ("x:y", "any")):
        assert found.uris.find(uri) == Route(owner, uri)
    assert Snapshot([part("files", "file:///{p}")]).uris.find("x:y") is None
