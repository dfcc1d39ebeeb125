"""What a config holds once it has been read: frozen Structs of a server, of the gateway, and of the whole.

Fields that are objects have their Struct beside its reader, in the module of their name or concept.

A field's annotation is the single source of its meaning (`gateway.config.fields`). All times are seconds.
The Structs themselves check nothing; `parse_config` and `parse_server` do, and give readable lines.
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
"""Fields of `ServerConfig` that are no fields of the config file."""


class ServerConfig(Struct, frozen=True, kw_only=True):
    """One backend. `transport` None means that `url` must be probed: streamable HTTP first, then SSE.

    `repr` names the variables and headers and never shows what they hold, for it ends up in logs.
    """

    name: str
    transport: Annotated[
        TransportField,
        doc(
            "How the server is reached; also spelled 'type', and 'streamable-http' also 'http'. "
            "Left out: 'command' means stdio, a 'url' is probed.",
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
    args: Annotated[Arguments, doc("Its arguments; one that begins with '~/' is expanded.")] = ()
    env: Annotated[
        Environment,
        doc(
            "Variables added to the child's small safe environment, which is the user's home, path, locale, and the"
            " network's proxies and certificates."
        ),
    ] = field(default_factory=dict[str, str])
    env_file: Annotated[
        FilePath,
        doc(
            "A file of more such variables (NAME=VALUE lines), which '${NAME}' in this server's other fields finds too;"
            " relative to the config file; also spelled 'envFile'.",
            aliases=("envFile",),
        ),
    ] = None
    cwd: Annotated[FilePath, doc("The child's working directory; '~/' is the home directory.")] = None
    encoding: Annotated[Encoding, doc("The child's text encoding, one that keeps ASCII as it is.")] = "utf-8"
    encoding_error_handler: Annotated[ErrorHandler, doc("What happens to bytes that do not decode.")] = "strict"
    url: Annotated[Url, doc("The http or https address of a remote server.")] = None
    headers: Annotated[Headers, doc("HTTP headers sent with every request to 'url'.")] = field(
        default_factory=dict[str, str]
    )
    unix_socket: Annotated[FilePath, doc("Path of a Unix socket by which 'url' is reached.")] = None
    ca_file: Annotated[FilePath, doc("PEM file of the authorities to trust for 'url' instead of the system's.")] = None
    client_cert: Annotated[FilePath, doc("PEM file of the certificate shown to 'url', with its key if it has it.")] = (
        None
    )
    client_key: Annotated[FilePath, doc("PEM file of the key of 'client_cert', where that file has none.")] = None
    oauth: Annotated[
        OAuthField,
        doc("How tokens are got if 'url' asks for them and 'headers' has no 'Authorization'; false: never."),
    ] = OAuthSettings()
    disabled: Annotated[bool, doc("Keep the entry but do not use it; 'enabled' is its opposite.")] = False
    call_timeout: Annotated[
        Seconds, doc("The longest a call may take; also spelled 'timeout'.", aliases=("timeout",))
    ] = 300.0
    connect_timeout: Annotated[Seconds, doc("The longest a start may take, handshake included.")] = 30.0
    # Below start_grace: a legacy server that meets the probe with silence must still make the first list. One that is
    # only slow to start answers the probe later, which counts too.
    probe_timeout: Annotated[Seconds, doc("How long 'server/discover' is waited for before 'initialize'.")] = 1.0
    max_concurrency: Annotated[Count, doc("Calls that this backend works on at once.")] = 64
    queue_size: Annotated[Capacity, doc("Calls that may wait beyond those; more are refused as busy.")] = 256
    max_line_bytes: Annotated[Count, doc("The longest line a stdio backend may write.")] = 16 * 1024 * 1024
    restart: Annotated[
        RestartField, doc("When to start it again: an object, true (the defaults) or false (never).")
    ] = RestartPolicy()
    shutdown_grace: Annotated[
        ShutdownGraceField, doc("The shutdown sequence: an object, a list of its three waits, or the first one alone.")
    ] = ShutdownGrace()
    namespace: Annotated[
        Namespace | None,
        doc("Comes before the names of its tools; left out: the server's name; \"\": the tools' own names."),
    ] = None
    era: Annotated[
        Era,
        doc(
            "The protocol era to use: legacy, modern, or auto, which asks the server. Where it offers both, clients of"
            " each era get a session of their own over HTTP; a child process is started in the era of the clients that"
            " use it, and each starts one for either era."
        ),
    ] = "auto"
    session: Annotated[
        SessionMode,
        doc(
            "shared: one session for all clients. client: one (for stdio: a process) for each client, for servers that"
            " keep state or ask their client. call: a fresh one for each call."
        ),
    ] = "shared"
    max_client_sessions: Annotated[Count, doc("Sessions at once when they are not shared.")] = 64
    start: Annotated[Start, doc("eager: with the gateway; lazy: at the first use.")] = "eager"
    idle_timeout: Annotated[Seconds | None, doc("Stop the backend after so long without a call.")] = None
    required: Annotated[bool, doc("Whether '/readyz' says no while this server is not ready.")] = False
    rate_limit: Annotated[
        RateLimitField, doc("Calls that it gets at most: a number a second, or an object; left out: no limit.")
    ] = None
    circuit_breaker: Annotated[
        CircuitBreakerField,
        doc("Refuse calls for a while after failures in a row: an object, true (the defaults) or false."),
    ] = None
    crash_limit: Annotated[
        CrashLimitField,
        doc(
            "Refuse calls of a client, as busy, after its calls have crashed the server several times: an object, true"
            " (the defaults) or false."
        ),
    ] = CrashLimit()
    ping_interval: Annotated[
        Seconds | None, doc("Ask an idle backend so often whether it lives; one that is silent is restarted.")
    ] = None
    tool_timeouts: Annotated[
        ToolTimeouts,
        doc("'call_timeout' of single tools, by a glob over their own names; the first that fits."),
    ] = field(default_factory=dict[str, float])
    tools: Annotated[
        ToolsField,
        doc(
            "Which of its tools are offered, and how; a list is what is included. Changes of it hold at once, without a"
            " restart of the server."
        ),
    ] = ALL_TOOLS
    max_call_time: Annotated[
        Seconds | None,
        doc("Have progress start a call's time anew, up to so long in all; left out: progress changes nothing."),
    ] = None
    retry: Annotated[
        bool,
        doc(
            "Send a call once more if the backend died before it said anything, and only to tools that it marks as"
            " 'readOnlyHint' or 'idempotentHint'."
        ),
    ] = False

    masked: dict[str, str] = field(default_factory=dict[str, str])
    """What variables and files gave, wherever it stands now: never shown; with how the file spells each. Not a field of
    the config file."""

    disabled_since: str | None = None
    """When the management API has disabled it, or words for that; None where its own config says so."""

    @property
    def disabled_by(self) -> str:
        """What has disabled it, and since when; empty if it is enabled."""
        if not self.disabled:
            return ""
        if self.disabled_since is None:
            return "disabled by its config"
        return f"disabled since {self.disabled_since} over the management API (mcp-gateway disable)"

    @property
    def pins_era(self) -> bool:
        """Whether the config says which era to use."""
        return self.era in {"legacy", "modern"}

    @property
    def effective_namespace(self) -> str:
        """What stands before the separator in public names; empty when the tools keep their own names."""
        return self.name if self.namespace is None else self.namespace

    @property
    def uses_oauth(self) -> bool:
        """Whether a 401 of this server starts OAuth: never where the config itself gives credentials."""
        if self.url is None or self.oauth is None or any(name.lower() == "authorization" for name in self.headers):
            return False
        return "@" not in self.url.partition("://")[2].partition("/")[0]

    @property
    def public_url(self) -> str | None:
        """`url` as it may be shown: without credentials, query and fragment, where keys travel."""
        return None if self.url is None else public_address(self.without_secrets(self.url))

    def without_secrets(self, text: str) -> str:
        """The text with what variables and files gave masked."""
        return Masker(dict.fromkeys(self.masked, MASK)).mask(text)

    def __repr__(self) -> str:
        target = (
            f"command={self.without_secrets(self.command or '')!r}" if self.url is None else f"url={self.public_url!r}"
        )
        env, headers = sorted(self.env), sorted(self.headers)
        return f"ServerConfig({self.name!r}, {self.transport}, {target}, env={env}, headers={headers})"


def public_address(url: str) -> str:
    """An address without credentials, query and fragment."""
    from urllib.parse import urlsplit

    if "://" not in url:  # a variable holds all of it
        return url
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(no valid address)"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class GatewaySettings(Struct, frozen=True):
    """What holds for the gateway as a whole; JSON section `gateway`."""

    name: Annotated[ShownName, doc("The name that clients see.", at_start_only=True)] = "trio-mcp-gateway"
    separator: Annotated[
        Separator, doc("Stands between namespace and name; some desktop clients need '__' or '_'.")
    ] = "."
    max_name_length: Annotated[NameLength, doc("Longer public names are shortened, with a hash.")] = 128
    start_grace: Annotated[
        Seconds,
        doc(
            "The longest a list waits for backends that have never listed anything, from its request on; left out, also"
            " longer for some clients that are known to wait."
        ),
    ] = 4.0
    drain_grace: Annotated[Seconds, doc("Time that running calls get to finish when the gateway stops.")] = 5.0
    max_sessions: Annotated[
        Count,
        doc(
            "Client sessions at once; unused anonymous ones make room, else more are refused with 503.",
            at_start_only=True,
        ),
    ] = 1000
    max_connections: Annotated[
        Count,
        doc("HTTP connections at once; silent and idle ones make room, new ones wait up to 10 s.", at_start_only=True),
    ] = 5000
    max_silent_connections: Annotated[
        Capacity,
        doc(
            "Connections of one address that have not sent a request yet; over it the oldest is closed. Not for this"
            " machine; 0 (behind a trusted proxy): no bound.",
            at_start_only=True,
        ),
    ] = 256
    session_idle_timeout: Annotated[Seconds, doc("A session unused for so long ends.", at_start_only=True)] = 1800.0
    max_body_bytes: Annotated[Count, doc("The largest request body; more is refused with 413.")] = 4 * 1024 * 1024
    page_size: Annotated[Count | None, doc("Entries in one page of a list; left out: all in one.")] = None
    max_client_requests: Annotated[
        Count, doc("Requests of one client in flight; more are refused.", at_start_only=True)
    ] = 1024
    keep_alive_interval: Annotated[Seconds, doc("Time between two comments on a silent stream.")] = 15.0
    sse_after: Annotated[Seconds, doc("Silence after which a JSON answer turns into a stream.")] = 5.0
    list_change_delay: Annotated[Seconds, doc("Changes of lists within it are announced as one.")] = 0.05
    log_format: Annotated[
        LogFormat, doc("How log lines look: for people, or as JSON; '--log-format' overrides it.", at_start_only=True)
    ] = "console"
    audit: Annotated[
        AuditSettings | None,
        switchable(AuditSettings),
        doc("Note each call: who, what, how long, how it ended; an object, true (the defaults) or false."),
    ] = None
    request_state_keys: Annotated[
        KeyList | None,
        doc(
            "Keys that seal `requestState`, newest first, shared by replicas; left out: random for each process.",
            at_start_only=True,
        ),
    ] = None

    def state_keys(self) -> list[bytes]:
        """The keys of `request_state_keys`, decoded; none where none are given."""
        from base64 import b64decode

        words = (self.request_state_keys or "").replace("-", "+").replace("_", "/").split(",")
        return [b64decode(word.rstrip("=") + "=") for word in words if word]

    def __repr__(self) -> str:
        return f"GatewaySettings({self.name!r})"  # the keys must not end up in a log


class Config(Struct, frozen=True):
    """One config as a whole. `servers` is in file order and holds the disabled ones too."""

    servers: dict[str, ServerConfig]
    gateway: GatewaySettings = GatewaySettings()
    warnings: tuple[str, ...] = ()
    source: str = "config"
    access: AccessSettings | None = None
    """Who may use the endpoint; None where the config was made without a word about it."""
    views: dict[str, ViewConfig] = field(default_factory=dict[str, "ViewConfig"])
    """Parts of the gateway with an endpoint of their own, by name."""
    masked: dict[str, str] = field(default_factory=dict[str, str])
    """What variables and files gave anywhere in the config, as in `ServerConfig.masked`."""

    def __repr__(self) -> str:
        return f"Config({list(self.servers.values())}, source={self.source!r})"
