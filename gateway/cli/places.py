"""Places of findings in a config file, shown with a caret.

The lines of a config may contain secrets, so all texts except keys are masked. Pure.
"""

from __future__ import annotations

import re
from contextlib import suppress
from json import JSONDecoder
from typing import NamedTuple

from gateway.config.findings import Line, SyntaxProblem, shown
from gateway.masking import MASK

_DECODER = JSONDecoder(strict=False)
_SPACE = re.compile(r"[ \t\r\n]*")
_SCALAR = re.compile(r"[^\s,\]}]+")
_TOKEN = re.compile(r""""(?:\\.|[^"\\])*"?|'(?:\\.|[^'\\])*'?|[^\s{}\[\],:"']+""")
_HARMLESS = re.compile(r"true|false|null|-?[0-9.]{1,9}")
_KEY = re.compile(r'"[\w$./-]{1,64}"', re.ASCII)
_WIDTH = 60  # characters shown on each side of the caret, since some files are one line


class Place(NamedTuple):
    """A place in a text, counted from 1."""

    line: int
    column: int


class Places:
    """The places of all fields of a config file, by owner and path."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._found: dict[tuple[str, str], tuple[int, int]] = {}
        with suppress(ValueError, IndexError, RecursionError):  # not JSON: the error has its own place
            self._value(self._skip(1 if text.startswith("\ufeff") else 0), ())

    def find(self, line: str, *, key: bool = False) -> Place | None:
        """Return the place of a problem: the field's value, its key, or the syntax error."""
        if isinstance(line, SyntaxProblem):
            return Place(line.line, line.column)
        if not isinstance(line, Line):
            return None
        label = line.label
        while (line.owner, label) not in self._found:
            if not label:
                return None
            label = re.sub(r"(\.|^)[^.\[]*$|\[\d+\]$", "", label)
        at = self._found[line.owner, label][0 if key or label != line.label or not label else 1]
        return Place(self.text.count("\n", 0, at) + 1, at - self.text.rfind("\n", 0, at))

    def excerpt(self, place: Place) -> str:
        """Return the masked line with a caret below it."""
        line = self.text.split("\n")[place.line - 1].rstrip("\r").replace("\t", " ")
        masked, caret = mask_line(line, place.column - 1)
        start = max(0, caret - _WIDTH)
        return f"    | {masked[start : caret + _WIDTH]}\n    | {' ' * (caret - start)}^"

    def _skip(self, at: int) -> int:
        match = _SPACE.match(self.text, at)
        return at if match is None else match.end()

    def _value(self, at: int, path: tuple[str | int, ...]) -> int:
        """Record the places within a value, and return its end."""
        match self.text[at]:
            case "{":
                at = self._skip(at + 1)
                while self.text[at] != "}":
                    key, end = _text(self.text, at)
                    value = self._skip(self._skip(end) + 1)
                    self._note((*path, key), at, value)
                    at = self._skip(self._value(value, (*path, key)))
                    if self.text[at] == ",":
                        at = self._skip(at + 1)
                return at + 1
            case "[":
                at, index = self._skip(at + 1), 0
                while self.text[at] != "]":
                    self._note((*path, index), at, at)
                    at = self._skip(self._value(at, (*path, index)))
                    index += 1
                    if self.text[at] == ",":
                        at = self._skip(at + 1)
                return at + 1
            case '"':
                return _text(self.text, at)[1]
            case _:
                match = _SCALAR.match(self.text, at)
                return len(self.text) if match is None else match.end()

    def _note(self, path: tuple[str | int, ...], key: int, value: int) -> None:
        section, *rest = path
        owner = str(section)
        if section in {"mcpServers", "servers", "views"} and rest:
            owner = f"{'view' if section == 'views' else 'server'} {shown(rest.pop(0))}"
        label = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in rest).removeprefix(".")
        self._found.setdefault((owner, label), (key, value))


def mask_line(line: str, column: int = 0) -> tuple[str, int]:
    """Mask the secrets in a line of a config; return it with the adjusted column."""
    masked: list[str] = []
    position = size = 0
    caret: int | None = None
    for token in _TOKEN.finditer(line):
        text = token[0]
        is_key = _KEY.fullmatch(text) and line[token.end() :].lstrip().startswith(":")
        put = text if is_key or _HARMLESS.fullmatch(text) else f'"{MASK}"' if text[0] in "\"'" else MASK
        between = line[position : token.start()]
        if caret is None and column < token.end():
            inside = max(0, column - token.start())
            caret = size + min(column - position, len(between)) + (inside if put == text else 0)
        masked += (between, put)
        size += len(between) + len(put)
        position = token.end()
    masked.append(line[position:])
    return "".join(masked), size + column - position if caret is None else caret


def _text(text: str, at: int) -> tuple[str, int]:
    """Return a JSON string and its end."""
    found: tuple[str, int] = _DECODER.raw_decode(text, at)
    return found
