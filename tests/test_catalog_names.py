"""Public names: short enough, told apart, and the same after every restart."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.catalog import names

texts = st.text(max_size=40)


@pytest.mark.parametrize(
    ("namespace", "separator", "own", "most", "public"),
    [
        ("time", ".", "now", 128, "time.now"),
        ("time", "__", "now", 128, "time__now"),
        ("", ".", "now", 128, "now"),
        ("a", ".", "b.c", 128, "a.b.c"),
        ("a", ".", "x" * 14, 16, "a." + "x" * 14),
        ("a", ".", "x" * 15, 16, "a.xxxxx_c886bcdc"),  # pinned: clients keep names in their settings
        ("git", ".", "search_commits_by_message_and_author", 32, "git.search_commits_by_m_d76c98ef"),
        ("a", ".", "x\ny\0", 64, "a.x_y__53cfefbd"),
        ("a", ".", "\u2028" + "x" * 99, 16, "a._xxxx_a6a036fe"),
    ],
)
def test_seed_g5_public_names(namespace: str, separator: str, own: str, most: int, public: str) -> None:
    assert names.public_name(namespace, separator, own, most) == public


@settings(deadline=None)
@given(texts, texts, st.integers(names.MIN_LENGTH, 64))
def test_names_are_never_too_long_and_stay_apart(one: str, other: str, most: int) -> None:
    cut = names.shorten(one * 3, most), names.shorten(other * 3, most)
    assert all(len(name) <= most for name in cut)
    assert (cut[0] == cut[1]) == (one == other)


@settings(deadline=None)
@given(texts, texts, texts, st.integers(names.MIN_LENGTH, 64))
def test_a_distinct_name_is_another_one(taken: str, backend: str, own: str, most: int) -> None:
    taken = names.shorten(taken, most)
    other = names.distinct_name(taken, backend, own, most)
    assert len(other) <= most
    assert other != taken
    assert other == names.distinct_name(taken, backend, own, most)
    assert other != names.distinct_name(taken, backend, own + "x", most)
