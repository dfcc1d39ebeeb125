"""Connection to a server: `transport`; the program and its environment; `url` and `headers`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal

from gateway.config.fields import JsonSchema, read_by
from gateway.config.findings import is_list, is_object, kind, shown
from gateway.config.substitution import expand_home, is_unicode

if TYPE_CHECKING:
    from gateway.config.findings import Entry, Scope

Transport = Literal["stdio", "sse", "streamable-http"]

_TRANSPORTS: dict[str, Transport] = {
    "stdio": "stdio",
    "sse": "sse",
    "http": "streamable-http",
    "streamable-http": "streamable-http",
    "streamablehttp": "streamable-http",
}
# Larger numbers lose precision in some JSON tools.
_LONGEST_INTEGER = 2**63
# JSON lines are read as bytes and split at newlines, so the child's encoding must be a superset of ASCII.
_ASCII = "".join(map(chr, range(32, 127))) + "\n"
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)  # RFC 9110, 5.6.2
_UNSAFE = re.compile(r"[^\t\x20-\x7e]")
_BLANK = re.compile(r"[\x00-\x20\x7f]")
# The transport sets these itself. Other clients' files contain some of them, so they are dropped, not refused.
_OWN = frozenset({
    "accept", "connection", "content-length", "content-type", "last-event-id", "mcp-method", "mcp-name",
    "mcp-protocol-version", "mcp-session-id", "transfer-encoding", "upgrade",
})  # fmt: skip
_LOOSE: JsonSchema = {"additionalProperties": {"type": ["string", "number", "boolean"]}}


def read_transport(scope: Scope, entry: Entry) -> Transport | None:
    """Return the transport for any of its spellings."""
    if isinstance(entry.value, str):
        transport = _TRANSPORTS.get(entry.value.lower().replace("_", "-"))
        if transport is not None:
            return transport
    given = entry.quoted
    scope.problem(entry.label, f"must be one of 'stdio', 'sse', 'streamable-http' (or 'http'), not {given}")
    return None


def read_text(scope: Scope, entry: Entry) -> str | None:
    """Return a string, not blank and without NUL, or report a problem.

    The result is then None.
    """
    if not isinstance(entry.value, str):
        scope.problem(entry.label, f"must be a string, not {kind(entry.value)}")
    elif not entry.value.strip():
        scope.problem(entry.label, "must not be empty")
    elif "\0" in entry.value:
        scope.problem(entry.label, "must not contain a NUL character")
    else:
        return entry.value
    return None


def read_path(scope: Scope, entry: Entry) -> str | None:
    """Return a path with `~/` expanded; relative paths are relative to the gateway's working directory."""
    text = read_text(scope, entry)
    return None if text is None else expand_home(scope, entry.label, text)


def warn_command_line(scope: Scope, entry: Entry) -> None:
    """Warn of a command that looks like a command line: no shell splits it."""
    if isinstance(entry.value, str) and " " in entry.value.strip() and not {"/", "\\"} & set(entry.value.split()[0]):
        scope.warn(entry.label, "contains spaces and is not split by a shell; put the arguments into 'args'")


def read_args(scope: Scope, entry: Entry) -> tuple[str, ...]:
    """Return the arguments; whole numbers become text with a warning."""
    if not is_list(entry.value):
        scope.problem(entry.label, f"must be a list of strings, not {kind(entry.value)}")
        return ()
    args: list[str] = []
    for index, item in enumerate(entry.value):
        label = f"{entry.label}[{index}]"
        if isinstance(item, str):
            if "\0" in item:
                scope.problem(label, "must not contain a NUL character")
            args.append(expand_home(scope, label, item) if item.startswith("~/") else item)
        elif isinstance(item, int) and not isinstance(item, bool) and abs(item) < _LONGEST_INTEGER:
            scope.warn(label, "is a number and was taken as a string; write it in quotes")
            args.append(str(item))
        else:
            scope.problem(label, f"must be a string, not {kind(item)}")
    return tuple(args)


def read_texts(scope: Scope, entry: Entry) -> dict[str, str]:
    """Return an object of strings; numbers and booleans become text with a warning."""
    if not is_object(entry.value):
        scope.problem(entry.label, f"must be an object of strings, not {kind(entry.value)}")
        return {}
    texts: dict[str, str] = {}
    for key, item in entry.value.items():
        if not isinstance(key, str):
            continue  # substitution has noted it
        label = f"{entry.label}.{key}"
        if isinstance(item, str):
            texts[key] = item
        elif isinstance(item, bool):
            scope.warn(label, "is a boolean and was taken as a string; write it in quotes")
            texts[key] = "true" if item else "false"
        elif isinstance(item, float) or (isinstance(item, int) and abs(item) < _LONGEST_INTEGER):
            scope.warn(label, "is a number and was taken as a string; write it in quotes")
            texts[key] = repr(item)
        else:
            scope.problem(label, f"must be a string, not {kind(item)}")
    return texts


def read_env(scope: Scope, entry: Entry) -> dict[str, str]:
    """Return the variables for the child, checked for what an environment cannot contain."""
    env = read_texts(scope, entry)
    for name, value in env.items():
        if not name or "=" in name or "\0" in name:
            scope.problem(entry.label, f"has the name {shown(name)}; a name must not be empty or contain '=' or NUL")
        if "\0" in value:
            scope.problem(f"{entry.label}.{name}", "must not contain a NUL character")
    return env


def read_encoding(scope: Scope, entry: Entry) -> str:
    """Return the name of an encoding that Python knows, a superset of ASCII."""
    name = read_text(scope, entry)
    if name is None:
        return "utf-8"
    try:
        fits = _ASCII.encode(name) == _ASCII.encode()
    except (LookupError, ValueError):  # unknown, not a text encoding, or not even a name
        scope.problem(entry.label, f"must be an encoding known to Python, such as 'utf-8', not {entry.quoted}")
        return "utf-8"
    if not fits:
        scope.problem(entry.label, f"cannot be {entry.quoted}: JSON lines need a superset of ASCII, such as 'utf-8'")
        return "utf-8"
    return name


def read_url(scope: Scope, entry: Entry) -> str | None:
    """Return an http(s) URL with a host; never shown, since it may contain keys."""
    url = read_text(scope, entry)
    if url is None:
        return None
    fault = _url_fault(url)
    if fault is not None:
        scope.problem(entry.label, fault)
        return None
    if "@" in url.split("/", 3)[2]:
        scope.warn(entry.label, "contains a user name or password; an 'Authorization' entry in 'headers' is safer")
    return url


def _url_fault(url: str) -> str | None:
    from urllib.parse import urlsplit  # 2 ms that a config of stdio servers saves

    if _BLANK.search(url) or not is_unicode(url):
        return "must not contain spaces, line breaks or control characters"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "is not a valid address; check its host and port"
    if parts.scheme not in {"http", "https"}:
        return "must begin with http:// or https://"
    if not host:
        return "has no host; write it as https://HOST/PATH"
    return "has port 0; leave the port out or name one" if port == 0 else None


def read_headers(scope: Scope, entry: Entry) -> dict[str, str]:
    """Return headers that are safe to send unchanged."""
    headers: dict[str, str] = {}
    seen: set[str] = set()
    for name, value in read_texts(scope, entry).items():
        label = f"{entry.label}.{name}"
        folded = name.lower()
        if _TOKEN.fullmatch(name) is None:
            scope.problem(entry.label, f"has the name {shown(name)}; use only letters, digits and '-'")
        elif folded in seen:
            scope.problem(label, "appears twice, in different case; keep one")
        elif _UNSAFE.search(value):
            breaks = "\n" in value or "\r" in value
            scope.problem(label, "must not contain a line break; check the end of the text or variable" if breaks else
                          "must be plain ASCII without control characters")  # fmt: skip
        elif folded in _OWN:
            scope.warn(label, "is ignored: the gateway sets this header itself")
        else:
            headers[name] = value.strip(" \t")
        seen.add(folded)
    return headers


FilePath = Annotated[str | None, read_by(read_path)]
TransportField = Annotated[
    Transport | None,
    read_by(read_transport, {"enum": ["http", "streamable_http", "streamablehttp", "streamableHttp"]}),
]
Arguments = Annotated[tuple[str, ...], read_by(read_args, {"type": "array", "items": {"type": ["string", "integer"]}})]
Environment = Annotated[dict[str, str], read_by(read_env, _LOOSE)]
Encoding = Annotated[str, read_by(read_encoding)]
Url = Annotated[str | None, read_by(read_url)]
Headers = Annotated[dict[str, str], read_by(read_headers, _LOOSE)]
