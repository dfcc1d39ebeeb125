"""Decoding of a config's bytes, with errors that give place and expectation.

The file's suffix determines the format: `.toml`, `.jsonc` (JSON with comments and trailing commas), and JSON for any
other.

It uses the standard library's parser instead of msgspec's, which reports line and column and passes on every key of an
object, so that duplicate keys are found.
"""

from __future__ import annotations

import json
import re
from json import JSONDecodeError
from typing import TYPE_CHECKING, Any

from gateway.config.findings import SyntaxProblem, is_list, is_object, shown
from gateway.errors import ConfigError
from gateway.surrogates import find_lone_surrogate

if TYPE_CHECKING:
    from gateway.config.findings import Findings

SHAPE = '{"mcpServers": {"NAME": {"command": "..."}}}'
JSONC = ".jsonc"
# A string (which may contain something like a comment), a comment, or a comma before a closing bracket.
_EXTRAS = re.compile(r'("(?:\\.|[^"\\])*")|//[^\n]*|/\*.*?\*/|,(?=(?:\s|//[^\n]*|/\*.*?\*/)*[}\]])', re.DOTALL)
_STRING = re.compile(r'"(?:\\.|[^"\\\n])*"')
_EXPECTED = {
    "Expecting value": "a value",
    "Expecting property name enclosed in double quotes": "a key in double quotes",
    "Expecting ':' delimiter": "':' after the key",
    "Expecting ',' delimiter": "',' or the end of the list or object",
    "Unterminated string starting at": "the closing '\"' of this string",
    "Extra data": "nothing more after the end of the config",
}
_MARKS = ((b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"))


class _Pairs:
    """The objects with duplicate keys, by identity, each with those keys."""

    def __init__(self) -> None:
        self.repeated: list[tuple[dict[str, object], list[str]]] = []

    def collect(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        members = dict(pairs)
        if len(members) < len(pairs):
            keys = [key for key, _ in pairs]
            self.repeated.append((members, [key for key in members if keys.count(key) > 1]))
        return members


def decode(data: bytes | str, findings: Findings, source: str) -> object:
    """Return the value of a JSON text.

    Raises ConfigError with one line if it is not JSON; duplicate keys are reported as problems.
    """
    if isinstance(data, str):
        text = data.removeprefix("\ufeff")
    else:
        for mark, name in _MARKS:
            if data.startswith(mark):
                raise ConfigError([f"{source}: is {name} text; save it as UTF-8"])
        try:
            text = data.decode("utf-8-sig")  # tolerates a byte order mark
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise ConfigError([f"{source}: line {line}: is not UTF-8 text; save it as UTF-8"]) from None
    if not text.strip():
        raise ConfigError([f"{source}: is empty; expected {SHAPE}"])
    if is_toml(source):
        return _decode_toml(text, source)
    if source.endswith(JSONC):
        text = plain_json(text)
    pairs = _Pairs()
    constants: list[str] = []
    try:
        root: object = json.loads(text, object_pairs_hook=pairs.collect, parse_constant=constants.append)
    except JSONDecodeError as error:
        raise ConfigError([_explain(error, text, source)]) from None
    except RecursionError:
        raise ConfigError([f"{source}: is nested too deeply; expected {SHAPE}"]) from None
    except ValueError:  # the only other error of this parser
        raise ConfigError([f"{source}: contains a number of thousands of digits"]) from None
    if constants:
        raise ConfigError([f"{source}: contains NaN or Infinity, which are not JSON; write a number"])
    if pairs.repeated:
        _note_repeated(root, "", pairs, findings, source)
    return root


def load_valid(data: bytes, source: str) -> Any:
    """Return the value of a config that has already been validated."""
    text = data.decode("utf-8-sig")
    if is_toml(source):
        return _decode_toml(text, source)
    return json.loads(plain_json(text) if source.endswith(JSONC) else text)


def is_toml(source: str) -> bool:
    """Return whether a file of this name is TOML."""
    return source.endswith(".toml")


def plain_json(text: str) -> str:
    """Replace comments and trailing commas by spaces, which keeps all positions."""
    return _EXTRAS.sub(lambda found: found[1] or re.sub(r"[^\n]", " ", found[0]), text)


def _decode_toml(text: str, source: str) -> object:
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        problem = str(error)
        place = re.search(r"line (\d+), column (\d+)", problem)
        fault = f"{source}: is not valid TOML: {problem[:1].lower()}{problem[1:]}"
        raise ConfigError([fault if place is None else SyntaxProblem.at(int(place[1]), int(place[2]), fault)]) from None


def check_surrogates(data: bytes | str, source: str) -> None:
    """Refuse lone surrogates, even in unknown fields: a stored config must be encodable.

    Raises ConfigError.
    """
    encoded = data.encode(errors="surrogatepass") if isinstance(data, str) else data
    place = find_lone_surrogate(encoded)
    if place is not None:
        line = encoded.count(b"\n", 0, place) + 1
        fault = "contains a lone surrogate; write the character itself"
        raise ConfigError([f"{source}: line {line}: {fault}"])


def _explain(error: JSONDecodeError, text: str, source: str) -> SyntaxProblem:
    here, before = text[error.pos : error.pos + 2], text[: error.pos].rstrip()
    line, column = error.lineno, error.colno
    comma = error.pos if error.msg.startswith("Illegal trailing comma") else len(before) - 1  # as of Python 3.13
    if before and text[comma] == "," and (end := text[comma + 1 :].lstrip()[:1]) in {"}", "]"}:
        line, column = text.count("\n", 0, comma) + 1, comma - text.rfind("\n", 0, comma)
        fault = f"expected no ',' before {end!r}; JSON has no trailing commas"
    elif here[:1] == "'":
        fault = "expected double quotes; JSON has no single quotes"
    elif error.msg in _EXPECTED:
        found = "the text ends" if not here else f"found {here[0]!r}"
        fault = f"expected {_EXPECTED[error.msg]}"
        fault += "" if error.msg.startswith("Unterminated") else f", but {found}"
    else:
        fault = f"expected valid JSON: {error.msg.removesuffix(' at')}"
    comment = re.search(r"//|/\*", _STRING.sub('""', text))
    hint = "; comments (// and /* */) are not JSON, remove them" if comment or here[:1] == "#" else ""
    return SyntaxProblem.at(line, column, f"{source}: line {line}, column {column}: {fault}{hint}")


def _note_repeated(value: object, path: str, pairs: _Pairs, findings: Findings, source: str) -> None:
    """Report the place of each duplicate key; skip values hidden by a later one."""
    if is_object(value):
        for members, keys in pairs.repeated:
            if members is value:
                findings.problems += [
                    f"{source}: {_place(path)} has the key {shown(key)} more than once; keep one" for key in keys
                ]
        for key, item in value.items():
            _note_repeated(item, f"{path}.{key}" if path else str(key), pairs, findings, source)
    elif is_list(value):
        for index, item in enumerate(value):
            _note_repeated(item, f"{path}[{index}]", pairs, findings, source)


def _place(path: str) -> str:
    section, _, rest = path.partition(".")
    if section in {"mcpServers", "servers"} and rest:
        name, _, within = rest.partition(".")
        return f"server {shown(name)}" + (f": field {shown(within)}" if within else "")
    return shown(path) if path else "the top level"
