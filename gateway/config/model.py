"""What a config holds once it has been read: frozen Structs, and nothing that still has to be decided.

A field's annotation is the single source of its meaning: the type, the bounds and the wording of the bounds
(`title`) drive the reader, and the description is its line in `--help` and in the README. All times are seconds.
The Structs themselves check nothing; `parse_config` and `parse_server` do, and give readable lines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta, Struct, field

from gateway.config.audit import AuditSettings  # ruff: ignore[typing-only-first-party-import] - msgspec reads it
from gateway.config.offered_model import ALL_TOOLS, ToolChoice
from gateway.masking import MASK, Masker

if TYPE_CHECKING:
    from gateway.config.access_model import AccessSettings
    from gateway.config.views_model import ViewConfig

Transport = Literal["stdio", "sse", "streamable-http"]
Era = Literal["auto", "legacy", "modern"]
Start = Literal["eager", "lazy"]
SessionMode = Literal["shared", "client", "call"]
ErrorHandler = Literal["strict", "ignore", "replace"]
OAuthGrant = Literal["authorization_code", "client_credentials"]
LogFormat = Literal["console", "json"]
OAuthBrowser = Literal["auto", "open", "print", "elicit"]

# Some thirty years: long enough for "never", short enough for every clock that a deadline meets.
LONGEST_SECONDS = 1e9
LARGEST_COUNT = 2**53 - 1

NOT_WRITTEN = frozenset({"name", "masked"})
"""Fields of `ServerConfig` that are no fields of the config file."""

Seconds = Annotated[float, Meta(gt=0, le=LONGEST_SECONDS, title="a number of seconds above 0")]
Count = Annotated[int, Meta(ge=1, le=LARGEST_COUNT, title="a whole number of at least 1")]
Room = Annotated[int, Meta(ge=0, le=LARGEST_COUNT, title="a whole number of at least 0")]
Rate = Annotated[float, Meta(gt=0, le=LONGEST_SECONDS, title="a number of calls a second, above 0")]
TimesByGlob = Annotated[dict[str, Seconds], Meta(title="an object of seconds by glob")]
Share = Annotated[float, Meta(ge=0, le=1, title="a number from 0 to 1")]
Port = Annotated[int, Meta(ge=1, le=65_535, title="a port, 1 to 65535")]
NameLength = Annotated[int, Meta(ge=16, le=LARGEST_COUNT, title="a whole number of at least 16")]
Namespace = Annotated[
    str, Meta(pattern=r"\A[A-Za-z0-9_.-]{0,64}\Z", title="at most 64 letters, digits, '_', '-' and '.'")
]
Separator = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_.-]{1,8}\Z", title="1 to 8 letters, digits, '_', '-' and '.'")]
KeyList = Annotated[
    str,
    Meta(
        pattern=r"\A[A-Za-z0-9+/_-]{43}=?(,[A-Za-z0-9+/_-]{43}=?)*\Z",
        title="one or more keys of 32 bytes in Base64, with commas between (make one with `openssl rand -base64 32`)",
    ),
]
ShownName = Annotated[
    str, Meta(pattern=r"\A[^\x00-\x1f\x7f\ud800-\udfff]{1,128}\Z", title="1 to 128 characters in one line")
]


def _says(description: str) -> Meta:
    return Meta(description=description)


class ShutdownGrace(Struct, frozen=True):
    """How long each rung of the stop ladder waits before the next one; JSON `shutdown_grace`."""

    close_stdin: Annotated[Seconds, _says("Wait after closing the child's stdin, before SIGTERM.")] = 2.0
    terminate: Annotated[Seconds, _says("Wait after SIGTERM to the group, before SIGKILL.")] = 2.0
    kill: Annotated[Seconds, _says("Wait after SIGKILL to the group, before giving up.")] = 1.0


class RestartPolicy(Struct, frozen=True):
    """When a backend that went away is started again; JSON `restart`."""

    initial_delay: Annotated[Seconds, _says("Wait before the first restart; it doubles with each failure.")] = 0.5
    max_delay: Annotated[Seconds, _says("The longest wait between two starts.")] = 30.0
    jitter: Annotated[Share, _says("Random part of each wait, so that backends do not restart in step.")] = 0.2
    max_quick_failures: Annotated[
        Count,
        _says(
            "After this many quick failures in a row the backend is marked failed; a session that served calls is none."
        ),
    ] = 5
    healthy_after: Annotated[
        Seconds, _says("Uptime after which the failure count is reset; a session that served calls resets it too.")
    ] = 30.0


# `"restart": false`. The first end of the backend is its last: no run is ever long enough to be forgiven.
NEVER_RESTART = RestartPolicy(max_quick_failures=1, healthy_after=LONGEST_SECONDS)


class RateLimit(Struct, frozen=True):
    """How many calls a server gets; JSON `rate_limit`. What is more is refused at once, as busy."""

    per_second: Annotated[Rate, _says("Calls a second that are let through in the long run.")]
    burst: Annotated[Count, _says("Calls that may come at once after a quiet time.")] = 10


class CircuitBreaker(Struct, frozen=True):
    """When a server that keeps failing gets no calls for a while; JSON `circuit_breaker`."""

    failures: Annotated[
        Count, _says("After so many calls in a row that timed out or that the server did not live to answer, it opens.")
    ] = 5
    open_for: Annotated[Seconds, _says("Calls are refused for so long; then one is let through to try.")] = 30.0


class CrashLimit(Struct, frozen=True):
    """When a client whose calls crash a server gets no more calls there for a while; JSON `crash_limit`."""

    crashes: Annotated[
        Count, _says("Crashes after which calls are refused; each counts to the sender of the call that was sent last.")
    ] = 3
    within: Annotated[Seconds, _says("Time in which they must happen; a crash that is longer ago counts no more.")] = (
        600.0
    )


class OAuthSettings(Struct, frozen=True):
    """How tokens are got for a server that asks for them with a 401; JSON `oauth`. `repr` never shows the secret."""

    grant: Annotated[
        OAuthGrant, _says("authorization_code: a person logs in; client_credentials: 'client_id' and 'client_secret'.")
    ] = "authorization_code"
    client_id: Annotated[
        str | None, _says("The client registered at the authorization server; left out: registered on the way.")
    ] = None
    client_secret: Annotated[str | None, _says("Its secret, if it has one.")] = None
    client_metadata_url: Annotated[
        str | None, _says("The https address of a client id metadata document, used where the server supports that.")
    ] = None
    issuer: Annotated[
        str | None,
        _says(
            "The only issuer that is accepted, also where the MCP server names another address for it;"
            " left out: the one that it names."
        ),
    ] = None
    scopes: Annotated[tuple[str, ...], _says("Scopes to ask for besides those that the server demands.")] = ()
    redirect_port: Annotated[
        Port | None, _says("The port on 127.0.0.1 that the browser comes back to; left out: any free one.")
    ] = None
    browser: Annotated[
        OAuthBrowser,
        _says(
            "How a person gets to the login page. elicit: the client whose call needs it is asked to open it; open: by"
            " a browser where the gateway runs; print: not at all, 'mcp-gateway login NAME' does it; auto: elicit where"
            " the client can, else open where there is a display, else print."
        ),
    ] = "auto"
    login_timeout: Annotated[Seconds, _says("The longest a login may take.")] = 300.0

    def __repr__(self) -> str:
        return f"OAuthSettings({self.grant}, client_id={self.client_id!r}, issuer={self.issuer!r})"


class ServerConfig(Struct, frozen=True, kw_only=True):
    """One backend. `transport` None means that `url` must be probed: streamable HTTP first, then SSE.

    `repr` names the variables and headers and never shows what they hold, for it ends up in logs.
    """

    name: str
    transport: Annotated[
        Transport | None,
        _says(
            "How the server is reached; also spelled 'type', and 'streamable-http' also 'http'. "
            "Left out: 'command' means stdio, a 'url' is probed."
        ),
    ] = None
    command: Annotated[str | None, _says("The program to start; '~/' is the home directory.")] = None
    args: Annotated[tuple[str, ...], _says("Its arguments; one that begins with '~/' is expanded.")] = ()
    env: Annotated[
        dict[str, str],
        _says(
            "Variables added to the child's small safe environment, which is the user's home, path, locale, and the"
            " network's proxies and certificates."
        ),
    ] = field(default_factory=dict[str, str])
    env_file: Annotated[
        str | None,
        _says(
            "A file of more such variables (NAME=VALUE lines), which '${NAME}' in this server's other fields finds too;"
            " relative to the config file; also spelled 'envFile'."
        ),
    ] = None
    cwd: Annotated[str | None, _says("The child's working directory; '~/' is the home directory.")] = None
    encoding: Annotated[str, _says("The child's text encoding, one that keeps ASCII as it is.")] = "utf-8"
    encoding_error_handler: Annotated[ErrorHandler, _says("What happens to bytes that do not decode.")] = "strict"
    url: Annotated[str | None, _says("The http or https address of a remote server.")] = None
    headers: Annotated[dict[str, str], _says("HTTP headers sent with every request to 'url'.")] = field(
        default_factory=dict[str, str]
    )
    unix_socket: Annotated[str | None, _says("Path of a Unix socket by which 'url' is reached.")] = None
    ca_file: Annotated[str | None, _says("PEM file of the authorities to trust for 'url' instead of the system's.")] = (
        None
    )
    client_cert: Annotated[
        str | None, _says("PEM file of the certificate shown to 'url', with its key if it has it.")
    ] = None
    client_key: Annotated[str | None, _says("PEM file of the key of 'client_cert', where that file has none.")] = None
    oauth: Annotated[
        OAuthSettings | None,
        _says("How tokens are got if 'url' asks for them and 'headers' has no 'Authorization'; false: never."),
    ] = OAuthSettings()
    disabled: Annotated[bool, _says("Keep the entry but do not use it; 'enabled' is its opposite.")] = False
    call_timeout: Annotated[Seconds, _says("The longest a call may take; also spelled 'timeout'.")] = 300.0
    connect_timeout: Annotated[Seconds, _says("The longest a start may take, handshake included.")] = 30.0
    # Below start_grace: a legacy server that meets the probe with silence must still make the first list. One that is
    # only slow to start answers the probe later, which counts too.
    probe_timeout: Annotated[Seconds, _says("How long 'server/discover' is waited for before 'initialize'.")] = 1.0
    max_concurrency: Annotated[Count, _says("Calls that this backend works on at once.")] = 64
    queue_size: Annotated[Room, _says("Calls that may wait beyond those; more are refused as busy.")] = 256
    max_line_bytes: Annotated[Count, _says("The longest line a stdio backend may write.")] = 16 * 1024 * 1024
    restart: Annotated[
        RestartPolicy, _says("When to start it again: an object, true (the defaults) or false (never).")
    ] = RestartPolicy()
    shutdown_grace: Annotated[
        ShutdownGrace, _says("The stop ladder: an object, a list of its three waits, or the first one alone.")
    ] = ShutdownGrace()
    namespace: Annotated[
        Namespace | None,
        _says("Comes before the names of its tools; left out: the server's name; \"\": the tools' own names."),
    ] = None
    era: Annotated[Era, _says("The protocol spoken; auto asks 'server/discover' first.")] = "auto"
    session: Annotated[
        SessionMode,
        _says(
            "shared: one session for all clients. client: one (for stdio: a process) for each client, for servers that"
            " keep state or ask their client. call: a fresh one for each call."
        ),
    ] = "shared"
    max_client_sessions: Annotated[Count, _says("Sessions at once when they are not shared.")] = 64
    start: Annotated[Start, _says("eager: with the gateway; lazy: at the first use.")] = "eager"
    idle_timeout: Annotated[Seconds | None, _says("Stop the backend after so long without a call.")] = None
    required: Annotated[bool, _says("Whether '/readyz' says no while this server is not ready.")] = False
    rate_limit: Annotated[
        RateLimit | None, _says("Calls that it gets at most: a number a second, or an object; left out: no limit.")
    ] = None
    circuit_breaker: Annotated[
        CircuitBreaker | None,
        _says("Refuse calls for a while after failures in a row: an object, true (the defaults) or false."),
    ] = None
    crash_limit: Annotated[
        CrashLimit | None,
        _says(
            "Refuse calls of a client, as busy, after its calls have crashed the server several times: an object, true"
            " (the defaults) or false."
        ),
    ] = CrashLimit()
    ping_interval: Annotated[
        Seconds | None, _says("Ask an idle backend so often whether it lives; one that is silent is restarted.")
    ] = None
    tool_timeouts: Annotated[
        TimesByGlob,
        _says("'call_timeout' of single tools, by a glob over their own names; the first that fits."),
    ] = field(default_factory=dict[str, float])
    tools: Annotated[
        ToolChoice,
        _says(
            "Which of its tools are offered, and how; a list is what is included. Changes of it hold at once, without a"
            " restart of the server."
        ),
    ] = ALL_TOOLS
    max_call_time: Annotated[
        Seconds | None,
        _says("Have progress start a call's time anew, up to so long in all; left out: progress changes nothing."),
    ] = None
    retry: Annotated[
        bool,
        _says(
            "Send a call once more if the backend died before it said anything, and only to tools that it marks as"
            " 'readOnlyHint' or 'idempotentHint'."
        ),
    ] = False

    masked: dict[str, str] = field(default_factory=dict[str, str])
    """What variables and files gave, wherever it stands now: never shown; with how the file spells each. Not a field of
    the config file."""

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

    name: Annotated[ShownName, _says("The name that clients see.")] = "trio-mcp-gateway"
    separator: Annotated[
        Separator, _says("Stands between namespace and name; some desktop clients need '__' or '_'.")
    ] = "."
    max_name_length: Annotated[NameLength, _says("Longer public names are shortened, with a hash.")] = 128
    start_grace: Annotated[Seconds, _says("The longest a list waits for backends in their first start.")] = 2.0
    drain_grace: Annotated[Seconds, _says("Time that running calls get to finish when the gateway stops.")] = 5.0
    max_sessions: Annotated[
        Count, _says("Client sessions at once; unused anonymous ones make room, else more are refused with 503.")
    ] = 1000
    max_connections: Annotated[
        Count, _says("HTTP connections at once; silent and idle ones make room, new ones wait up to 10 s.")
    ] = 5000
    max_silent_connections: Annotated[
        Room,
        _says(
            "Connections of one address that have not sent a request yet; over it the oldest is closed. Not for this"
            " machine; 0 (behind a trusted proxy): no bound."
        ),
    ] = 256
    session_idle_timeout: Annotated[Seconds, _says("A session unused for so long ends.")] = 1800.0
    max_body_bytes: Annotated[Count, _says("The largest request body; more is refused with 413.")] = 4 * 1024 * 1024
    page_size: Annotated[Count | None, _says("Entries in one page of a list; left out: all in one.")] = None
    max_client_requests: Annotated[Count, _says("Requests of one client in flight; more are refused.")] = 1024
    keep_alive_interval: Annotated[Seconds, _says("Time between two comments on a silent stream.")] = 15.0
    sse_after: Annotated[Seconds, _says("Silence after which a JSON answer turns into a stream.")] = 5.0
    list_change_delay: Annotated[Seconds, _says("Changes of lists within it are announced as one.")] = 0.05
    log_format: Annotated[
        LogFormat, _says("How log lines look: for people, or as JSON; '--log-format' overrides it.")
    ] = "console"
    audit: Annotated[
        AuditSettings | None,
        _says("Note each call: who, what, how long, how it ended; an object, true (the defaults) or false."),
    ] = None
    request_state_keys: Annotated[
        KeyList | None,
        _says("Keys that seal `requestState`, newest first, shared by replicas; left out: random for each process."),
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
