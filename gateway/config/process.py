"""The fields of a server that the gateway starts itself: `command`, `args`, `env`, `cwd`, `encoding`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.config.findings import is_list, is_object, kind, shown
from gateway.config.substitution import expand_home

if TYPE_CHECKING:
    from gateway.config.findings import Entry, Scope

# Beyond this a number in a file cannot have survived every JSON tool on its way here.
_LONGEST_INTEGER = 2**63
# JSON lines are read as bytes, split at the newline, so ASCII must mean itself in the child's encoding.
_ASCII = "".join(map(chr, range(32, 127))) + "\n"


def read_text(scope: Scope, entry: Entry) -> str | None:
    """Return a string that is not blank and holds no NUL, or None after noting the problem."""
    if not isinstance(entry.value, str):
        scope.problem(entry.label, f"must be a string, not {kind(entry.value)}")
    elif not entry.value.strip():
        scope.problem(entry.label, "must not be empty")
    elif "\0" in entry.value:
        scope.problem(entry.label, "must not hold a NUL character")
    else:
        return entry.value
    return None


def read_path(scope: Scope, entry: Entry) -> str | None:
    """Return a path with its `~/` expanded; a relative one is relative to the gateway's own directory."""
    text = read_text(scope, entry)
    return None if text is None else expand_home(scope, entry.label, text)


def warn_command_line(scope: Scope, entry: Entry) -> None:
    """Note a command that looks like a whole command line, for no shell will take it apart."""
    if isinstance(entry.value, str) and " " in entry.value.strip() and not {"/", "\\"} & set(entry.value.split()[0]):
        scope.warn(entry.label, "holds spaces and no shell splits it; put what follows the program into 'args'")


def read_args(scope: Scope, entry: Entry) -> tuple[str, ...]:
    """Return the arguments; whole numbers become text with a warning."""
    if not is_list(entry.value):
        scope.problem(entry.label, f"must be a list of strings, not {kind(entry.value)}")
        return ()
    return tuple(_argument(scope, f"{entry.label}[{index}]", item) for index, item in enumerate(entry.value))


def _argument(scope: Scope, label: str, item: object) -> str:
    if isinstance(item, str):
        if "\0" in item:
            scope.problem(label, "must not hold a NUL character")
        return expand_home(scope, label, item) if item.startswith("~/") else item
    if isinstance(item, int) and not isinstance(item, bool) and abs(item) < _LONGEST_INTEGER:
        scope.warn(label, "is a number and was taken as a string; write it in quotes")
        return str(item)
    scope.problem(label, f"must be a string, not {kind(item)}")
    return ""


def read_texts(scope: Scope, entry: Entry) -> dict[str, str]:
    """Return an object of strings; numbers and booleans become text with a warning."""
    if not is_object(entry.value):
        scope.problem(entry.label, f"must be an object of strings, not {kind(entry.value)}")
        return {}
    return {
        key: _plain_text(scope, f"{entry.label}.{key}", item)
        for key, item in entry.value.items()
        if isinstance(key, str)  # substitution has noted the others
    }


def _plain_text(scope: Scope, label: str, item: object) -> str:
    if isinstance(item, str):
        return item
    if isinstance(item, bool):
        scope.warn(label, "is a boolean and was taken as a string; write it in quotes")
        return "true" if item else "false"
    if isinstance(item, float) or (isinstance(item, int) and abs(item) < _LONGEST_INTEGER):
        scope.warn(label, "is a number and was taken as a string; write it in quotes")
        return repr(item)
    scope.problem(label, f"must be a string, not {kind(item)}")
    return ""


def read_env(scope: Scope, entry: Entry) -> dict[str, str]:
    """Return the variables for the child, checked for what no environment can hold."""
    env = read_texts(scope, entry)
    for name, value in env.items():
        if not name or "=" in name or "\0" in name:
            scope.problem(entry.label, f"has the name {shown(name)}; a name is not empty and holds no '=' and no NUL")
        if "\0" in value:
            scope.problem(f"{entry.label}.{name}", "must not hold a NUL character")
    return env


def read_encoding(scope: Scope, entry: Entry, default: str) -> str:
    """Return the name of an encoding that Python knows and that keeps ASCII as it is."""
    name = read_text(scope, entry)
    if name is None:
        return default
    try:
        fits = _ASCII.encode(name) == _ASCII.encode()
    except (LookupError, ValueError):  # unknown, not a text encoding, or not even a name
        scope.problem(entry.label, f"must be an encoding that Python knows, such as 'utf-8', not {entry.quoted}")
        return default
    if not fits:
        scope.problem(entry.label, f"cannot be {entry.quoted}: JSON lines need one that keeps ASCII, such as 'utf-8'")
        return default
    return name
