"""The section `access`: credentials and permissions for the MCP endpoint.

Stricter than the rest of the config: unknown keys here are problems, not warnings, since a typo could grant access. No
line and no `repr` ever shows a hash or a secret.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, cast

from msgspec import Meta, Struct

from gateway.config.fields import ALL, Count, Globs, Seconds, doc, read_by, specs_of
from gateway.config.findings import Entry, did_you_mean, is_list, is_object, kind, shown
from gateway.config.hosts import parse_authority, parse_origin
from gateway.config.limits import RateLimitField  # noqa: TC001 - msgspec reads it
from gateway.config.scalars import read_field
from gateway.config.substitution import resolve

if TYPE_CHECKING:
    from collections.abc import Collection

    from gateway.config.findings import Scope

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
KeyName = Annotated[
    str,
    Meta(pattern=r"\A[A-Za-z0-9_.@-]{1,64}\Z", title="1 to 64 letters, digits, '_', '.', '@' and '-'"),
]  # without a colon, which distinguishes them from OAuth principals
KeyHash = Annotated[
    str,
    Meta(pattern=r"\Asha256:[0-9a-f]{64}\Z", title="'sha256:' and 64 hex digits (`mcp-gateway hash-key` makes one)"),
]

# Accepted signature algorithms; never 'none' or those with a shared secret.
ALGORITHMS = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
)  # fmt: skip


class Rules(Struct, frozen=True):
    """The permissions and limits of a principal."""

    servers: Annotated[StrictGlobs, doc("Servers that it may use, as globs.")] = ALL
    tools: Annotated[
        StrictGlobs,
        doc("Tools and prompts that it may use, as globs over public names; resources only with '*'."),
    ] = ALL
    views: Annotated[
        Strings | None,
        doc("Views that it may use; default: all, and the endpoint without a view."),
    ] = None
    rate_limit: Annotated[
        RateLimitField,
        doc(
            "Maximum call rate: calls per second, or an object; lists and handshakes, which cost no"
            " server anything, do not count; default: unlimited."
        ),
    ] = None
    max_concurrency: Annotated[Count | None, doc("Maximum concurrent calls; default: unlimited.")] = None
    max_sessions: Annotated[Count | None, doc("Maximum open sessions; default: half of `gateway.max_sessions`.")] = None


class AccessKey(Struct, frozen=True):
    """One API key with its permissions."""

    name: Annotated[KeyName, doc("Name of its owner, for logs and session ownership.")]
    hash: Annotated[KeyHash, doc("The SHA-256 of the key; the key itself is not stored.")]
    rules: Rules = Rules()

    def __repr__(self) -> str:
        return f"AccessKey({self.name!r})"


class Introspection(Struct, frozen=True):
    """Introspection of opaque tokens (RFC 7662); JSON `introspection`."""

    url: Annotated[str, doc("The introspection endpoint.")]
    client_id: Annotated[str | None, doc("The gateway's client id there.")] = None
    client_secret: Annotated[str | None, doc("The client's secret.")] = None
    cache: Annotated[Seconds, doc("Seconds for which a result is cached; a revoked token works for this long.")] = 30.0

    def __repr__(self) -> str:
        return f"Introspection({self.url.partition('?')[0]!r}, client_id={self.client_id!r})"


class ResourceServer(Struct, frozen=True):
    """Validation of an authorization server's tokens; JSON `oauth`."""

    resource: Annotated[str, doc("The public URL of the endpoint, for which tokens must be issued.")]
    issuer: Annotated[str, doc("The issuer in the authorization server's tokens.")]
    jwks_url: Annotated[str | None, doc("The URL of its keys; default: from its metadata.")] = None
    audience: Annotated[
        Strings,
        doc("Other accepted audiences; default: only 'resource'."),
    ] = ()
    algorithms: Annotated[Strings, doc("Accepted signature algorithms.")] = (
        "RS256",
        "ES256",
        "EdDSA",
    )
    scopes: Annotated[Strings, doc("Scopes, all of which a token must have.")] = ()
    leeway: Annotated[Seconds, doc("Tolerated difference between the two clocks.")] = 30.0
    introspection: Annotated[
        IntrospectionField,
        doc("Introspect tokens at the authorization server instead of verifying JWTs."),
    ] = None
    rules: Rules = Rules()


class AccessSettings(Struct, frozen=True):
    """Access control of the MCP endpoint, which is open without keys and `oauth`."""

    keys: Annotated[
        Keys,
        doc("Accepted API keys; `mcp-gateway hash-key` makes one."),
    ] = ()
    oauth: Annotated[ResourceServerField, doc("Accept tokens of an authorization server.")] = None
    allow_origins: Annotated[
        Hosts,
        doc("Allowed origins of web pages, each as 'https://HOST'; '*' for all."),
    ] = ()
    allow_hosts: Annotated[
        Hosts,
        doc("Additional host names of the gateway, such as those of a reverse proxy."),
    ] = ()

    @property
    def requires_credentials(self) -> bool:
        """Whether clients must authenticate."""
        return bool(self.keys) or self.oauth is not None

    @property
    def says_something(self) -> bool:
        """Whether the section sets anything: then others than this machine's users are served."""
        return self.requires_credentials or bool(self.allow_origins or self.allow_hosts)


_RULES = Rules.__struct_fields__


def read_access(raw: object, scope: Scope) -> AccessSettings:
    """Read the section; without it no client has to authenticate."""
    if raw is None:
        return NO_ACCESS
    if not is_object(raw):
        scope.refuse(f"must be an object, not {kind(raw)}")
        return NO_ACCESS
    entry = Entry("access", resolve(scope, "access", raw), raw)
    return AccessSettings(**_read_members(scope, AccessSettings, _members(scope, entry, "", _names(AccessSettings))))


def _names(struct: type[Struct]) -> tuple[str, ...]:
    """Return the names of a Struct's own fields; rules are in the same object."""
    return tuple(name for name in struct.__struct_fields__ if name != "rules")


def _read_members(scope: Scope, struct: type[Struct], members: dict[str, Entry]) -> dict[str, Any]:
    """Read those members of an object that are fields of this Struct."""
    return {
        name: read_field(scope, specs_of(struct)[name], members[name]) for name in _names(struct) if name in members
    }


def _members(scope: Scope, entry: Entry, prefix: str, known: Collection[str]) -> dict[str, Entry]:
    """Return the members of an object that are not null; report unknown ones as problems."""
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
        scope.problem(entry.label, "must not be empty; omit it to disable authentication")
    raws = cast("list[object]", entry.raw) if is_list(entry.raw) else []
    keys: list[AccessKey] = []
    for index, value in enumerate(entry.value):
        label = f"{entry.label}[{index}]"
        known = len(scope.findings.problems)
        members = _members(scope, Entry(label, value, raws[index]), f"{label}.", ("name", "hash", *_RULES))
        missing = [what for what in ("name", "hash") if what not in members]
        if missing and is_object(value):
            scope.problem(label, f"needs {' and '.join(map(repr, missing))} (see `mcp-gateway hash-key`)")
        own, rules = _read_members(scope, AccessKey, members), _read_members(scope, Rules, members)
        if len(scope.findings.problems) == known:
            keys.append(AccessKey(**own, rules=Rules(**rules)))
    for what in ("name", "hash"):
        said = [getattr(key, what) for key in keys]
        if len(set(said)) < len(said):
            scope.problem(entry.label, f"has two keys with the same {what}")
    return tuple(keys)


def _read_texts(scope: Scope, entry: Entry) -> tuple[str, ...]:
    value = entry.value
    if not is_list(value) or not all(isinstance(item, str) and item for item in value):
        scope.problem(entry.label, f"must be a list of strings, not {kind(value)}" if not is_list(value) else
                      "must contain non-empty strings")  # fmt: skip
        return ()
    return tuple(dict.fromkeys(cast("list[str]", value)))


def _read_hosts(scope: Scope, entry: Entry) -> tuple[str, ...]:
    """Read origins or host names, in lower case."""
    words = tuple(word.lower() for word in _read_texts(scope, entry))
    origins = entry.label == "allow_origins"
    for word in words:
        if origins and word != "*" and parse_origin(word) is None:
            scope.problem(entry.label, f"contains {shown(word)}; an origin is 'https://HOST' or 'https://HOST:PORT'")
        if not origins and (":" in word.rpartition("]")[2] or parse_authority(word) is None):
            scope.problem(entry.label, f"contains {shown(word)}; give host names, without scheme and port")
    return words


def _read_oauth(scope: Scope, entry: Entry) -> ResourceServer | None:
    members = _members(scope, entry, f"{entry.label}.", (*_names(ResourceServer), *_RULES))
    values = _read_members(scope, ResourceServer, members)
    for key in ("resource", "issuer"):
        if key not in values:
            scope.problem(entry.label, f"needs {key!r}")
    _check_addresses(scope, entry.label, values, {"resource", "issuer", "jwks_url"})
    wrong = [name for name in values.get("algorithms", ()) if name not in ALGORITHMS]
    if wrong or values.get("algorithms") == ():
        scope.problem(f"{entry.label}.algorithms", f"must be any of {', '.join(ALGORITHMS)}")
    if "resource" not in values or "issuer" not in values:
        return None
    return ResourceServer(**values, rules=Rules(**_read_members(scope, Rules, members)))


def _read_introspection(scope: Scope, entry: Entry) -> Introspection | None:
    members = _members(scope, entry, f"{entry.label}.", _names(Introspection))
    values = _read_members(scope, Introspection, members)
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
    """Return why tokens and keys must not go to this address; None if they may."""
    from urllib.parse import urlsplit  # needed by few configs

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


StrictGlobs = Annotated[Globs, read_by(_read_texts)]
Strings = Annotated[tuple[str, ...], read_by(_read_texts)]
Hosts = Annotated[tuple[str, ...], read_by(_read_hosts)]
Keys = Annotated[tuple[AccessKey, ...], Meta(title="a list of keys"), read_by(_read_keys)]
ResourceServerField = Annotated[ResourceServer | None, read_by(_read_oauth)]
IntrospectionField = Annotated[Introspection | None, read_by(_read_introspection)]

NO_ACCESS = AccessSettings()
