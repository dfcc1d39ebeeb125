"""The field `oauth` of a server: how its tokens are obtained.

Other clients' files have a section of this name, so their spellings are accepted too. No line ever shows the secret.
The section is ignored for a server that is not on HTTP or has its credentials in `headers`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Struct

from gateway.config.fields import BOOLEAN, Port, Seconds, doc, read_by, specs_of
from gateway.config.findings import is_list, kind
from gateway.config.hosts import parse_authority
from gateway.config.scalars import read_switchable

if TYPE_CHECKING:
    from gateway.config.findings import Entry, Scope

OAuthGrant = Literal["authorization_code", "client_credentials"]
OAuthBrowser = Literal["auto", "open", "print", "elicit"]

_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")  # RFC 6749, 3.3
_ISSUER = re.compile(r"(https?)://(\[[0-9a-f:.]+\]|[^\s:@/?#\[\]\\]+)(?::([0-9]*))?(/\S*)?", re.ASCII | re.IGNORECASE)
_DEFAULT_PORTS = frozenset({("http", "80"), ("https", "443")})
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class OAuthSettings(Struct, frozen=True):
    """How to obtain tokens for a server that answers 401; JSON `oauth`.

    `repr` never shows the secret.
    """

    grant: Annotated[
        OAuthGrant,
        doc(
            "authorization_code: a user logs in; client_credentials: 'client_id' and 'client_secret' or 'private_key'."
        ),
    ] = "authorization_code"
    client_id: Annotated[
        str | None,
        doc(
            "The client registered at the authorization server; default: registered dynamically.", aliases=("clientId",)
        ),
    ] = None
    client_secret: Annotated[str | None, doc("The client's secret, if it has one.", aliases=("clientSecret",))] = None
    private_key: Annotated[
        str | None,
        doc("A PEM private key that signs in place of a secret, with client_credentials; RSA, EC or Ed25519."),
    ] = None
    client_metadata_url: Annotated[
        str | None,
        doc(
            "The https address of a client id metadata document, used where the server supports that.",
            aliases=("clientMetadataUrl",),
        ),
    ] = None
    issuer: Annotated[
        str | None,
        doc(
            "The only accepted issuer, even if the MCP server names another address for it;"
            " default: the one that it names."
        ),
    ] = None
    scopes: Annotated[
        Scopes,
        doc("Scopes to request besides those that the server requires.", aliases=("scope",)),
    ] = ()
    redirect_port: Annotated[
        Port | None,
        doc("The port on 127.0.0.1 for the browser's redirect; default: any free port.", aliases=("callbackPort",)),
    ] = None
    browser: Annotated[
        OAuthBrowser,
        doc(
            "How the login page is opened. elicit: the client whose call needs it is asked to open it; open: by"
            " a browser where the gateway runs; print: not at all, 'mcp-gateway login NAME' does it; auto: elicit if"
            " the client can, else open if there is a display, else print."
        ),
    ] = "auto"
    login_timeout: Annotated[Seconds, doc("Time limit for a login.")] = 300.0

    def __repr__(self) -> str:
        return f"OAuthSettings({self.grant}, client_id={self.client_id!r}, issuer={self.issuer!r})"


def read_oauth(scope: Scope, entry: Entry) -> OAuthSettings | None:
    """Read the section: an object, true for the defaults, false for never."""
    settings: OAuthSettings | None = read_switchable(OAuthSettings, None, scope, entry)
    if settings is None:
        return None
    for key in ("client_id", "client_secret", "private_key"):
        value: str | None = getattr(settings, key)
        if value is not None and not value.strip():
            scope.problem(f"{entry.label}.{key}", "must not be empty")
    if settings.client_metadata_url is not None and not _is_address(settings.client_metadata_url, document=True):
        scope.problem(f"{entry.label}.client_metadata_url", "must be an https address with a path")
    if settings.issuer is not None and not _is_address(settings.issuer):
        scope.problem(f"{entry.label}.issuer", "must be an https address, or an http one on this machine")
    if settings.client_secret is not None and settings.client_id is None:
        scope.problem(f"{entry.label}.client_secret", "needs 'client_id'")
    is_machine, secrets = settings.grant == "client_credentials", (settings.client_secret, settings.private_key)
    if settings.private_key is not None and not is_machine:
        scope.problem(f"{entry.label}.private_key", "is only for the grant 'client_credentials'")
    if is_machine and (settings.client_id is None or secrets.count(None) != 1):
        text = "is 'client_credentials', which needs 'client_id' and either 'client_secret' or 'private_key'"
        scope.problem(f"{entry.label}.grant", text)
    elif is_machine and settings.issuer is None:
        text = "is missing: without it 'url' decides which authorization server gets the secret"
        scope.warn(f"{entry.label}.issuer", text)
    return settings


def _read_scopes(scope: Scope, entry: Entry) -> tuple[str, ...]:
    """Read scopes: a list, or one space-separated string as in the protocol."""
    value = entry.value
    if not is_list(value) and not isinstance(value, str):
        scope.problem(entry.label, f"must be {specs_of(OAuthSettings)['scopes'].title}, not {kind(value)}")
        return ()
    words: list[Any] = value.split() if isinstance(value, str) else list(value)
    if not all(isinstance(word, str) and _SCOPE.fullmatch(word) for word in words):
        scope.problem(entry.label, "must contain scopes, each in plain ASCII without spaces and quotes")
        return ()
    return tuple(dict.fromkeys(words))


def _is_address(text: str, *, document: bool = False) -> bool:
    """Return whether secrets may be sent to this address."""
    from urllib.parse import urlsplit  # needed by few configs

    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    authority = parse_authority(parts.netloc)  # with a user name or password it is invalid
    if authority is None:
        return False
    if document:
        return parts.scheme == "https" and parts.path not in {"", "/"}
    return parts.scheme == "https" or (parts.scheme == "http" and authority.host in _LOOPBACK)


def normal_issuer(issuer: str) -> str:
    """Return the form in which issuers are compared and stored.

    RFC 8414, 3.3 requires identical strings, but servers vary their own issuer in ways that RFC 3986, 6.2.2.1 and 6.2.3
    call equivalent: the case of scheme and host, a default port, and "/" for an empty path. Only these are normalized.
    Any other text is returned unchanged.
    """
    found = _ISSUER.fullmatch(issuer)
    if found is None:
        return issuer
    scheme, host, port, path = found.groups()
    scheme = scheme.lower()
    suffix = "" if not port or (scheme, port) in _DEFAULT_PORTS else f":{port}"
    return f"{scheme}://{host.lower()}{suffix}{path or '/'}"


def is_same_issuer(first: object, second: str) -> bool:
    """Return whether both name the same authorization server; False for values that are not strings."""
    return isinstance(first, str) and normal_issuer(first) == normal_issuer(second)


OAuthField = Annotated[OAuthSettings | None, read_by(read_oauth, BOOLEAN)]
Scopes = Annotated[tuple[str, ...], read_by(_read_scopes, {"type": "string"})]
