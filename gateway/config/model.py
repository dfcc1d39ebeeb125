"""The parsed configuration: frozen Structs of a server, of the gateway, and of the whole.

Fields that are objects have their Struct beside its reader, in the module of their name or concept.

A field's annotation is the single source of its meaning (`gateway.config.fields`). All times are seconds.
The Structs do not validate; `parse_config` and `parse_server` do, with readable errors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Struct, field

from gateway.config.audit import AuditSettings
from gateway.config.fields import (
    Capacity,
    Count,
    KeyList,
    NameLength,
    Namespace,
    Seconds,
    Separator,
    ShownName,
    doc,
)
from gateway.config.lifecycle import RestartField, RestartPolicy, ShutdownGrace, ShutdownGraceField
from gateway.config.limits import CircuitBreakerField, CrashLimit, CrashLimitField, RateLimitField, ToolTimeouts
from gateway.config.oauth import OAuthField, OAuthSettings
from gateway.config.offered import ALL_TOOLS, ToolsField
from gateway.config.scalars import switchable
from gateway.config.transport import (  # noqa: TC001 - msgspec reads them
    Arguments,
    Encoding,
    Environment,
    FilePath,
    Headers,
    TransportField,
    Url,
)
from gateway.masking import MASK, Masker

if TYPE_CHECKING:
    from gateway.config.access import AccessSettings
    from gateway.config.views import ViewConfig

Era = Literal["auto", "each", "legacy", "modern"]
Start = Literal["eager", "lazy"]
SessionMode = Literal["shared", "client", "call"]
ErrorHandler = Literal["strict", "ignore", "replace"]
LogFormat = Literal["console", "json"]

NOT_WRITTEN = frozenset({"name", "masked", "disabled_since"})
"""Fields of `ServerConfig` that are not fields of the config file."""


class ServerConfig(Struct, frozen=True, kw_only=True):
    """One backend. `transport` None means that `url` must be probed: streamable HTTP first, then SSE.

    `repr` shows the names of variables and headers but never their values, since it is logged.
    """

    name: str
    transport: Annotated[
        TransportField,
        doc(
            "Transport of the server; also spelled 'type'; 'http' is the same as 'streamable-http'. "
            "Default: stdio with a 'command'; a 'url' is probed.",
            aliases=("type",),
        ),
    ] = None
    command: Annotated[
        FilePath,
        doc(
            "The program to start, on PATH or where users usually install uv, Node or Docker; "
            "'~/' is the home directory."
        ),
    ] = None
    args: Annotated[Arguments, doc("Arguments of 'command'; a leading '~/' is expanded.")] = ()
    env: Annotated[
        Environment,
        doc(
            "Variables added to the child's environment, which otherwise has only the home directory, PATH, locale, and"
            " variables about network proxies and certificates."
        ),
    ] = field(default_factory=dict[str, str])
    env_file: Annotated[
        FilePath,
        doc(
            "A file of further variables (NAME=VALUE lines), also usable as '${NAME}' in this server's other fields;"
            " the path is relative to the config file; also spelled 'envFile'.",
            aliases=("envFile",),
        ),
    ] = None
    cwd: Annotated[FilePath, doc("The child's working directory; '~/' is the home directory.")] = None
    encoding: Annotated[Encoding, doc("The child's text encoding, which must be a superset of ASCII.")] = "utf-8"
    encoding_error_handler: Annotated[ErrorHandler, doc("Handling of undecodable bytes, as in Python.")] = "strict"
    url: Annotated[Url, doc("The http or https address of a remote server.")] = None
    headers: Annotated[Headers, doc("HTTP headers sent with every request to 'url'.")] = field(
        default_factory=dict[str, str]
    )
    unix_socket: Annotated[FilePath, doc("Path of a Unix socket through which 'url' is reached.")] = None
    ca_file: Annotated[
        FilePath, doc("PEM file of the certificate authorities trusted for 'url' instead of the system's.")
    ] = None
    client_cert: Annotated[FilePath, doc("PEM file of the client certificate for 'url', optionally with its key.")] = (
        None
    )
    client_key: Annotated[FilePath, doc("PEM file of the key of 'client_cert', if that file has none.")] = None
    oauth: Annotated[
        OAuthField,
        doc("How to obtain tokens if 'url' requires them and 'headers' has no 'Authorization'; false: never."),
    ] = OAuthSettings()
    disabled: Annotated[bool, doc("Ignore the server but keep its entry; 'enabled' is the opposite.")] = False
    call_timeout: Annotated[Seconds, doc("Time limit for a call; also spelled 'timeout'.", aliases=("timeout",))] = (
        300.0
    )
    connect_timeout: Annotated[Seconds, doc("Time limit for a start, including the handshake.")] = 30.0
    # Below start_grace: a legacy server that ignores the probe must still be in the first list. A late answer to the
    # probe, from a slow start, counts too.
    probe_timeout: Annotated[Seconds, doc("How long to wait for 'server/discover' before sending 'initialize'.")] = 1.0
    max_concurrency: Annotated[Count, doc("Maximum concurrent calls to this backend.")] = 64
    queue_size: Annotated[
        Capacity, doc("Calls that may wait once 'max_concurrency' is reached; further ones are refused as busy.")
    ] = 256
    max_line_bytes: Annotated[Count, doc("Maximum length of a line from a stdio backend.")] = 16 * 1024 * 1024
    restart: Annotated[RestartField, doc("Restart policy: an object, true (the defaults) or false (never).")] = (
        RestartPolicy()
    )
    shutdown_grace: Annotated[
        ShutdownGraceField, doc("The shutdown sequence: an object, a list of its three waits, or only the first.")
    ] = ShutdownGrace()
    namespace: Annotated[
        Namespace | None,
        doc('Prefix of the server\'s public names; default: its name; "": no prefix.'),
    ] = None
    era: Annotated[
        Era,
        doc(
            "The protocol era to use: legacy, modern, or auto, which probes the server. If the server offers both,"
            " clients of each era get a separate session over HTTP; a child process runs in the era of the clients that"
            " use it. each: like auto, but with a child process for each era."
        ),
    ] = "auto"
    session: Annotated[
        SessionMode,
        doc(
            "shared: one session for all clients. client: one (for stdio: a process) for each client, for servers that"
            " keep state or send requests to their client. call: a new one for each call."
        ),
    ] = "shared"
    max_client_sessions: Annotated[Count, doc("Maximum concurrent sessions if they are not shared.")] = 64
    start: Annotated[Start, doc("eager: start with the gateway; lazy: at the first use.")] = "eager"
    idle_timeout: Annotated[Seconds | None, doc("Time without a call after which the backend is stopped.")] = None
    required: Annotated[bool, doc("Whether '/readyz' fails while this server is not ready.")] = False
    rate_limit: Annotated[
        RateLimitField, doc("Maximum call rate: calls per second, or an object. Default: unlimited.")
    ] = None
    circuit_breaker: Annotated[
        CircuitBreakerField,
        doc("Refuse calls for a while after consecutive failures: an object, true (the defaults) or false."),
    ] = None
    crash_limit: Annotated[
        CrashLimitField,
        doc(
            "Refuse a client's calls, as busy, after they have crashed the server several times: an object, true"
            " (the defaults) or false."
        ),
    ] = CrashLimit()
    ping_interval: Annotated[
        Seconds | None, doc("Interval of pings to an idle backend, which is restarted if it does not answer.")
    ] = None
    tool_timeouts: Annotated[
        ToolTimeouts,
        doc("'call_timeout' of individual tools, by globs over their own names; the first match applies."),
    ] = field(default_factory=dict[str, float])
    tools: Annotated[
        ToolsField,
        doc(
            "Which of its tools are offered, and how; a list means 'include'. Changes apply immediately, without a"
            " restart of the server."
        ),
    ] = ALL_TOOLS
    max_call_time: Annotated[
        Seconds | None,
        doc("If set, progress notifications reset the call timeout, up to this total. Default: they do not."),
    ] = None
    retry: Annotated[
        bool,
        doc(
            "Retry a call once if the backend died before it sent anything, only for tools that it marks as"
            " 'readOnlyHint' or 'idempotentHint'."
        ),
    ] = False

    masked: dict[str, str] = field(default_factory=dict[str, str])
    """Values from variables and files, never shown, each with its spelling in the file. Not a field of the config
    file."""

    disabled_since: str | None = None
    """When the management API disabled it, or a phrase for that; None if its own config did."""

    @property
    def disabled_by(self) -> str:
        """What disabled it, and when; empty if it is enabled."""
        if not self.disabled:
            return ""
        if self.disabled_since is None:
            return "disabled by its config"
        return f"disabled since {self.disabled_since} over the management API (mcp-gateway disable)"

    @property
    def pins_era(self) -> bool:
        """Whether the config fixes the era."""
        return self.era in {"legacy", "modern"}

    @property
    def effective_namespace(self) -> str:
        """The part before the separator in public names; empty if tools keep their own names."""
        return self.name if self.namespace is None else self.namespace

    @property
    def uses_oauth(self) -> bool:
        """Whether a 401 of this server starts OAuth: never if the config has credentials."""
        if self.url is None or self.oauth is None or any(name.lower() == "authorization" for name in self.headers):
            return False
        return "@" not in self.url.partition("://")[2].partition("/")[0]

    @property
    def public_url(self) -> str | None:
        """`url` for display: without credentials, query and fragment, which may contain keys."""
        return None if self.url is None else public_address(self.without_secrets(self.url))

    def without_secrets(self, text: str) -> str:
        """Return the text with values from variables and files masked."""
        return Masker(dict.fromkeys(self.masked, MASK)).mask(text)

    def __repr__(self) -> str:
        target = (
            f"command={self.without_secrets(self.command or '')!r}" if self.url is None else f"url={self.public_url!r}"
        )
        env, headers = sorted(self.env), sorted(self.headers)
        return f"ServerConfig({self.name!r}, {self.transport}, {target}, env={env}, headers={headers})"


def public_address(url: str) -> str:
    """Return a URL without credentials, query and fragment."""
    from urllib.parse import urlsplit

    if "://" not in url:  # all of it comes from a variable
        return url
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(no valid address)"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class GatewaySettings(Struct, frozen=True):
    """Settings of the gateway as a whole; JSON section `gateway`."""

    name: Annotated[ShownName, doc("The name that clients see.", at_start_only=True)] = "trio-mcp-gateway"
    separator: Annotated[
        Separator, doc("Separator of namespace and name in public names; some clients need '__' or '_'.")
    ] = "."
    max_name_length: Annotated[NameLength, doc("Longer public names are shortened, with a hash.")] = 128
    start_grace: Annotated[
        Seconds,
        doc(
            "How long a list waits, from its request, for backends that have never listed anything. The default is"
            " longer for some clients whose timeouts are known."
        ),
    ] = 4.0
    drain_grace: Annotated[Seconds, doc("Time for active calls to finish when the gateway stops.")] = 5.0
    max_sessions: Annotated[
        Count,
        doc(
            "Maximum client sessions. Above it, unused anonymous ones are evicted, else new ones are refused with 503.",
            at_start_only=True,
        ),
    ] = 1000
    max_connections: Annotated[
        Count,
        doc("Maximum HTTP connections; silent and idle ones are closed, new ones wait up to 10 s.", at_start_only=True),
    ] = 5000
    max_silent_connections: Annotated[
        Capacity,
        doc(
            "Maximum connections of one address without a request yet; above it, the oldest is closed. Connections of"
            " this machine do not count. 0 (behind a trusted proxy): unlimited.",
            at_start_only=True,
        ),
    ] = 256
    session_idle_timeout: Annotated[
        Seconds, doc("Time without use after which a session ends.", at_start_only=True)
    ] = 1800.0
    max_body_bytes: Annotated[Count, doc("Maximum size of a request body; larger ones are refused with 413.")] = (
        4 * 1024 * 1024
    )
    max_buffered_bytes: Annotated[
        Count,
        doc(
            "Maximum bytes buffered in all: unread responses, messages that are arriving, large calls and kept events."
            " Above it, new calls are refused as busy, and the clients with the most unread bytes are disconnected.",
            at_start_only=True,
        ),
    ] = 256 * 1024 * 1024
    page_size: Annotated[Count | None, doc("Maximum entries in a page of a list; default: unlimited.")] = None
    max_client_requests: Annotated[
        Count, doc("Maximum requests of one client in flight; further ones are refused.", at_start_only=True)
    ] = 1024
    keep_alive_interval: Annotated[Seconds, doc("Interval of comments on a silent stream.")] = 15.0
    sse_after: Annotated[Seconds, doc("Time without an answer after which a response becomes an event stream.")] = 5.0
    list_change_delay: Annotated[Seconds, doc("List changes within this time are announced together.")] = 0.05
    log_format: Annotated[
        LogFormat, doc("Format of log lines: text or JSON; '--log-format' overrides it.", at_start_only=True)
    ] = "console"
    audit: Annotated[
        AuditSettings | None,
        switchable(AuditSettings),
        doc("Record each call with caller, target, duration and outcome; an object, true (the defaults) or false."),
    ] = None
    request_state_keys: Annotated[
        KeyList | None,
        doc(
            "Keys that seal `requestState`, newest first, the same for all replicas; default: random at each start.",
            at_start_only=True,
        ),
    ] = None

    def state_keys(self) -> list[bytes]:
        """Return the decoded keys of `request_state_keys`; none if none are given."""
        from base64 import b64decode

        words = (self.request_state_keys or "").replace("-", "+").replace("_", "/").split(",")
        return [b64decode(word.rstrip("=") + "=") for word in words if word]

    def __repr__(self) -> str:
        return f"GatewaySettings({self.name!r})"  # the keys must not end up in a log


class Config(Struct, frozen=True):
    """A whole config. `servers` is in file order and includes disabled ones."""

    servers: dict[str, ServerConfig]
    gateway: GatewaySettings = GatewaySettings()
    warnings: tuple[str, ...] = ()
    source: str = "config"
    access: AccessSettings | None = None
    """Access control of the endpoint; None if the config was built without it."""
    views: dict[str, ViewConfig] = field(default_factory=dict[str, "ViewConfig"])
    """Parts of the gateway with their own endpoints, by name."""
    masked: dict[str, str] = field(default_factory=dict[str, str])
    """Values from variables and files anywhere in the config, as in `ServerConfig.masked`."""

    def __repr__(self) -> str:
        return f"Config({list(self.servers.values())}, source={self.source!r})"
