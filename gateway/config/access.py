"""The section `access`: who may use the MCP endpoint, and what.

Stricter than the rest of the config: what is not known here is a problem and no warning, since a slip in this section
could open a door. No line ever shows a hash or a secret.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from gateway.config.access_model import (
    ALGORITHMS,
    NO_ACCESS,
    AccessKey,
    AccessSettings,
    Introspection,
    ResourceServer,
    Rules,
)
from gateway.config.findings import Entry, did_you_mean, is_list, is_object, kind, shown
from gateway.config.hosts import parse_authority, parse_origin
from gateway.config.limits import read_rate
from gateway.config.scalars import read_scalar, specs_of
from gateway.config.substitution import resolve

if TYPE_CHECKING:
    from collections.abc import Collection

    from msgspec import Struct

    from gateway.config.findings import Scope

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_RULES = tuple(specs_of(Rules))
_LISTS = {"servers", "tools", "views", "audience", "algorithms", "scopes", "allow_origins", "allow_hosts"}


def read_access(raw: object, scope: Scope) -> AccessSettings:
    """Read the section; null or nothing means that nobody is asked for anything."""
    if raw is None:
        return NO_ACCESS
    if not is_object(raw):
        scope.refuse(f"must be an object, not {kind(raw)}")
        return NO_ACCESS
    entries = _members(scope, Entry("access", resolve(scope, "access", raw), raw), "", _KNOWN)
    values: dict[str, Any] = {}
    for key, entry in entries.items():
        match key:
            case "keys":
                values[key] = _read_keys(scope, entry)
            case "oauth":
                values[key] = _read_oauth(scope, entry)
            case _:
                values[key] = _read_hosts(scope, entry)
    return AccessSettings(**values)


_KNOWN = ("keys", "oauth", "allow_origins", "allow_hosts")


def _members(scope: Scope, entry: Entry, prefix: str, known: Collection[str]) -> dict[str, Entry]:
    """The members of an object, without those that are null; unknown ones are problems."""
    if not is_object(entry.value):
        scope.problem(entry.label, f"must be an object, not {kind(entry.value)}")
        return {}
    raw = entry.raw if is_object(entry.raw) else {}
    found: dict[str, Entry] = {}
    for key, value in entry.value.items():
        if key not in known:
            slip = did_you_mean(key, known) if isinstance(key, str) else ""
            scope.problem(prefix + str(key), f"is unknown{slip}")
        elif value is not None:
            found[str(key)] = Entry(prefix + str(key), value, raw.get(key))
    return found


def _read_keys(scope: Scope, entry: Entry) -> tuple[AccessKey, ...]:
    if not is_list(entry.value):
        scope.problem(entry.label, f"must be a list of keys, not {kind(entry.value)}")
        return ()
    if not entry.value:
        scope.problem(entry.label, "must not be empty; leave it out to let everybody in who reaches the gateway")
    raws = cast("list[object]", entry.raw) if is_list(entry.raw) else []
    keys = [
        key
        for index, value in enumerate(entry.value)
        if (key := _read_key(scope, Entry(f"{entry.label}[{index}]", value, raws[index]))) is not None
    ]
    for what in ("name", "hash"):
        said = [getattr(key, what) for key in keys]
        if len(set(said)) < len(said):
            scope.problem(entry.label, f"has two keys of the same {what}")
    return tuple(keys)


def _read_key(scope: Scope, entry: Entry) -> AccessKey | None:
    members = _members(scope, entry, f"{entry.label}.", ("name", "hash", *_RULES))
    missing = [what for what in ("name", "hash") if what not in members]
    if missing:
        if is_object(entry.value):
            scope.problem(entry.label, f"needs {' and '.join(map(repr, missing))} (see `mcp-gateway hash-key`)")
        return None
    known = len(scope.findings.problems)
    name, hashed = (read_scalar(scope, _KEY_SPECS[what], members[what]) for what in ("name", "hash"))
    rules = _read_rules(scope, members)
    return AccessKey(name, hashed, rules) if len(scope.findings.problems) == known else None


_KEY_SPECS = specs_of(AccessKey)


def _read_rules(scope: Scope, members: dict[str, Entry]) -> Rules:
    return Rules(**{key: _read_member(scope, Rules, members[key]) for key in _RULES if key in members})


def _read_member(scope: Scope, struct: type[Struct], entry: Entry) -> Any:
    """One member that is a list of strings, a rate or a scalar."""
    name = entry.label.rpartition(".")[2]
    if name == "rate_limit":
        return read_rate(scope, entry)
    if name in _LISTS:
        return _read_texts(scope, entry)
    return read_scalar(scope, specs_of(struct)[name], entry)


def _read_texts(scope: Scope, entry: Entry) -> tuple[str, ...]:
    value = entry.value
    if not is_list(value) or not all(isinstance(item, str) and item for item in value):
        scope.problem(entry.label, f"must be a list of strings, not {kind(value)}" if not is_list(value) else
                      "must hold strings that are not empty")  # fmt: skip
        return ()
    return tuple(dict.fromkeys(cast("list[str]", value)))


def _read_hosts(scope: Scope, entry: Entry) -> tuple[str, ...]:
    """Origins or host names, in lower case."""
    words = tuple(word.lower() for word in _read_texts(scope, entry))
    origins = entry.label == "allow_origins"
    for word in words:
        if origins and word != "*" and parse_origin(word) is None:
            scope.problem(entry.label, f"holds {shown(word)}; an origin is 'https://HOST' or 'https://HOST:PORT'")
        if not origins and (":" in word.rpartition("]")[2] or parse_authority(word) is None):
            scope.problem(entry.label, f"holds {shown(word)}; give host names, without scheme and port")
    return words


def _read_oauth(scope: Scope, entry: Entry) -> ResourceServer | None:
    own = [name for name in specs_of(ResourceServer) if name != "rules"]
    members = _members(scope, entry, f"{entry.label}.", (*own, *_RULES))
    values: dict[str, Any] = {}
    for key in own:
        if key == "introspection" and key in members:
            values[key] = _read_introspection(scope, members[key])
        elif key in members:
            values[key] = _read_member(scope, ResourceServer, members[key])
    for key in ("resource", "issuer"):
        if key not in values:
            scope.problem(entry.label, f"needs {key!r}")
    _check_addresses(scope, entry.label, values, {"resource", "issuer", "jwks_url"})
    wrong = [name for name in values.get("algorithms", ()) if name not in ALGORITHMS]
    if wrong or values.get("algorithms") == ():
        scope.problem(f"{entry.label}.algorithms", f"must be some of {', '.join(ALGORITHMS)}")
    if "resource" not in values or "issuer" not in values:
        return None
    return ResourceServer(**values, rules=_read_rules(scope, members))


def _read_introspection(scope: Scope, entry: Entry) -> Introspection | None:
    members = _members(scope, entry, f"{entry.label}.", specs_of(Introspection))
    values = {key: _read_member(scope, Introspection, one) for key, one in members.items()}
    if "url" not in values:
        scope.problem(entry.label, "needs 'url'")
        return None
    if ("client_id" in values) != ("client_secret" in values):
        scope.problem(entry.label, "needs both 'client_id' and 'client_secret', or neither")
    _check_addresses(scope, entry.label, values, {"url"})
    return Introspection(**values)


def _check_addresses(scope: Scope, label: str, values: dict[str, Any], names: set[str]) -> None:
    for name in sorted(names & values.keys()):
        fault = _address_fault(values[name]) if isinstance(values[name], str) else None
        if fault is not None:
            scope.problem(f"{label}.{name}", fault)


def _address_fault(text: str) -> str | None:
    """Why tokens and the keys that check them may not travel to or from this address."""
    from urllib.parse import urlsplit  # few configs need it

    try:
        parts = urlsplit(text)
        authority = parse_authority(parts.netloc.rpartition("@")[2])
    except ValueError:
        return "is not a valid address"
    if (
        authority is None
        or parts.username is not None
        or parts.fragment
        or not text.isascii()
        or not text.isprintable()
    ):
        return "must be an address like https://HOST/PATH"
    if parts.scheme == "https" or (parts.scheme == "http" and authority.host in _LOOPBACK):
        return None
    return "must be an https address, or an http one on this machine"
