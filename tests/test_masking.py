"""`gateway.masking`: values are found in any spelling, truncation or overlap; other text stays."""

from __future__ import annotations

import json
import time
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.masking import MASK, PIECE, Masker, Secrets

SECRET = "S3CRET/of+a key=é\"'\\&%x"
ENCODINGS = {
    "as it is": str,
    "in lower case": str.lower,
    "a path": quote,
    "a query": lambda text: quote(text, safe=""),
    "a query in a query": lambda text: quote(quote(text, safe=""), safe=""),
    "a path in a query": lambda text: quote(quote(text), safe=""),
    "a form in a query": lambda text: quote(quote_plus(text), safe=""),
    "a form": quote_plus,
    "some of it": lambda text: quote(text, safe=" /+&='\"%"),
    "lower hex": lambda text: quote(text, safe="").lower(),
    "JSON": lambda text: json.dumps(text)[1:-1],
    "JSON of UTF-8": lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    "JSON in JSON": lambda text: json.dumps(json.dumps(text)[1:-1])[1:-1],
    "JSON with slashes": lambda text: json.dumps(text)[1:-1].replace("/", "\\/"),
    "JSON for HTML": lambda text: json.dumps(text)[1:-1].replace("&", "\\u0026").replace("+", "\\u002B"),
    "repr": lambda text: repr(text)[1:-1],
    "ASCII": lambda text: ascii(text)[1:-1],
}


def masker(*values: str) -> Masker:
    return Masker(dict.fromkeys(values, MASK))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_value_is_found_in_every_encoding(encoding: str) -> None:
    spelled = ENCODINGS[encoding](SECRET)
    assert masker(SECRET).mask(f"bad key [{spelled}] given") == f"bad key [{MASK}] given"


@given(st.text(min_size=6, max_size=40), st.sampled_from(sorted(ENCODINGS)), st.text(max_size=5), st.text(max_size=5))
def test_no_value_survives_any_encoding(value: str, encoding: str, before: str, after: str) -> None:
    value = "k" + value.strip() + "123456"
    spelled = ENCODINGS[encoding](value.encode(errors="replace").decode())
    shown = masker(value.encode(errors="replace").decode()).mask(f"{before}<{spelled}>{after}")
    assert spelled not in shown


@pytest.mark.parametrize(
    ("values", "text", "shown"),
    [
        (["abcdef", "defghi"], "abcdefghi", "***"),
        (["abcdef", "abcdef-tail"], "abcdef-tail abcdef", "*** ***"),
        (["hush-hush"], "hush-hush-hush", "***"),
        (["abcdef"], "abcdefabcdef", "***"),
        (["line-one\nline-two\nshort"], "line-two\nline-one", "***\n***"),
        (["line-one\nline-two"], "line-two", "***"),
        (["line-one\nline-two"], '"line-one\\nline-two"', '"***"'),
        (["abcdefghij"], "cut here: abcdefgh", "cut here: ***"),
        (["abcdefghij"], "cut 'abcdefgh'... there", "cut '***'... there"),
        (["abcdefghij"], "no such 'abcdefgh'", "no such '***'"),
        (["abcdefghij"], "abcdefgh is another", "abcdefgh is another"),
        (["abcde", "true", "production", "PRODUCTION"], "abcde true production", "abcde true production"),
        ([" padded-key \n"], "padded-key", "***"),
        (["ABCDEF"], "host abcdef.example", "host ***.example"),
        (["x" * 40 + "y" * 400], "got " + "x" * 40 + "y" * 400, "got ***"),
    ],
)
def test_only_secrets_are_masked(values: list[str], text: str, shown: str) -> None:
    assert masker(*values).mask(text) == shown
    assert masker(*(f"{number:05}-other" for number in range(1_000)), *values).mask(text) == shown


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_value_is_found_among_thousands(encoding: str) -> None:
    others = [f"{number:04}{mark}-other" for number in range(1_000) for mark in ("", "/", "\n", "$$")]
    spelled = ENCODINGS[encoding](SECRET)
    assert masker(*others, SECRET).mask(f"bad key [{spelled}] given") == f"bad key [{MASK}] given"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([f"{number:05}-secret" for number in range(10_000)], "x" * 500_000),
        (["abcdefghij"], "abcdefgh " * 10_000 + "." * 100_000),
    ],
    ids=["many values", "many beginnings"],
)
def test_long_texts_take_little_time(values: list[str], text: str) -> None:
    began = time.process_time()
    assert masker(*values).mask(text) == text
    assert time.process_time() - began < 1.5  # 3 s and more if the text is searched for one after the other


def test_parts_of_long_values_are_masked_too() -> None:
    value = "".join(f"{number:04d}" for number in range(1_000))
    shown = masker(value).mask(value[PIECE * 3 : PIECE * 9 + 20] + " is wrong")
    assert len(shown) <= PIECE
    assert value[PIECE * 4 : PIECE * 5] not in shown
    assert masker(value).mask("cut: " + value[: PIECE * 9 + 20]) == "cut: ***"


def test_non_overlapping_values_show_their_own_spellings() -> None:
    spelled = Masker({"abcdef-1": "${A}", "abcdef": "${B}", "ef-123": "${C}"})
    assert spelled.mask("/abcdef-1/abcdef/x") == "/${A}/${B}/x"
    assert spelled.mask("/abcdef-123/") == "/***/"


def test_text_of_backslashes_is_masked_quickly() -> None:
    text = '"\\' * 20_000 + " end"
    assert masker('"\\"\\"\\"\\x12').mask(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("bad shared-key", "bad ***"),
        ("abcdefghij" * 2, "abcdefghij" * 2),
        ("abcdefghij" * 2 + "1", "abcdefghij" * 2 + "..."),
        ("01234567890 shared-key", "01234567890 ***..."),
        ("shared-key" * 100_000, "***..."),
    ],
)
def test_truncated_texts_show_no_part_of_values(text: str, shown: str) -> None:
    secrets = Secrets()
    secrets.hold("all", ["shared-key"])
    assert secrets.mask_briefly(text, 20) == shown


def test_secrets_are_masked_while_held() -> None:
    secrets = Secrets()
    secrets.hold("old", ["shared-key", "old-value"])
    secrets.hold("new", ["shared-key"])
    assert secrets.mask("shared-key old-value") == "*** ***"
    secrets.release("old")
    secrets.release("old")
    assert secrets.mask("shared-key old-value") == "*** old-value"
    secrets.hold("new", ["another-key"])
    assert secrets.mask("shared-key another-key") == "shared-key ***"
    assert secrets.mask_all({"old-key": ["another-key", 1, None, {"x": ("another-key",)}]}) == {
        "old-key": ["***", 1, None, {"x": ["***"]}]
    }
