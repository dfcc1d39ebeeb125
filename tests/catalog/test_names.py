"""Public names: short, unique, and stable across restarts."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.catalog import names
from gateway.config.fields import MIN_NAME_LENGTH

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
        ("a", ".", "delete\u200b", 64, f"a.delete__{names._digest('a.delete' + chr(0x200B))}"),
        ("a", ".", "\u2028" + "x" * 99, 16, "a._xxxx_a6a036fe"),
        ("a", ".", "x\ud83d", 64, "a.x\ufffd"),
    ],
)
def test_guarantee_g5_public_names(namespace: str, separator: str, own: str, most: int, public: str) -> None:
    assert names.public_name(namespace, separator, own, most) == public


@settings(deadline=None)
@given(texts, texts, st.integers(MIN_NAME_LENGTH, 64))
def test_names_are_never_too_long_and_stay_apart(one: str, other: str, most: int) -> None:
    cut = names.shorten(one * 3, most), names.shorten(other * 3, most)
    assert all(len(name) <= most for name in cut)
    assert (cut[0] == cut[1]) == (one == other)


@settings(deadline=None)
@given(texts, texts, texts, st.integers(MIN_NAME_LENGTH, 64))
def test_a_distinct_name_is_another_one(taken: str, backend: str, own: str, most: int) -> None:
    taken = names.shorten(taken, most)
    other = names.distinct_name(taken, backend, own, most)
    assert len(other) <= most
    assert other != taken
    assert other == names.distinct_name(taken, backend, own, most)
    assert other != names.distinct_name(taken, backend, own + "x", most)


UNSEEN = [
    *(chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) in {"Cc", "Cf", "Zl", "Zp"}),
    *map(chr, [0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180F, 0x2065, 0x3164, 0xFFA0, 0xFFF0]),
    *map(chr, [*range(0xFE00, 0xFE10), *range(0xE0000, 0xE0080), *range(0xE0100, 0xE01F0)]),
]


def test_invisible_characters_are_replaced() -> None:
    for letter in UNSEEN:
        public = names.public_name("a", ".", f"x{letter}y", 64)
        assert public.startswith("a.x_y_"), hex(ord(letter))
        assert public != names.public_name("a", ".", "x_y", 64)


@pytest.mark.parametrize(
    "letter", [" ", "\u00a0", "\u00ac", "\u00ae", "\u0606", "\u2010", "\u2070", "\u05d0", "\u0627", "\U0001f600"]
)
def test_visible_characters_are_kept(letter: str) -> None:
    assert names.public_name("a", ".", f"x{letter}y", 64) == f"a.x{letter}y"
