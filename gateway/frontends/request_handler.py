"""Answer requests in both eras, for every transport.

A frontend passes a request and gets encoded bytes (the gateway's own response) or a `CallStream` (a call forwarded to a
backend). Nothing here depends on sockets or pipes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from gateway import jsonrpc
from gateway.calls import (
    ANYBODY,
    Call,
    Caller,
    Complete,
    Era,
    Failure,
    InputRequired,
    Notification,
    ServerRequest,
)
from gateway.catalog.parts import has_capability, merge_extensions, merge_instructions
from gateway.catalog.snapshot import encode_list
from gateway.eras import asks, errors, meta, methods, requests, results, versions
from gateway.eras.caching import KEEP_NOTHING
from gateway.eras.tools import view_of
from gateway.errors import BackendProtocol, GatewayError, GatewayLoop, InvalidParams, UnknownMethod
from gateway.frontends import resource_subscriptions
from gateway.frontends.call_stream import CallStream
from gateway.frontends.client_patience import list_patience
from gateway.frontends.legacy.sessions import ClientIntroduction, DuplicateId
from gateway.router import unknown

if TYPE_CHECKING:
    from gateway.access.principals import Principal
    from gateway.budget import Budget
    from gateway.calls import Identity, Outcome, Scope, Trace
    from gateway.config import GatewaySettings
    from gateway.frontends.legacy.sessions import LegacySession
    from gateway.frontends.modern.suspended_calls import SuspendedCalls
    from gateway.jsonrpc import Body, Message
    from gateway.router import Router
    from gateway.tracing.spans import Tracing

MAX_INSTRUCTIONS: Final = 32_768
"""Characters of merged instructions; they end up in a model's context."""
MAX_BATCH: Final = 64
"""Maximum messages in one batch (only protocol version 2025-03-26 has batches)."""
MAX_HOPS: Final = 3
"""Gateways through which a client may connect; more are a loop that comparing names has not found."""


class _InitializeParams(msgspec.Struct):
    protocolVersion: str  # ruff: ignore[mixed-case-variable-in-class-scope] - the wire's name
    capabilities: msgspec.Raw = jsonrpc.EMPTY_OBJECT
    clientInfo: msgspec.Raw = jsonrpc.ABSENT  # ruff: ignore[mixed-case-variable-in-class-scope] - the wire's name
    meta: msgspec.Raw = msgspec.field(default=jsonrpc.ABSENT, name="_meta")


_initialize_params = msgspec.json.Decoder(_InitializeParams)


class Listener(Protocol):
    """An open subscription of a modern client."""

    def update_principal(self, principal: Principal) -> None:
        """Apply the present rules of the principal, if it is the client's own."""
        ...


class RequestHandler:
    """The gateway's own responses, shared by all frontends."""

    tracing: Tracing | None = None
    """Begins the spans of client requests (`gateway.frontends.traced`); None unless tracing is configured."""

    def __init__(
        self, router: Router, version: str, parking: SuspendedCalls, gateways: tuple[str, ...] = ("gateway",)
    ) -> None:
        """Make a handler; `gateways` are those that started this one, and itself."""
        self._gateways = gateways
        self.router = router
        self.parking = parking
        self.fleet = router.fleet
        self.listeners: set[Listener] = set()
        """Open subscriptions of modern clients."""
        self.server_info = jsonrpc.raw({"name": self.fleet.settings.name, "version": version})
        self._meta_tail = b',"_meta":' + jsonrpc.encode({meta.SERVER_INFO: self.server_info})

    @property
    def buffers(self) -> Budget:
        """The bound for everything that waits in memory."""
        return self.router.buffers

    @property
    def settings(self) -> GatewaySettings:
        """The settings of the current config."""
        return self.fleet.config.gateway

    def decode(self, data: bytes, identity: Identity = ANYBODY) -> Message:
        """Decode one message of a client.

        If rules, a view or an exclusion limit what this client may use, a message with a duplicate member is refused
        (`requests.find_second_spelling`).

        Raises:
            jsonrpc.Malformed: it is refused; the message has had no effect.
        """
        message = jsonrpc.decode(data)
        if not self.fleet.is_limited(identity.scope):
            return message
        problem = requests.find_second_spelling(data, message)
        if problem is None:
            return message
        if message.method is msgspec.UNSET or not isinstance(message.id, int | str):
            request_id = None  # a response's id is one of the gateway's own
        else:
            request_id = message.id
            caller = Caller(era=Era.LEGACY, version="", principal=identity.principal, scope=identity.scope)
            self.turn_away(message, caller, InvalidParams(problem))
        raise jsonrpc.Malformed(jsonrpc.INVALID_PARAMS, problem, request_id)

    # The legacy era.

    def decode_batch(self, data: bytes, identity: Identity, session: LegacySession | None) -> list[Message]:
        """Decode a batch, which exists in one protocol version.

        Raises:
            jsonrpc.Malformed: the session has no batches, or a message is refused; none has had an effect.
        """
        if session is None or session.caller.version != versions.BATCH_VERSION:
            text = f"batches exist only in protocol version {versions.BATCH_VERSION}; send messages one by one"
            raise jsonrpc.Malformed(jsonrpc.INVALID_REQUEST, text, None)
        return [self.decode(part, identity) for part in jsonrpc.decode_batch(data, most=MAX_BATCH)]

    def introduce(self, message: Message, identity: Identity = ANYBODY) -> ClientIntroduction:
        """Read `initialize` (2025-11-25 basic/lifecycle); its response is `greeting`, after `fleet.before_initialize`.

        Raises:
            InvalidParams: the params are not valid for `initialize`.
            GatewayLoop: the client connects through this gateway.
        """
        try:
            params = jsonrpc.read(_initialize_params, message.params)
        except jsonrpc.UNDECODABLE as exc:
            text = f"initialize: {exc}"
            raise InvalidParams(text) from None
        version = versions.negotiate_legacy(params.protocolVersion)
        capabilities = jsonrpc.EMPTY_OBJECT if params.capabilities == jsonrpc.NULL else params.capabilities
        client_info = jsonrpc.ABSENT if params.clientInfo == jsonrpc.NULL else params.clientInfo
        gateways = meta.gateways_in_meta({"_meta": params.meta})
        self._refuse_loop(gateways)
        return ClientIntroduction(version, capabilities, client_info, identity, gateways)

    def _refuse_loop(self, gateways: tuple[str, ...]) -> None:
        """Refuse a client that connects through this gateway, or through more than `MAX_HOPS`. Raises GatewayLoop."""
        own = self._gateways[-1]
        if own in gateways or len(gateways) > MAX_HOPS:
            path = " -> ".join((*gateways, own))
            what = "leads back to this gateway" if own in gateways else f"is longer than {MAX_HOPS} gateways"
            text = f"the path {path} {what}; remove one of these servers from the config that names it"
            raise GatewayLoop(text)

    def greeting(self, introduction: ClientIntroduction) -> bytes:
        """Answer `initialize` with the present capabilities for this client: it never asks again."""
        scope = introduction.identity.scope
        return results.initialize_result(
            introduction.version,
            server_info=self.server_info,
            capabilities=self._capabilities(Era.LEGACY, scope),
            instructions=merge_instructions(self.fleet.snapshot(scope).parts, limit=MAX_INSTRUCTIONS),
        )

    def welcome(self, session: LegacySession) -> None:
        """Have everything that belongs to this client alone end with it."""
        self.fleet.mailboxes.register(session.key, session.changes.direct)
        session.on_end.append(partial(self.fleet.mailboxes.close, session.key, session.changes.direct))
        session.on_end.append(partial(self.fleet.client_gone, session.key))

    async def legacy(self, message: Message, session: LegacySession, trace: Trace | None = None) -> bytes | CallStream:
        """Answer a legacy request other than `initialize`, or forward it.

        Raises:
            GatewayError: it cannot be done; `errors.to_wire` defines the error that the client gets.
        """
        method = message.method
        if method in methods.LISTED_KIND:
            return await self._list(methods.LISTED_KIND[str(method)], requests.params_of(message), session.caller)
        if method == "ping":
            return b"{}"
        if method == "logging/setLevel":
            try:
                level = jsonrpc.decode_string(requests.params_of(message)["level"])
            except (KeyError, ValueError):
                level = ""
            if level not in meta.LOG_LEVELS:
                text = f"logging/setLevel needs params.level, one of {', '.join(meta.LOG_LEVELS)}"
                raise InvalidParams(text)
            session.log_level = level  # what the client receives; backends send at the lowest level of any client
            session.caller = msgspec.structs.replace(session.caller, log_level=level)  # for modern backends
            if session not in self.fleet.wish_list:
                session.on_end.append(lambda: self.fleet.forget(session))
            self.fleet.wish_list.want_level(session, level)
            self.fleet.apply_subscriptions()
            return b"{}"
        if method in methods.WATCHED:
            act = (
                resource_subscriptions.subscribe
                if method == "resources/subscribe"
                else resource_subscriptions.unsubscribe
            )
            return await act(self.router, session, requests.legacy_call(message, session.caller, trace))
        return CallStream(self.router, await self.router.submit(requests.legacy_call(message, session.caller, trace)))

    def turn_away(self, message: Message, caller: Caller, problem: GatewayError) -> None:
        """Record a call that its frontend has refused, as the router records its own refusals."""
        if message.method in methods.ROUTED:
            try:
                call = requests.legacy_call(message, caller)
            except GatewayError:
                return  # not a call
            self.router.turn_away(call, problem)

    # The modern era.

    async def ask_modern(self, flow: CallStream, request_id: jsonrpc.Id, ask: ServerRequest) -> bytes | Outcome | None:
        """Pass a server request to a modern client; return the outcome that ends its request.

        That is a response or an outcome, or None if its request continues.
        """
        if flow.call.method not in methods.SUSPENDABLE:
            ask.refuse(jsonrpc.METHOD_NOT_FOUND, f"a client cannot be asked anything during {flow.call.method}")
            return None
        missing = asks.missing_capability(flow.caller, ask.method, ask.params)
        if missing is not None:  # the first request had declared it, this one has not
            ask.refuse(jsonrpc.METHOD_NOT_FOUND, f"the client has not declared the capability {missing}")
            return None
        answer = await self.parking.park(flow, ask)
        if not isinstance(answer, bytes):
            return answer
        return jsonrpc.response(request_id, results.for_modern(InputRequired(answer), self.server_info))

    def _resume(self, call: Call) -> bytes | CallStream | None:
        """Resume the call of a `requestState`; return None to send the call again."""
        try:
            token = jsonrpc.decode_string(call.params["requestState"])
        except ValueError:
            text = "params.requestState must be a string"
            raise InvalidParams(text) from None
        is_known = self.router.knows(call)  # first, since the state is for the public name of an app's call
        state = self.parking.sealer.decode(call, token)
        if not state.parked:
            del call.params["requestState"]
            if state.inner is jsonrpc.ABSENT:  # the answers were for the gateway: the backend gets its call once more
                call.params.pop("inputResponses", None)
            else:
                call.params["requestState"] = state.inner
            return None
        if call.caller.scope is not None and not is_known:  # since its first round
            raise unknown(call)
        answer = self.parking.resume(state.parked, call)
        if isinstance(answer, bytes):
            return results.for_modern(InputRequired(answer), self.server_info)
        return answer

    async def modern(self, call: Call, request_id: jsonrpc.Id = "") -> bytes | CallStream:
        """Answer a modern request other than `subscriptions/listen`, or forward it.

        Raises:
            GatewayError: it cannot be done; `errors.to_wire` defines the error that the client gets.
        """
        del request_id  # for spans
        if call.caller.gateways:
            self._refuse_loop(call.caller.gateways)
        if call.method in methods.LISTED_KIND:
            return await self._list(methods.LISTED_KIND[call.method], call.params, call.caller)
        if call.method == "server/discover":
            scope = call.caller.scope
            members: dict[str, object] = {
                "supportedVersions": list(versions.SUPPORTED_VERSIONS),
                "capabilities": self._capabilities(Era.MODERN, scope),
                "ttlMs": 0,
                "cacheScope": "private",
            }
            instructions = merge_instructions(self.fleet.snapshot(scope).parts, limit=MAX_INSTRUCTIONS)
            if instructions is not None:
                members["instructions"] = instructions
            return results.modern_result(members, server_info=self.server_info)
        if call.method in methods.ROUTED or not requests.is_mcp_method(call.method):
            level = call.caller.log_level
            if level is not None and self.fleet.wish_list.lend_level(level):
                self.fleet.apply_subscriptions()
            answer = self._resume(call) if "requestState" in call.params else None
            return answer or CallStream(self.router, await self.router.submit(call))
        text = f"method {call.method!r} is not served"
        if call.method in methods.REMOVED_IN_MODERN:
            text += f"; protocol version {versions.LATEST_MODERN} no longer has it"
        raise UnknownMethod(text)

    # Both.

    def _capabilities(self, era: Era, scope: Scope | None) -> dict[str, object]:
        """Declare the capabilities: lists always (backends change), the rest if a backend has them.

        While a backend without a known catalog starts, its possible capabilities are declared too: a request that fails
        can be repeated, but a missing capability is never used.
        """
        found: dict[str, object] = {feature: {"listChanged": True} for feature in methods.FEATURES}
        parts = self.fleet.snapshot(scope).parts
        perhaps = self.fleet.awaits_more(scope)
        if perhaps or has_capability(parts, ["completions"]):
            found["completions"] = {}
        promised = dict.fromkeys(methods.RELAYED_EXTENSIONS if perhaps else (), jsonrpc.EMPTY_OBJECT)
        extensions = promised | merge_extensions(parts)
        if extensions:
            found["extensions"] = extensions
        if perhaps or has_capability(parts, ["resources", "subscribe"]):
            found["resources"] = {"listChanged": True, "subscribe": True}
        if era is Era.LEGACY:
            found["logging"] = {}  # the gateway filters log levels itself, on delivery
        return found

    async def _list(self, kind: methods.Kind, params: dict[str, msgspec.Raw], caller: Caller) -> bytes:
        cursor: str | None = None
        if "cursor" in params:
            try:
                cursor = jsonrpc.decode_string(params["cursor"])
            except ValueError:
                text = "params.cursor must be a string"
                raise InvalidParams(text) from None
        if self.fleet.awaited(caller.scope, caller.era):
            patience = list_patience(caller.client_info, self.settings.start_grace)
            await self.fleet.first_starts(caller.scope, patience, caller.era)
        snapshot = self.fleet.snapshot(caller.scope)
        page = snapshot.page(kind, cursor, self.settings.page_size, view_of(caller))
        own: dict[str, object] = {}
        if caller.gateways:
            own[meta.GATEWAYS] = (self._gateways[-1], *self.fleet.gateways())
        if caller.era is Era.LEGACY:
            return encode_list(kind, page, tail=b',"_meta":' + jsonrpc.encode(own) if own else b"")
        # While a backend is away, its entries may appear at any moment.
        is_whole = all(backend.offered and backend.listing is not None for backend in self.fleet.seen(caller.scope))
        hint = snapshot.hint(kind) if is_whole else KEEP_NOTHING
        tail = b',"_meta":' + jsonrpc.encode({**own, meta.SERVER_INFO: self.server_info}) if own else self._meta_tail
        return encode_list(kind, page, head=b'"resultType":"complete",', tail=b",%b%b" % (hint.encode(), tail))

    def encode_outcome(self, call: Call, request_id: jsonrpc.Id, outcome: Outcome) -> tuple[Body, int | None]:
        """Return the response to a call, and the error code if it is an error."""
        if isinstance(outcome, Complete):  # nearly always
            if call.caller.era is Era.LEGACY:
                result = results.for_legacy(outcome, method=call.method, version=call.caller.version)
                response = jsonrpc.response(request_id, result)
            else:
                spans = results.spans_for_modern(outcome, self.server_info, method=call.method)
                response = jsonrpc.response_of(request_id, *spans)
            return (response if outcome.strings is None else outcome.strings.restore(response)), None
        try:
            return self._encode_other(call, request_id, outcome)
        except GatewayError as exc:
            return self.encode_error(request_id, exc, call.caller.era, call)

    def _encode_other(
        self, call: Call, request_id: jsonrpc.Id, outcome: InputRequired | Failure | GatewayError
    ) -> tuple[bytes, int | None]:
        era = call.caller.era
        if isinstance(outcome, InputRequired):
            unsafe = asks.unsafe_elicitation(outcome.result)
            if unsafe is not None:
                problem = BackendProtocol(call.name, f"asked for forbidden input: {unsafe}")
                return self.encode_error(request_id, problem, era, call)
            if era is Era.MODERN:
                undeclared = _undeclared(call, outcome)
                if undeclared is not None:
                    return undeclared.encode(request_id), undeclared.code
                # The state is bound to this principal and request; the backend gets its own back.
                members = jsonrpc.decode_object(outcome.result)
                inner = members.get("requestState", jsonrpc.NULL)
                if inner != jsonrpc.NULL:
                    members["requestState"] = jsonrpc.raw(self.parking.sealer.encode(call, inner=inner))
                    outcome = InputRequired(jsonrpc.encode(members))
                return jsonrpc.response(request_id, results.for_modern(outcome, self.server_info)), None
            outcome = BackendProtocol(call.name, "asks for input, which this client's protocol version cannot carry")
        if isinstance(outcome, Failure) and era is Era.MODERN and call.method in methods.SUSPENDABLE:
            wanted = asks.url_input_requests(outcome, call.caller)
            if wanted is not None:
                state = self.parking.sealer.encode(call)
                body = {"resultType": "input_required", "inputRequests": wanted, "requestState": state}
                required = InputRequired(jsonrpc.encode(body))
                return jsonrpc.response(request_id, results.for_modern(required, self.server_info)), None
        return self.encode_error(request_id, outcome, era, call)

    def encode_error(
        self, request_id: jsonrpc.Id | None, problem: GatewayError | Failure, era: Era, call: Call | None = None
    ) -> tuple[bytes, int]:
        """Return the error response to a request, and its code."""
        match problem:
            case DuplicateId():
                wire = errors.WireError(jsonrpc.INVALID_REQUEST, str(problem))
            case resource_subscriptions.Refused():
                wire = errors.to_wire(problem.failure, era)
            case requests.UnsupportedVersion():
                wire = errors.WireError(errors.UNSUPPORTED_VERSION, str(problem), problem.data())
            case _:
                wire = errors.to_wire(problem, era, call)
        return wire.encode(request_id), wire.code


def _undeclared(call: Call, required: InputRequired) -> errors.WireError | None:
    """Return the error for input requests that the client has not declared, if any."""
    try:
        wanted = (asks.read_input_required(required.result).wanted or {}).values()
    except ValueError:
        return None  # an unknown form: the client may know it
    for request in wanted:
        if request.method not in methods.CAPABILITY:
            continue
        missing = asks.missing_capability(call.caller, request.method, request.params)
        if missing is not None:
            capability, _, member = missing.partition(".")
            needed: dict[str, dict[str, object]] = {capability: {member: {}} if member else {}}
            data = {"requiredCapabilities": needed}
            text = f"this needs the capability {missing}, which the client has not declared"
            return errors.WireError(errors.MISSING_CAPABILITY, text, jsonrpc.encode(data))
    return None


def encode_notice(notice: Notification, token: jsonrpc.Id | None) -> bytes:
    """Encode a notification of a call; progress carries this token."""
    if meta.PROGRESS_TOKEN in notice.params and token is not None:
        notice.params[meta.PROGRESS_TOKEN] = jsonrpc.raw(token)
    return jsonrpc.notification(notice.method, jsonrpc.encode(notice.params))


def is_wanted(notice: Notification, level: str | None) -> bool:
    """Return whether a notification passes the client's log level; only log messages are filtered."""
    if notice.method != "notifications/message":
        return True
    if level is None:
        return False
    try:
        severity = meta.LOG_LEVELS.index(jsonrpc.decode_string(notice.params["level"]))
    except (KeyError, ValueError):
        return True  # an unknown level: better shown than lost
    return severity >= meta.LOG_LEVELS.index(level)


class _Cancelled(msgspec.Struct):
    requestId: int | str  # ruff: ignore[mixed-case-variable-in-class-scope] - the wire's name


_cancelled = msgspec.json.Decoder(_Cancelled)


def cancelled_id(message: Message) -> jsonrpc.Id | None:
    """Return the id in a `notifications/cancelled`; None if it has none (malformed ones are ignored)."""
    try:
        return jsonrpc.read(_cancelled, message.params).requestId
    except jsonrpc.UNDECODABLE:
        return None
