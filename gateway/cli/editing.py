"""Edits of hand-written files: set or remove one entry and leave the rest unchanged.

The text is edited, not regenerated from its values, so that comments, order and white space are preserved. The result
is parsed and compared with the intended values; if they differ, nothing is written.
"""

from __future__ import annotations

import copy
import errno
import json
import os
import re
import tempfile
from contextlib import suppress
from json import JSONDecoder
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from gateway.cli.output import CommandError
from gateway.config.parse import read_file
from gateway.config.text import is_toml, load_valid, plain_json
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

NEW_MODE: Final = 0o600
"""Mode of a new file: it may contain keys."""
BACKUP: Final = ".bak"
_DECODER = JSONDecoder(strict=False)
_SPACE = re.compile(r"\s*")
_COMMENT = re.compile(r'("(?:\\.|[^"\\])*")|//[^\n]*|/\*.*?\*/', re.DOTALL)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_HEADER = re.compile(r"^[ \t]*\[([^\[\]\n]+)\][ \t]*(?:#[^\n]*)?$", re.MULTILINE)


class Document:
    """A file's text and its values as read. A missing file is an empty object."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = read_file(path) if path.exists() else None
        try:
            self.text = "" if self.data is None else self.data.decode("utf-8-sig")
            root: Any = _parse(self.text, path)
        except ValueError as exc:
            problem = f"{path} is invalid, so it is not changed: {exc}"
            raise CommandError(problem) from None
        if not isinstance(root, dict):
            problem = f"{path} does not contain an object, so it is not changed"
            raise CommandError(problem)
        self.root = cast("dict[str, Any]", root)

    def member(self, keys: Sequence[str]) -> Any:
        """Return the value at a path of keys, None where it is absent."""
        value: Any = self.root
        for key in keys:
            value = cast("dict[str, Any]", value).get(key) if isinstance(value, dict) else None
        return value

    def edit(self, keys: Sequence[str], value: Any) -> str:
        """Set the value at this path, or remove it (None); return the text for `save`.

        Raises:
            CommandError: the file's form prevents it.
        """
        with suppress(ValueError, LookupError, TypeError, AttributeError, ConfigError):
            wanted = changed(self.root, keys, value)
            text = edit_toml(self, keys, value) if is_toml(self.path.name) else edit_json(self.text, keys, value)
            if _parse(text, self.path) == wanted:
                self.text, self.root = text, wanted
                return text
        problem, where = f"{self.path} has a form that this command cannot edit", ".".join(keys)
        hint = f"remove {where} yourself" if value is None else f"write {where} yourself: {write_json(value)}"
        raise CommandError(problem, hint)

    def save(self, *, backup: bool = False) -> None:
        """Replace the file atomically, preserving symbolic links and the mode.

        Raises:
            CommandError: it cannot be written, or has changed since it was read.
        """
        if backup:
            self.save_backup()
        try:
            target = _target_of(self.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            mode = target.stat().st_mode & 0o777 if self.data is not None else NEW_MODE
            _write(target, self.text.encode(), mode, unless_changed=self)
        except OSError as exc:
            raise _not_written(self.path, exc) from None

    def save_backup(self) -> None:
        """Write the text as read beside the file, if there was one. Raises CommandError."""
        if self.data is None:
            return
        try:
            target = _target_of(self.path)
            _write(target.with_name(target.name + BACKUP), self.data, target.stat().st_mode & 0o777)
        except OSError as exc:
            raise _not_written(self.path, exc) from None


def _target_of(path: Path) -> Path:
    """Return the file behind links. Raises OSError if they are a loop."""
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return target


def _not_written(path: Path, exc: OSError) -> CommandError:
    return CommandError(f"{path} cannot be written: {exc.strerror or exc}")


def replace_file(path: Path, data: bytes) -> None:
    """Write a whole file of ours atomically, and create its directory. Raises CommandError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(_target_of(path), data, NEW_MODE)
    except OSError as exc:
        raise _not_written(path, exc) from None


def _write(target: Path, data: bytes, mode: int, *, unless_changed: Document | None = None) -> None:
    fd, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        temporary.chmod(mode)
        if unless_changed is not None and unless_changed.data != (target.read_bytes() if target.exists() else None):
            problem = f"{unless_changed.path} has been changed meanwhile; nothing was written"
            raise CommandError(problem, "run the command again")
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _parse(text: str, path: Path) -> Any:
    """Return the values of a text; JSON may have comments, whatever the file's name."""
    if not text.strip():
        return {}
    return load_valid(text.encode(), path.name) if is_toml(path.name) else json.loads(plain_json(text))


def changed(root: dict[str, Any], keys: Sequence[str], value: Any) -> dict[str, Any]:
    """Return the values with one set or removed; removal creates no parents."""
    made = copy.deepcopy(root)
    place = made
    for key in keys[:-1]:
        if value is None and key not in place:
            return made
        place = place.setdefault(key, {})
    if value is None:
        place.pop(keys[-1], None)
    else:
        place[keys[-1]] = value
    return made


def write_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON text."""
    return json.dumps(value, indent=indent, ensure_ascii=False)


# -- JSON, with comments ---------------------------------------------------------------------------------------------


class _Member(NamedTuple):
    key: str
    start: int
    """Offset of the key."""
    value: int
    end: int
    comma: int | None
    """The comma after the value, even after the last one."""


def edit_json(text: str, keys: Sequence[str], value: Any) -> str:
    """Set or remove (None) the value at a path of a commented JSON text."""
    text = text if text.strip() else "{}\n"
    at = _skip(plain_json(text), 0)
    for depth, key in enumerate(keys):
        members, close = _members(text, at)
        found = next((member for member in members if member.key == key), None)
        if found is not None and depth < len(keys) - 1:
            at = found.value
            continue
        if value is None:
            return text if found is None else _without(text, members, members.index(found))
        for inner in reversed(keys[depth + 1 :]):
            value = {inner: value}
        if found is not None:
            return text[: found.value] + _laid_out(value, _indent_of(text, found.start)) + text[found.end :]
        return _with(text, at, members, close, key, value)
    raise LookupError


def _members(text: str, at: int) -> tuple[list[_Member], int]:
    """Return the object's members, and the offset of its closing brace."""
    plain = plain_json(text)  # without trailing commas, which no decoder accepts
    marks = _COMMENT.sub(lambda found: found[1] or re.sub(r"[^\n]", " ", found[0]), text)
    if plain[at] != "{":
        raise ValueError
    members: list[_Member] = []
    at = _skip(plain, at + 1)
    while plain[at] != "}":
        key, after = cast("tuple[str, int]", _DECODER.raw_decode(plain, at))
        value = _skip(plain, _skip(plain, after) + 1)
        _, end = _DECODER.raw_decode(plain, value)
        behind = _skip(marks, end)
        members.append(_Member(key, at, value, end, behind if marks[behind] == "," else None))
        at = _skip(plain, behind + (plain[behind] == ","))
    return members, at


def _with(text: str, at: int, members: list[_Member], close: int, key: str, value: Any) -> str:
    """Return the text with another member at the end of an object, after its comments."""
    tail = len(text[:close].rstrip())
    if not members:
        outer = _indent_of(text, at)
        indent = outer + "  "
        return f"{text[:tail]}\n{indent}{write_json(key)}: {_laid_out(value, indent)}\n{outer}{text[close:]}"
    last = members[-1]
    comma, after = (",", "") if last.comma is None else ("", ",")  # preserve the style of trailing commas
    if "\n" not in text[at:close]:
        member = f"{write_json(key)}: {write_json(value)}{after}"
        return f"{text[: last.end]}{comma}{text[last.end : tail]} {member}{text[tail:]}"
    indent = _indent_of(text, last.start)
    member = f"{write_json(key)}: {_laid_out(value, indent)}{after}"
    return f"{text[: last.end]}{comma}{text[last.end : tail]}\n{indent}{member}{text[tail:]}"


def _without(text: str, members: list[_Member], index: int) -> str:
    """Return the text without a member, its comma, and its line if otherwise empty."""
    member = members[index]
    before = members[index - 1].comma if index else None
    start, end = member.start, member.end if member.comma is None else member.comma + 1
    line, line_end = text.rfind("\n", 0, start) + 1, text.find("\n", end) + 1
    if not text[line:start].strip() and line_end and not text[end:line_end].strip():
        start, end = line, line_end
    if member.comma is None and before is not None:  # the last one: remove the comma of the one before
        return text[:before] + text[before + 1 : start] + text[end:]
    return text[:start] + text[end:]


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


def _indent_of(text: str, at: int) -> str:
    line = text[text.rfind("\n", 0, at) + 1 : at]
    return line[: len(line) - len(line.lstrip())]


def _laid_out(value: Any, indent: str) -> str:
    return write_json(value, 2).replace("\n", f"\n{indent}")


# -- TOML ------------------------------------------------------------------------------------------------------------


def edit_toml(document: Document, keys: Sequence[str], value: Any) -> str:
    """Remove an entry's tables and append a new one; refuse other forms."""
    import tomllib

    text = document.text
    if document.member(keys) is not None:
        kept, position, inside = "", 0, False
        for header in _HEADER.finditer(text):
            kept += "" if inside else text[position : header.start()]
            named: Any = tomllib.loads(f"[{header[1]}]")
            for key in keys:
                named = named.get(key) if named else None
            inside, position = named is not None, header.start()
        text = kept + ("" if inside else text[position:])
    if value is None:
        return text
    entry = cast("dict[str, Any]", value)
    tables = {key: cast("dict[str, Any]", item) for key, item in entry.items() if isinstance(item, dict)}
    plain = {key: item for key, item in entry.items() if key not in tables}
    text = text.rstrip() + "\n\n" if text.strip() else ""
    for inner, members in ((), plain), *(((key,), item) for key, item in tables.items()):
        name = ".".join(map(_toml_key, (*keys, *inner)))
        lines = [f"{_toml_key(key)} = {_toml_value(item)}" for key, item in members.items()]
        text += "\n".join([f"[{name}]", *lines]) + "\n"
    return text


def _toml_key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else write_json(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        pairs = cast("dict[str, Any]", value).items()
        return "{" + ", ".join(f"{_toml_key(key)} = {_toml_value(item)}" for key, item in pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, cast("list[Any]", value))) + "]"
    return write_json(value)
