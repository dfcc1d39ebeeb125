"""One login or refresh with the SDK's flow (`mcp.client.auth`), driven manually.

The SDK's auth object holds a lock while the signed request is in flight, so it never signs one here: it gets the
server's earlier challenge, its requests go through `OAuthHttp`, and when it returns to the original request the tokens
are available. Importing this module loads the whole SDK (0.5 s, 64 MB), so it is imported in a thread, and only after a
401.
"""

from __future__ import annotations

import logging
import warnings
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import parse_qs

import httpx2
import msgspec
from mcp.client.auth import OAuthClientProvider, OAuthFlowError
from mcp.client.auth.extensions.client_credentials import (
    ClientCredentialsOAuthProvider,
    PrivateKeyJWTOAuthProvider,
    SignedJWTParameters,
)
from mcp.client.auth.utils import union_scopes
from mcp.shared.auth import (
    AuthorizationCodeResult,
    OAuthClientInformationFull,
    OAuthClientMetadata,
    OAuthMetadata,
    ProtectedResourceMetadata,
)
from mcp.shared.exceptions import MCPDeprecationWarning
from pydantic import AnyHttpUrl, AnyUrl, ConfigDict, TypeAdapter, ValidationError

from gateway.config.oauth import is_same_issuer
from gateway.eras.versions import LATEST_LEGACY
from gateway.errors import BackendError, BackendUnavailable
from gateway.http_client.client import same_origin
from gateway.masking import SECRETS
from gateway.oauth_client import answers
from gateway.oauth_client.answers import REDIRECT, SUCCESS, UnusableAnswer
from gateway.oauth_client.http import OAuthHttp, open_oauth_http
from gateway.oauth_client.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mcp.client.auth.oauth2 import OAuthContext

    from gateway.config import OAuthSettings, ServerConfig
    from gateway.oauth_client.answers import Challenge
    from gateway.oauth_client.token_store import Saved

    Keep = Callable[[Saved], Awaitable[None]]

LONG_AGO: Final = 1.0
"""An expiry time (seconds since the epoch) that makes the SDK refresh."""
MAX_PROBLEM: Final = 800
"""Maximum length of an error."""
MIN_SECRET: Final = 6
"""Minimum length of a masked authorization code; a shorter one would occur by chance."""
MAX_NOTES: Final = 2
"""Limit of problems with metadata in an error."""
_URL: Final = TypeAdapter(AnyHttpUrl, config=ConfigDict(url_preserve_empty_path=True))

log = logging.getLogger("gateway.backend")
# Its tracebacks and warnings quote servers' responses; our own errors have the relevant information.
logging.getLogger("mcp.client.auth").setLevel(logging.CRITICAL)


class Visit(Protocol):
    """The interactive part of a login: the login page and the redirect."""

    uri: str
    """The redirect URI."""

    async def show(self, url: str, state: str) -> None:
        """Show this page to the user. Raises BackendUnavailable if that is impossible."""
        ...

    async def answer(self) -> dict[str, str]:
        """Wait for the parameters of the redirect. Raises BackendUnavailable if it was refused."""
        ...


class _Flow(OAuthClientProvider):
    """Common part of the flows: trust in the authorization server."""

    _settings: OAuthSettings

    @cached_property
    def notes(self) -> list[str]:
        """Problems with unused metadata, which may explain a later failure."""
        return []

    given_issuer: str | None = None
    """The issuer as spelled in the authorization server's metadata in this flow."""

    @cached_property
    def codes(self) -> list[str]:
        """Authorization codes of this login, masked in all texts."""
        return []

    def read(self, answer: httpx2.Response) -> httpx2.Response:
        """Return the response that the SDK gets for one of its requests.

        Raises:
            OAuthFlowError, UnusableAnswer: the login ends here.
        """
        request, status = answer.request, answer.status_code
        content_type = answer.headers.get("content-type", "")
        place = f"{request.url.scheme}://{request.url.netloc.decode('ascii', 'replace')}{request.url.path}"
        if request.method == "GET":
            return self._read_metadata(answer, f"the metadata at {place}") if status == 200 else answer
        if status in REDIRECT:  # followed, or refused, by the SDK
            return answer
        if request.headers.get("content-type", "").startswith("application/json"):
            where = f"the registration endpoint {place}"
            if status not in SUCCESS:
                said = answers.describe(status, content_type, answer.content).removeprefix("HTTP ")
                suffix = "" if self.context.oauth_metadata is None else f", by {where}"
                text = f"Registration failed: {said}{suffix}"
                raise OAuthFlowError(text)
            wanted: dict[str, list[str]] = msgspec.json.decode(request.content)
            members = answers.read_object(answer.content, content_type, where)
            content = answers.read_registration(members, where, wanted["redirect_uris"])
            return httpx2.Response(201, json=content, request=request)
        where, is_refresh = f"the token endpoint {place}", b"grant_type=refresh_token" in request.content
        if status not in SUCCESS:
            if is_refresh:  # the SDK forgets the token, and an interactive login follows
                return answer
            said = answers.describe(status, content_type, answer.content)
            text = f"Token exchange failed ({status}): {where} answered {said}"
            raise OAuthFlowError(text)
        try:
            content = answers.read_token(answers.read_object(answer.content, content_type, where), where)
        except UnusableAnswer as exc:
            if not is_refresh:
                raise
            log.warning("a token could not be refreshed: %s", exc)
            return httpx2.Response(400, request=request)
        return httpx2.Response(200, json=content, request=request)

    def _read_metadata(self, answer: httpx2.Response, where: str) -> httpx2.Response:
        """Return metadata with the issuer as the SDK spells it; unusable metadata count as absent."""
        try:
            members = answers.read_object(answer.content, answer.headers.get("content-type", ""), where)
            if "authorization_servers" in members or "/oauth-protected-resource" in answer.request.url.path:
                content = answers.read_resource(members, where)
            else:
                content = answers.read_server(members, where, is_visited=self._settings.grant != "client_credentials")
        except UnusableAnswer as exc:
            self.notes.append(str(exc))
            return httpx2.Response(404, request=answer.request)
        if "issuer" in content:
            given = str(content["issuer"])
            content["issuer"] = self.check_issuer(content)
            self.given_issuer = given
        return httpx2.Response(200, json=content, request=answer.request)

    @property
    def _named_issuer(self) -> str:
        """The issuer named by the MCP server, or else the server's own origin."""
        return super()._expected_issuer()

    def _select_authorization_server(self, advertised: list[str]) -> str:
        """Return the configured issuer if the server names it, else the first that it names."""
        issuer = self._settings.issuer
        return next((one for one in advertised if issuer is not None and is_same_issuer(one, issuer)), advertised[0])

    def _expected_issuer(self) -> str:
        return self._named_issuer if self._settings.issuer is None else _spelled(self._settings.issuer)

    def check_issuer(self, members: dict[str, object]) -> str:
        """Return the SDK's spelling of the issuer in the authorization server's metadata.

        Raises:
            OAuthFlowError: it is another issuer.
        """
        named, expected, given = self._named_issuer, self._expected_issuer(), members["issuer"]
        issuer = self._settings.issuer
        if is_same_issuer(given, expected):
            secret = "private_key" if self._settings.client_secret is None else "client_secret"
            if issuer is None or is_same_issuer(named, issuer) or getattr(self._settings, secret) is None:
                return expected
            # A server that merely claims to be the configured issuer gets neither the secret nor an assertion.
            endpoint, origin = members.get("token_endpoint"), httpx2.URL(issuer)
            is_issuers = same_origin(httpx2.URL(named), origin)
            if is_issuers or (isinstance(endpoint, str) and same_origin(httpx2.URL(endpoint), origin)):
                return expected
            text = (
                f"the server names the authorization server {named}, whose metadata give the issuer {issuer}"
                f" (oauth.issuer) and a token endpoint elsewhere; oauth.{secret} is not used there"
            )
            raise OAuthFlowError(text)
        text = f"metadata issuer mismatch: the server names the authorization server {named}"
        if not is_same_issuer(given, named):
            text += f", whose metadata give the issuer {str(given)[: answers.MAX_TEXT]}"
        if issuer is not None:
            text += f", and oauth.issuer is {issuer}, which alone is accepted"
        else:
            text += " (oauth.issuer); if that issuer is right, set oauth.issuer to it"
        raise OAuthFlowError(text)

    def _check_discovered(self) -> None:
        """Refuse the URLs that the SDK guesses without metadata if the config names another issuer."""
        named, issuer = self._named_issuer, self._settings.issuer
        if self.context.oauth_metadata is None and issuer is not None and not is_same_issuer(named, issuer):
            text = f"the server names the authorization server {named}, and oauth.issuer is {issuer}"
            raise OAuthFlowError(text)


class _CodeFlow(_Flow):
    """An interactive login: authorization code with PKCE."""

    def __init__(self, config: ServerConfig, settings: OAuthSettings, ledger: Ledger, visit: Visit | None) -> None:
        uri = visit.uri if visit is not None else "http://127.0.0.1/callback"  # unused in a refresh
        metadata = OAuthClientMetadata(redirect_uris=[AnyUrl(uri)], client_name="trio-mcp-gateway")
        super().__init__(
            config.url or "",
            metadata,
            ledger,
            self._send_person,
            self._await_person,
            client_metadata_url=settings.client_metadata_url,
        )
        ledger.context = self.context
        self._ledger = ledger
        self._settings = settings
        self._visit = visit

    async def _initialize(self) -> None:
        await super()._initialize()
        saved, context, settings = self._ledger.saved, self.context, self._settings
        if settings.client_id is not None:
            context.client_info = OAuthClientInformationFull(
                redirect_uris=context.client_metadata.redirect_uris,
                client_id=settings.client_id,
                client_secret=settings.client_secret,
                token_endpoint_auth_method="none" if settings.client_secret is None else "client_secret_basic",
            )
        elif (client := context.client_info) is not None and self._visit is not None:
            wanted, registered = context.client_metadata.redirect_uris or [], client.redirect_uris or []
            if client.client_id != settings.client_metadata_url and not set(wanted) <= set(registered):
                context.client_info = (
                    None  # registered for a port that is now in use by another program: register again
                )
        if saved.server_metadata is not None:
            context.oauth_metadata = OAuthMetadata.model_validate_json(saved.server_metadata)
        if saved.resource_metadata is not None:
            context.protected_resource_metadata = ProtectedResourceMetadata.model_validate_json(saved.resource_metadata)
            context.auth_server_url = saved.issuer
        _choose_method(context, settings)
        context.token_expiry_time = LONG_AGO if self._visit is None else saved.expires_at

    async def _perform_authorization(self) -> httpx2.Request:
        self._check_discovered()
        metadata = self.context.oauth_metadata
        if metadata is not None and "S256" not in (metadata.code_challenge_methods_supported or []):
            text = f"the authorization server {metadata.issuer} does not say that it supports PKCE with S256"
            raise OAuthFlowError(text)
        if metadata is not None and self.given_issuer is not None:
            metadata.issuer = _URL.validate_python(self.given_issuer)  # the only valid value of `iss`
        _choose_method(self.context, self._settings)
        return await super()._perform_authorization()

    async def _send_person(self, url: str) -> None:
        assert self._visit is not None  # ruff: ignore[assert] - refreshes never get here
        endpoint, _, query = url.rpartition("?")
        if "?" in endpoint:  # it may already have a query (RFC 6749, 3.1), which the SDK does not expect
            url = f"{endpoint}&{query}"
        state = parse_qs(httpx2.URL(url).query.decode()).get("state", [""])[0]
        await self._visit.show(url, state)

    async def _await_person(self) -> AuthorizationCodeResult:
        assert self._visit is not None  # ruff: ignore[assert] - refreshes never get here
        query = await self._visit.answer()
        if len(code := query.get("code", "")) >= MIN_SECRET:
            self.codes.append(code)
        iss, metadata, issuer = query.get("iss"), self.context.oauth_metadata, self._settings.issuer
        if iss is not None and metadata is not None:
            # RFC 9207, 2.4: compared exactly, unlike issuers in metadata of different servers.
            started = str(metadata.issuer)
            if iss not in {started, self.given_issuer, issuer, None if issuer is None else _spelled(issuer)}:
                given = iss[: answers.MAX_TEXT]
                text = (
                    f"Authorization response iss mismatch: the login page answered for the issuer {given}, and the"
                    f" login was begun with {started}; the code may belong to another authorization server and is not"
                    " used (oauth.issuer); if that server is right, set oauth.issuer to what the login page answered"
                )
                raise OAuthFlowError(text)
            iss = started
        return AuthorizationCodeResult(code=code, state=query.get("state"), iss=iss)


class _SecretFlow(_Flow, ClientCredentialsOAuthProvider):
    """A non-interactive login: client credentials with a secret."""

    def __init__(self, config: ServerConfig, settings: OAuthSettings, ledger: Ledger) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MCPDeprecationWarning)  # the config has warned of a missing issuer
            super().__init__(
                config.url or "",
                ledger,
                settings.client_id or "",
                settings.client_secret or "",
                scope=" ".join(settings.scopes) or None,
                issuer=None if settings.issuer is None else _spelled(settings.issuer),
            )
        ledger.context = self.context
        self._settings = settings

    async def _perform_authorization(self) -> httpx2.Request:
        self._check_discovered()
        _choose_method(self.context, self._settings)
        return await super()._perform_authorization()


class _KeyFlow(_Flow, PrivateKeyJWTOAuthProvider):
    """Client credentials with assertions signed by the gateway's key (RFC 7523, 2.2)."""

    def __init__(self, config: ServerConfig, settings: OAuthSettings, ledger: Ledger) -> None:
        client_id, key = settings.client_id or "", settings.private_key or ""
        algorithm = _algorithm_of(config, key)
        signed = SignedJWTParameters(issuer=client_id, subject=client_id, signing_key=key, signing_algorithm=algorithm)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MCPDeprecationWarning)
            super().__init__(
                config.url or "",
                ledger,
                client_id,
                signed.create_assertion_provider(),
                scope=" ".join(settings.scopes) or None,
                issuer=None if settings.issuer is None else _spelled(settings.issuer),
            )
        ledger.context = self.context
        self._settings = settings

    async def _perform_authorization(self) -> httpx2.Request:
        self._check_discovered()
        return await super()._perform_authorization()


def _algorithm_of(config: ServerConfig, key: str) -> str:
    """Return the signature algorithm for this key."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        loaded: Any = load_pem_private_key(key.encode(), password=None)
    except (TypeError, ValueError):  # it is encrypted, or not a key
        raise BackendUnavailable(config.name, "has an oauth.private_key that is not an unencrypted PEM key") from None
    curve = getattr(getattr(loaded, "curve", None), "name", "")
    by_curve = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
    return by_curve.get(curve) or ("RS256" if hasattr(loaded, "decrypt") else "EdDSA")


def _spelled(issuer: str) -> str:
    """Return an issuer as spelled by the SDK's models, which compare it as a string."""
    return str(_URL.validate_python(issuer))


def _choose_method(context: OAuthContext, settings: OAuthSettings) -> None:
    """Return the authentication method for a configured secret: from the metadata, or the mandatory one."""
    client, metadata = context.client_info, context.oauth_metadata
    if client is None or settings.client_secret is None or metadata is None:
        return
    methods = metadata.token_endpoint_auth_methods_supported or []
    if "client_secret_post" in methods and "client_secret_basic" not in methods:
        client.token_endpoint_auth_method = "client_secret_post"  # noqa: S105


async def log_in(
    config: ServerConfig,
    saved: Saved,
    challenge: Challenge,
    *,
    keep: Keep,
    make_visit: Callable[[OAuthHttp], Visit] | None = None,
) -> Saved:
    """Log in for this challenge, `keep` and return the tokens; without `make_visit` non-interactively.

    Raises:
        BackendUnavailable: the login failed; the text is for users.
    """
    settings = config.oauth
    assert settings is not None  # ruff: ignore[assert] - see `ServerConfig.uses_oauth`
    ledger = Ledger(saved, keep, with_tokens=challenge.step_up)
    async with open_oauth_http(config) as http:
        if settings.grant == "client_credentials":
            kind = _SecretFlow if settings.private_key is None else _KeyFlow
            flow: _Flow = kind(config, settings, ledger)
        else:
            assert make_visit is not None  # ruff: ignore[assert] - see `TokenManager._renew_by_person`
            flow = _CodeFlow(config, settings, ledger, make_visit(http))
        await _drive(config, flow, http, challenge)
    if ledger.saved.access_token is None:
        raise BackendUnavailable(config.name, "needs a login, which ended without a token")
    return ledger.saved


async def refresh(config: ServerConfig, saved: Saved, *, keep: Keep) -> Saved | None:
    """Use the refresh token; return None if there is none or the server rejects it.

    Raises:
        BackendUnavailable: the authorization server cannot be reached.
    """
    settings = config.oauth
    # Without metadata the SDK would guess the URL and send the token there.
    if settings is None or not saved.refresh_token or saved.server_metadata is None:
        return None
    ledger = Ledger(saved, keep, with_tokens=True)
    async with open_oauth_http(config) as http:
        await _drive(config, _CodeFlow(config, settings, ledger, None), http, None)
    return ledger.saved if ledger.saved is not saved else None


async def _drive(config: ServerConfig, provider: _Flow, http: OAuthHttp, challenge: Challenge | None) -> None:
    """Run the SDK's flow until it would send or retry its own request."""
    request = httpx2.Request("POST", config.url or "", headers={"mcp-protocol-version": LATEST_LEGACY})
    flow = provider.async_auth_flow(request)
    try:
        outgoing = await anext(flow)
        while outgoing is not request or challenge is not None:
            if outgoing is not request:
                answer = provider.read(await http.send(outgoing))
            else:
                assert challenge is not None  # ruff: ignore[assert] - for the type checker
                answer, challenge = await _as_response(challenge, request, config, http), None
            outgoing = await flow.asend(answer)
    except BackendError:
        raise
    except StopAsyncIteration:
        return
    except (OAuthFlowError, UnusableAnswer, ValueError, httpx2.HTTPError, httpx2.InvalidURL) as exc:
        raise BackendUnavailable(config.name, _explain(exc, provider)) from None  # its context may contain a secret
    finally:
        await flow.aclose()


async def _as_response(
    challenge: Challenge, request: httpx2.Request, config: ServerConfig, http: OAuthHttp
) -> httpx2.Response:
    """Rebuild the server's challenge in a readable form, with the config's additional scopes."""
    members = answers.read_challenge(challenge.header)
    configured = " ".join(config.oauth.scopes) if config.oauth is not None else ""
    # Some servers name a path instead of a URL or, behind a proxy, an internal URL: without one the SDK uses the
    # well-known URL.
    address = ""
    if place := members.get("resource_metadata", ""):
        try:
            url = httpx2.URL(config.url or "").join(place)
            if answers.is_url(str(url)):
                await http.check(url)
                address = str(url)
        except (BackendUnavailable, httpx2.InvalidURL, ValueError) as exc:
            why = exc.reason if isinstance(exc, BackendUnavailable) else "is not a URL"
            log.warning("backend %r: using the well-known URL instead of resource_metadata: %s", config.name, why)
    parameters = {
        "resource_metadata": address,
        "scope": union_scopes(members.get("scope"), configured or None),
        "error": "insufficient_scope" if challenge.step_up else "",
    }
    header = "Bearer " + ", ".join(f'{name}="{value}"' for name, value in parameters.items() if value)
    return httpx2.Response(challenge.status, headers={"www-authenticate": header}, request=request)


def _explain(problem: Exception, provider: _Flow) -> str:
    refused = problem if isinstance(problem, ValidationError) else problem.__cause__
    text = str(problem)
    if isinstance(refused, ValidationError):  # its text is for programmers and quotes the input
        fields = dict.fromkeys(".".join(map(str, error["loc"])) for error in refused.errors(include_input=False))
        text = f"an answer has unusable members: {', '.join(filter(None, fields)) or 'all of it'}"
    text = "; ".join([text, *provider.notes[:MAX_NOTES]])
    context = provider.context
    secrets = [context.client_info.client_secret] if context.client_info is not None else []
    secrets += provider.codes
    if context.current_tokens is not None:
        secrets += [context.current_tokens.refresh_token, context.current_tokens.access_token]
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    text = SECRETS.mask(" ".join(text.split()))[:MAX_PROBLEM]
    if context.oauth_metadata is None and context.protected_resource_metadata is None:
        return f"requires authorization and offers no OAuth ({text}): put an 'Authorization' entry into 'headers'"
    return f"needs a login, which failed: {text}"
