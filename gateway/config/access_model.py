"""What a config says of who may use the gateway, read and checked: the section `access`.

No Struct here shows in its `repr` what a person could use: hashes and the secret of an introspection client stay out.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from gateway.config.model import Count, RateLimit, Seconds  # noqa: TC001 - annotations are read when it runs

KeyName = Annotated[
    str,
    Meta(pattern=r"\A[A-Za-z0-9_.@-]{1,64}\Z", title="1 to 64 letters, digits, '_', '.', '@' and '-'"),
]  # without a colon: principals of OAuth have one, so that neither can pass for the other
KeyHash = Annotated[
    str,
    Meta(pattern=r"\Asha256:[0-9a-f]{64}\Z", title="'sha256:' and 64 hex digits (`mcp-gateway hash-key` makes one)"),
]
Globs = Annotated[tuple[str, ...], Meta(title="a list of globs")]

ALL = ("*",)
# What an authorization server may sign with; all others, and above all 'none' and those with a shared secret, never.
ALGORITHMS = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
)  # fmt: skip


def _says(description: str) -> Meta:
    return Meta(description=description)


class Rules(Struct, frozen=True):
    """What somebody may do."""

    servers: Annotated[Globs, _says("Servers that it may use, by glob.")] = ALL
    tools: Annotated[
        Globs,
        _says(
            "Tools and prompts that it may use, by glob over their public names; resources only where all are ('*')."
        ),
    ] = ALL
    views: Annotated[
        tuple[str, ...] | None, _says("Views that it may use; left out: all, and the endpoint without a view.")
    ] = None
    rate_limit: Annotated[
        RateLimit | None,
        _says(
            "Calls that it gets at most: a number a second, or an object; lists and handshakes, which cost no"
            " server anything, do not count; left out: no limit."
        ),
    ] = None
    max_concurrency: Annotated[
        Count | None, _says("Calls of it that may be under way at once; left out: no limit.")
    ] = None
    max_sessions: Annotated[
        Count | None, _says("Sessions of it that may be open at once; left out: half of `gateway.max_sessions`.")
    ] = None


class AccessKey(Struct, frozen=True):
    """One key, and what it opens."""

    name: Annotated[KeyName, _says("Who it is for; what logs say, and what sessions are bound to.")]
    hash: Annotated[KeyHash, _says("The SHA-256 of the key, which is itself kept nowhere.")]
    rules: Rules = Rules()

    def __repr__(self) -> str:
        return f"AccessKey({self.name!r})"


class Introspection(Struct, frozen=True):
    """Where tokens are asked about that are no JWT (RFC 7662); JSON `introspection`."""

    url: Annotated[str, _says("The introspection endpoint.")]
    client_id: Annotated[str | None, _says("Who the gateway is there.")] = None
    client_secret: Annotated[str | None, _says("Its secret.")] = None
    cache: Annotated[Seconds, _says("How long an answer is believed; a token that was revoked works for so long.")] = (
        30.0
    )

    def __repr__(self) -> str:
        return f"Introspection({self.url.partition('?')[0]!r}, client_id={self.client_id!r})"


class ResourceServer(Struct, frozen=True):
    """How tokens of an authorization server are checked; JSON `oauth`."""

    resource: Annotated[str, _says("The address of the endpoint as clients know it, which tokens must be for.")]
    issuer: Annotated[str, _says("The authorization server, as its tokens name it.")]
    jwks_url: Annotated[str | None, _says("Where its keys are; left out: what its metadata says.")] = None
    audience: Annotated[
        tuple[str, ...], _says("Other values that a token's audience may have; left out: only 'resource'.")
    ] = ()
    algorithms: Annotated[tuple[str, ...], _says("What tokens may be signed with.")] = ("RS256", "ES256", "EdDSA")
    scopes: Annotated[tuple[str, ...], _says("Scopes that a token must have, all of them.")] = ()
    leeway: Annotated[Seconds, _says("How far the clocks of both may be apart.")] = 30.0
    introspection: Annotated[
        Introspection | None, _says("Ask the authorization server about each token instead of reading it.")
    ] = None
    rules: Rules = Rules()


class AccessSettings(Struct, frozen=True):
    """Who may use the MCP endpoint. With neither keys nor `oauth` everybody may, who reaches it."""

    keys: Annotated[
        tuple[AccessKey, ...],
        Meta(title="a list of keys"),
        _says("Keys that are let in; `mcp-gateway hash-key` makes one."),
    ] = ()
    oauth: Annotated[ResourceServer | None, _says("Let in who has a token of an authorization server.")] = None
    allow_origins: Annotated[
        tuple[str, ...], _says("Web pages that may use the gateway, each as 'https://HOST'; '*' for all.")
    ] = ()
    allow_hosts: Annotated[
        tuple[str, ...], _says("Host names by which clients reach it, such as those of a reverse proxy.")
    ] = ()

    @property
    def requires_credentials(self) -> bool:
        """Whether anybody is asked for anything."""
        return bool(self.keys) or self.oauth is not None

    @property
    def says_something(self) -> bool:
        """Whether the section says anything, so that the gateway is meant for others than this machine's users."""
        return self.requires_credentials or bool(self.allow_origins or self.allow_hosts)


NO_ACCESS = AccessSettings()
