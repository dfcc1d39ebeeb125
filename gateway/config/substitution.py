"""`${VAR}` and `~/` in the strings of a config.

`${VAR}` is the variable, `${VAR:-default}` the default if the variable is unset or empty, `${env:VAR}` another client's
spelling of `${VAR}`, `${file:PATH}` the content of a small file, `${cmd:COMMAND ARGUMENTS}` a command's output. `$${`
is a literal `${`: before a brace each pair of `$` is one, so `$$${VAR}` is a `$` followed by the value. Elsewhere `$`
is literal. Values are not substituted recursively, a default contains no `{`, and keys are never substituted.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from msgspec import Struct

from gateway.config.findings import is_list, is_object, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.config.findings import FileSource, Scope

# A field is at most a list or an object of strings, so deeper nesting is an error or an attack.
_DEEPEST = 8
_OPENING = re.compile(r"(\$+)\{")
_EXPRESSION = re.compile(r"(?:env:)?([A-Za-z_][A-Za-z0-9_]*)(?::-([^{]*))?", re.ASCII | re.DOTALL)
KNOWN_TO_ALL = frozenset({
    "HOME", "HOSTNAME", "LANG", "LC_ALL", "LOGNAME", "PATH", "PWD", "SHELL", "TEMP", "TERM", "TMP", "TMPDIR", "TZ",
    "USER", "USERNAME", "USERPROFILE",
})  # fmt: skip
"""Variables that every login sets and that contain no secret; their values stay readable in logs and errors."""
_HOW = "write ${NAME} or ${NAME:-default}, or $${ for a literal ${"
_FOREIGN = {
    "userHome": "write '~/' at the beginning of a path",
    "workspaceFolder": "write the path",
    "workspaceFolderBasename": "write the name",
    "pathSeparator": "write '/'",
}


class Substituted(Struct, frozen=True):
    """The substituted text, the unset variables, and the problems."""

    text: str
    unset: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    filled: tuple[tuple[str, str], ...] = ()
    """The substituted values that may be secret, each with its expression."""
    missing: tuple[str, ...] = ()
    """The files and commands that failed, and why."""
    is_deferred: bool = False
    """Whether it names a command, which was not run."""


def substitute(
    text: str, environ: Mapping[str, str], files: FileSource | None = None, *, runs_commands: bool = True
) -> Substituted:
    """Substitute the variables of one string; never raises. An unset variable is replaced by nothing."""
    if "${" not in text:
        return Substituted(text)
    parts: list[str] = []
    found = _Found(environ, files, runs_commands)
    faults = found.faults
    position = 0
    while (opening := _OPENING.search(text, position)) is not None:
        pairs, single = divmod(len(opening[1]), 2)
        parts += (text[position : opening.start()], "$" * pairs)
        position = opening.end()
        if not single:
            parts.append("{")
            continue
        end = text.find("}", position)
        if end < 0:
            faults.append(f"has a '${{' that is never closed; {_HOW}")
            break
        expression, position = text[position:end], end + 1
        parts.append(_evaluate(expression, found))
    else:
        parts.append(text[position:])
    unset, missing = tuple(found.unset), tuple(found.missing)
    return Substituted("".join(parts), unset, tuple(faults), tuple(found.filled), missing, found.is_deferred)


class _Found:
    """Results collected while one string is substituted."""

    def __init__(self, environ: Mapping[str, str], files: FileSource | None, runs_commands: bool) -> None:
        self.environ = environ
        self.files = files
        self.runs_commands = runs_commands
        self.is_deferred = False
        self.unset: list[str] = []
        self.faults: list[str] = []
        self.filled: list[tuple[str, str]] = []
        self.missing: list[str] = []

    def read(self, kind: str, name: str) -> str:
        if self.files is None:
            self.faults.append(f"holds ${{{kind}:...}}, which works only in a config file")
            return ""
        if kind == "cmd" and not self.runs_commands:
            self.is_deferred = True
            return ""
        try:
            text = self.files(name) if kind == "file" else self.files.run(name)
        except ValueError as exc:
            self.missing.append(str(exc))
            return ""
        self.filled.append((text, f"${{{kind}:{name}}}"))
        return text


def _evaluate(expression: str, found: _Found) -> str:
    environ, unset, faults = found.environ, found.unset, found.faults
    kind, colon, name = expression.partition(":")
    if colon and kind in {"file", "cmd"}:
        return found.read(kind, name)
    if expression in _FOREIGN:
        faults.append(f"names another client's ${{{expression}}}; {_FOREIGN[expression]} instead")
        return ""
    if expression.startswith("input:"):
        faults.append("uses an input prompt of another client; set a variable and write ${NAME}")
        return ""
    match = _EXPRESSION.fullmatch(expression)
    if match is None:
        # The text is not quoted: users temporarily put secrets into defaults.
        faults.append(f"has an invalid ${{...}}; {_HOW}")
        return ""
    name, default = match[1], match[2]
    value = environ.get(name)
    filled = value or default
    if filled and name not in KNOWN_TO_ALL:
        found.filled.append((filled, f"${{{name}}}"))
    if default is not None:
        return value or default
    if value is None:
        unset.append(name)
        return ""
    return value


def resolve(scope: Scope, label: str, raw: object, *, depth: int = 0) -> object:
    """Return the value with all strings substituted, at any depth; report to the scope.

    An unset variable of a disabled server is a warning, and its string stays unchanged, as do those with a command.
    """
    if depth > _DEEPEST:
        scope.problem(label, "is nested too deeply")
        return None
    if isinstance(raw, str):
        return _resolve_text(scope, label, raw)
    if is_list(raw):
        return [resolve(scope, f"{label}[{index}]", item, depth=depth + 1) for index, item in enumerate(raw)]
    if is_object(raw):
        found: dict[str, object] = {}
        for key, item in raw.items():
            if isinstance(key, str):
                found[key] = resolve(scope, f"{label}.{key}", item, depth=depth + 1)
            else:
                scope.problem(label, "has a key that is not a string")
        return found
    return raw


def _resolve_text(scope: Scope, label: str, raw: str) -> str:
    if not is_unicode(raw):
        scope.problem(label, "contains a lone surrogate; write the character itself")
        return raw
    result = substitute(raw, scope.environ, scope.files, runs_commands=not scope.lenient)
    for value, spelling in result.filled:
        scope.note_secret(value, spelling)
    for fault in result.faults:
        scope.problem(label, fault)
    say = scope.warn if scope.lenient else scope.problem
    for name in dict.fromkeys(result.unset):
        say(label, f"needs the variable {shown(name)}, which is not set; set it or write ${{{name}:-default}}")
    for problem in result.missing:
        say(label, f"cannot be filled in: {problem}")
    if scope.lenient and (result.unset or result.missing or result.is_deferred):
        scope.unresolved += 1
        return raw
    return raw if result.unset or result.faults or result.missing else result.text


def is_unicode(text: str) -> bool:
    """Return whether the text can be encoded as UTF-8."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def home_of(environ: Mapping[str, str]) -> str | None:
    """Return the home directory named in an environment."""
    return environ.get("HOME") or environ.get("USERPROFILE")


def expand_home(scope: Scope, label: str, path: str) -> str:
    """Return the path with a leading `~/`, or just `~`, replaced by the home."""
    if path != "~" and not path.startswith("~/"):
        return path
    home = scope.home or home_of(scope.environ)
    if not home:
        scope.problem(label, "begins with '~', but no home directory is known; set HOME or write the whole path")
        return path
    return home.rstrip("/") + path[1:] if path != "~" else home
