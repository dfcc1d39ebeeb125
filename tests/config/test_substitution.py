"""`${VAR}` in strings: each form, and properties of any text."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.config.substitution import substitute

ENVIRON = {"A": "alpha", "EMPTY": "", "NESTED": "${A}", "_x9": "under"}

FORMS = [
    ("plain", "plain"),
    ("${A}", "alpha"),
    ("<${A}${A}>", "<alphaalpha>"),
    ("${_x9}", "under"),
    ("${env:A}", "alpha"),
    ("${A:-x}", "alpha"),
    ("${NOPE:-x y}", "x y"),
    ("${NOPE:-}", ""),
    ("${NOPE:-a:-b$c}", "a:-b$c"),
    ("${env:NOPE:-x}", "x"),
    ("${EMPTY}", ""),
    ("${EMPTY:-x}", "x"),
    ("${NESTED}", "${A}"),
    ("$A $ $$ pa$$word {A}", "$A $ $$ pa$$word {A}"),
    ("$${A}", "${A}"),
    ("$$${A}", "$alpha"),
    ("$$$${A}", "$${A}"),
    ("$${", "${"),
    ("a}b", "a}b"),
]


@pytest.mark.parametrize(("text", "result"), FORMS)
def test_form(text: str, result: str) -> None:
    found = substitute(text, ENVIRON)
    assert (found.text, found.unset, found.faults) == (result, (), ())


def test_every_unset_variable_is_named() -> None:
    assert substitute("${X} ${Y} ${A} ${Z:-z}", ENVIRON).unset == ("X", "Y")


@pytest.mark.parametrize("text", ["${", "${A", "x${}", "${9}", "${A B}", "${A:=x}", "${A-x}", "${A:-{}}", "${\u00e4}"])
def test_invalid_references_are_reported_and_not_repeated(text: str) -> None:
    assert len(substitute(text, ENVIRON).faults) == 1


def escape(text: str) -> str:
    return re.sub(r"(\$+)(?=\{)", r"\1\1", text)


TEXT = st.text(alphabet="$${}A:-en v") | st.text()


@given(TEXT)
@example("${" * 3)
def test_it_never_raises_and_decides_every_dollar_brace(text: str) -> None:
    found = substitute(text, {})
    if "${" not in text:
        assert found.text == text
    if not found.unset and not found.faults:
        # Without variables the text can only get shorter: an escape loses a dollar, a default its braces.
        assert len(found.text) < len(text) or "${" not in text


@given(TEXT)
def test_an_escaped_text_is_restored(text: str) -> None:
    found = substitute(escape(text), {})
    assert (found.text, found.unset, found.faults) == (text, (), ())


@given(st.lists(st.tuples(TEXT, TEXT), max_size=5))
def test_values_are_inserted_unchanged(pieces: list[tuple[str, str]]) -> None:
    """Any value, `${...}` included, is inserted unchanged into the surrounding text."""
    environ = {f"V{index}": value for index, (_, value) in enumerate(pieces)}
    template = "".join(
        re.sub(r"\$+\Z", lambda run: run[0] * 2, escape(literal)) + f"${{V{index}}}"
        for index, (literal, _) in enumerate(pieces)
    )
    found = substitute(template, environ)
    assert (found.text, found.faults) == ("".join(literal + value for literal, value in pieces), ())
