"""Tolerant parsing of authorization servers' responses, without I/O.

The SDK's models reject a whole response for one odd member, with the messages of their validation library. Here a
response is reduced to the members that a login needs: harmless deviations are accepted (a lifetime of `3599.5`, scopes
as a list, nulls), unusable ones are rejected with a sentence that names the member and the server. The result is always
valid for the SDK's models.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import parse_qsl, urlsplit

import msgspec

from gateway.config.findings import kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.http_client.body import ResponseHead

    Members = Mapping[str, object]

MAX_TEXT: Final = 200
"""Maximum length of a server's text in messages."""
MAX_LIFETIME: Final = 1_000_000_000.0
"""Seconds (30 years); a longer token lifetime is treated as a placeholder."""
UNAUTHORIZED: Final = 401
FORBIDDEN: Final = 403
SUCCESS: Final = range(200, 300)
REDIRECT: Final = range(300, 400)
_TOKEN = re.compile(r"[\x21-\x7e]+")  # RFC 6749, A.12; anything else would break the header
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")  # RFC 6749, 3.3
_PARAMETER = re.compile(r"""([A-Za-z0-9_.*-]+)\s*=\s*(?:"((?:\\.|[^"\\])*)"?|([^\s,"]+))""", re.ASCII)
_BEARER = re.compile(r"(?:^|[\s,])bearer(?=\s|$)", re.ASCII | re.IGNORECASE)
_SECRET_METHODS = frozenset({"client_secret_basic", "client_secret_post"})


class Challenge(msgspec.Struct, frozen=True):
    """A server's refusal that another token may satisfy: 401, or 403 for a missing scope."""

    status: int
    header: str
    """Its `WWW-Authenticate`, perhaps empty."""

    @property
    def step_up(self) -> bool:
        """Whether the token is valid but lacks a scope."""
        return self.status != UNAUTHORIZED


def challenge_of(response: ResponseHead) -> Challenge | None:
    """Return the response's challenge, if it has one."""
    header = response.headers.get("www-authenticate", "")
    refused = response.status_code == UNAUTHORIZED
    wants_more = response.status_code == FORBIDDEN and "insufficient_scope" in header
    return Challenge(response.status_code, header) if refused or wants_more else None


class UnusableAnswer(Exception):
    """The response is unusable; the text names the server and the member."""


def read_challenge(header: str) -> dict[str, str]:
    """Return `resource_metadata`, `scope` and `error` of a `WWW-Authenticate`, as far as they are readable.

    The parameters are those of the `Bearer` challenge if there is one, else of all: servers omit the scheme, forget
    quotes and repeat parameters, of which the first counts.
    """
    found = _BEARER.search(header)
    members: dict[str, str] = {}
    for name, quoted, bare in _PARAMETER.findall(header[found.end() :] if found else header):
        members.setdefault(name.lower(), re.sub(r"\\(.)", r"\1", quoted) or bare)
    address = members.get("resource_metadata", "").split()
    scopes = _scopes(members.get("scope"))
    error = _scopes(members.get("error"))
    named = {
        "resource_metadata": address[0].rstrip(",") if address else "",
        "scope": " ".join(scopes),
        "error": error[0] if error else "",
    }
    return {name: value for name, value in named.items() if value and value.isascii()}


def describe(status: int, content_type: str, body: bytes) -> str:
    """Describe an error response in one line: its status and its error."""
    text = f"HTTP {status}"
    if status in REDIRECT:
        return f"{text}, a redirect that is not followed"
    try:
        members = _decode(body, content_type)
    except ValueError:
        if _is_html(content_type, body):
            return f"{text} and an HTML page"
        shown = _plain(body.decode("utf-8", "replace"))
        return f"{text}: {shown}" if shown else text
    said = error_in(members)
    return f"{text}: {said}" if said else text


def error_in(members: Members) -> str:
    """Return the error in a JSON object (RFC 6749, 5.2, or servers' variants), or ""."""
    error: object = members.get("error")
    parts = [error, members.get("error_description")]
    if isinstance(error, dict):
        nested = cast("Members", error)
        parts = [nested.get("code", nested.get("type")), nested.get("message", nested.get("error_description"))]
    words = [_plain(str(one)) for one in parts if isinstance(one, str | int) and one not in {"", True, False}]
    if not words and error is None:
        words = [_plain(one) for name in ("message", "detail", "title") if isinstance(one := members.get(name), str)][
            :1
        ]
    return ": ".join(filter(None, words))[:MAX_TEXT]


def read_object(body: bytes, content_type: str, where: str) -> dict[str, object]:
    """Return a response's JSON object; also accept the form encoding of some servers.

    Raises:
        UnusableAnswer: it is not an object.
    """
    try:
        return _decode(body, content_type)
    except ValueError:
        what = "an HTML page" if _is_html(content_type, body) else "an empty body" if not body.strip() else "a body"
        text = f"{where} answered with {what} that is not a JSON object"
        raise UnusableAnswer(text) from None


def read_token(members: Members, where: str) -> dict[str, object]:
    """Return the used members of a token response (RFC 6749, 5.1).

    Raises:
        UnusableAnswer: it has no usable token.
    """
    token, method = members.get("access_token"), members.get("token_type")
    if token is None and (said := error_in(members)):
        text = f"{where} answered with the error {said}"
        raise UnusableAnswer(text)
    if not isinstance(token, str) or _TOKEN.fullmatch(token) is None:
        raise UnusableAnswer(_odd(members, "access_token", where, "visible ASCII characters without spaces"))
    if method is not None and not (isinstance(method, str) and method.strip().lower() in {"", "bearer"}):
        raise UnusableAnswer(_odd(members, "token_type", where, "'Bearer', the only supported type"))
    renewal = members.get("refresh_token")
    answer: dict[str, object] = {
        "access_token": token,
        "token_type": "Bearer",
        "expires_in": _lifetime(members.get("expires_in")),
        "scope": " ".join(_scopes(members.get("scope"))) or None,
        "refresh_token": renewal if isinstance(renewal, str) and renewal and renewal.isprintable() else None,
    }
    return {name: value for name, value in answer.items() if value is not None}


def read_registration(members: Members, where: str, wanted: Sequence[str]) -> dict[str, object]:
    """Return the used members of a client information response (RFC 7591, 3.2.1).

    `wanted` are the requested redirect URIs: a server that names none has registered those. A client that should
    authenticate with a secret but got none is a public client.

    Raises:
        UnusableAnswer: it has no client.
    """
    client, secret = members.get("client_id"), members.get("client_secret")
    if client is None and (said := error_in(members)):
        text = f"{where} answered with the error {said}"
        raise UnusableAnswer(text)
    if isinstance(client, int) and not isinstance(client, bool):
        client = str(client)
    if not isinstance(client, str) or not client.strip() or not client.isprintable():
        raise UnusableAnswer(_odd(members, "client_id", where, "a string"))
    answer: dict[str, object] = {"client_id": client}
    uris = [one for one in _texts(members.get("redirect_uris")) if is_url(one)]
    answer["redirect_uris"] = uris or list(wanted)
    if isinstance(secret, str) and secret:
        answer["client_secret"] = secret
    method = members.get("token_endpoint_auth_method")
    if isinstance(method, str) and method and ("client_secret" in answer or method not in _SECRET_METHODS):
        answer["token_endpoint_auth_method"] = method
    return answer


def read_server(members: Members, where: str, *, is_visited: bool) -> dict[str, object]:
    """Return the used members of authorization server metadata (RFC 8414, 2).

    A server for client credentials needs no login page.

    Raises:
        UnusableAnswer: a member that a login needs is missing or wrong.
    """
    if not is_visited:
        members = {"authorization_endpoint": members.get("token_endpoint"), **members}
    answer: dict[str, object] = {}
    for name in ("issuer", "authorization_endpoint", "token_endpoint", "registration_endpoint"):
        value = members.get(name)
        if name == "registration_endpoint" and (value is None or not value):
            continue
        if not is_url(value):
            raise UnusableAnswer(_odd(members, name, where, "an http or https address"))
        answer[name] = value
    for name in ("scopes_supported", "code_challenge_methods_supported", "token_endpoint_auth_methods_supported"):
        if members.get(name) is not None:
            answer[name] = _scopes(members[name])
    for name in ("client_id_metadata_document_supported", "authorization_response_iss_parameter_supported"):
        if members.get(name) is True or str(members.get(name)).lower() == "true":
            answer[name] = True
    return answer


def read_resource(members: Members, where: str) -> dict[str, object]:
    """Return the used members of protected resource metadata (RFC 9728, 2).

    Raises:
        UnusableAnswer: it names no resource or no authorization server.
    """
    servers = [one for one in _texts(members.get("authorization_servers")) if is_url(one)]
    if not is_url(members.get("resource")):
        raise UnusableAnswer(_odd(members, "resource", where, "an http or https address"))
    if not servers:
        raise UnusableAnswer(_odd(members, "authorization_servers", where, "a list of http or https addresses"))
    answer: dict[str, object] = {"resource": members["resource"], "authorization_servers": servers}
    if members.get("scopes_supported") is not None:
        answer["scopes_supported"] = _scopes(members["scopes_supported"])
    return answer


def is_url(value: object) -> bool:
    """Return whether the value is an absolute HTTP URL."""
    if not isinstance(value, str) or not value.isprintable() or " " in value:
        return False
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    return parts.scheme.lower() in {"http", "https"} and bool(host)


def _odd(members: Members, name: str, where: str, wanted: str) -> str:
    """Return the message for an unusable member, without the values of secrets."""
    if name not in members:
        return f"{where} answered without {name!r}"
    value = members[name]
    is_shown = isinstance(value, str) and name != "access_token" and value.strip()
    what = repr(_plain(cast("str", value))) if is_shown else "empty" if value == "" else kind(value)  # noqa: PLC1901
    return f"{where} answered with an unusable {name!r} ({what}); it must be {wanted}"


def _lifetime(value: object) -> int | None:
    """Return whole seconds; None for an invalid lifetime, as for a missing one."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        return None
    return math.floor(seconds) if 1 <= seconds <= MAX_LIFETIME else None


def _scopes(value: object) -> list[str]:
    return [word for text in _texts(value) for word in text.split() if _SCOPE.fullmatch(word)]


def _texts(value: object) -> list[str]:
    """Return the strings in a list, or a single string as a list."""
    if isinstance(value, str):
        return [value] if value else []
    return [one for one in cast("list[object]", value) if isinstance(one, str)] if isinstance(value, list) else []


def _decode(body: bytes, content_type: str) -> dict[str, object]:
    """Decode an object. Raises ValueError."""
    text = body.decode("utf-8-sig")
    if content_type.partition(";")[0].strip().lower() == "application/x-www-form-urlencoded" and "=" in text:
        return dict(parse_qsl(text.strip()))
    try:
        found: object = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return cast("dict[str, object]", found)


def _is_html(content_type: str, body: bytes) -> bool:
    return "html" in content_type.lower() or body.lstrip()[:1] == b"<"


def _plain(text: str) -> str:
    """Return a server's text on one line, truncated to `MAX_TEXT`."""
    shown = "".join(char if char.isprintable() else " " for char in text[: 4 * MAX_TEXT])
    return " ".join(shown.split())[:MAX_TEXT]
