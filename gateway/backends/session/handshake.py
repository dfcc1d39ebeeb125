"""Opening a conversation: the backend's era, and its description of itself.

2026-07-28 basic/transports/stdio, "Backward Compatibility": probe with `server/discover`; a modern result or a modern
error means modern, anything else (silence and a closed connection included) means legacy. A server that refuses the
version in `initialize` is sent another one. All waits are bounded by the caller's scope and by `probe_timeout`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec
import trio

from gateway import jsonrpc, surrogates
from gateway.calls import Complete, Era, Failure
from gateway.eras import meta, versions
from gateway.eras.errors import HEADER_MISMATCH, MISSING_CAPABILITY, UNSUPPORTED_VERSION
from gateway.eras.methods import FEATURES
from gateway.errors import BackendError, BackendExited, BackendProtocol, BackendTooSlow, BackendUnfit

if TYPE_CHECKING:
    from gateway.backends.session.contracts import PendingRequest
    from gateway.backends.session.conversation import Conversation
    from gateway.calls import Outcome
    from gateway.eras.requests import Hop

_MODERN_ERRORS: Final = frozenset({HEADER_MISMATCH, MISSING_CAPABILITY, UNSUPPORTED_VERSION})
_NO_HANDSHAKE: Final = _MODERN_ERRORS | {jsonrpc.METHOD_NOT_FOUND, jsonrpc.INVALID_REQUEST, jsonrpc.INVALID_PARAMS}
"""The error with which a modern-only server refuses `initialize`; other errors may be temporary."""

_UNFIT_STATUSES: Final = frozenset({400, 422, 500})
"""HTTP statuses with which servers refuse an `initialize` of unknown version, without naming the cause."""

AUTO_HINT: Final = "without 'era' in its config, the gateway detects it"

log = logging.getLogger("gateway.backend")


class Attempts:
    """The plan for opening one session, and the attempts so far.

    It outlives a process that ends meanwhile.

    `era` is "auto", or the era to begin with; only the config may pin it. `version` is the first for `initialize`.
    `walks` permits further processes, to try older versions.
    """

    def __init__(
        self,
        era: str = "auto",
        *,
        pinned: bool = False,
        version: str | None = None,
        transport: str | None = None,
        offered: tuple[str, ...] = (),
        refuses_legacy: bool = False,
        walks: bool = True,
    ) -> None:
        self.era = era
        self.pinned = pinned
        self.transport = transport
        """The transport to try first, then the one that was opened; None if unknown."""
        self.was_probed = False
        """Whether any process has been sent `server/discover`."""
        self.is_probing = False
        """Whether this process has been sent `server/discover` and its era is still unknown."""
        self.has_read = True
        """Whether the process has read anything; if not, no message caused its end."""
        self.has_walked = False
        """Whether every version was tried, and the process ended even at the last one."""
        self.is_due = False
        """Whether the last version was refused in a way that permits another."""
        self.offered = offered
        """The versions that the server is known to offer; empty if unknown."""
        self.refuses_legacy = refuses_legacy
        """Whether this modern server is known to refuse `initialize`."""
        self.refused: list[str] = []
        """The versions that `initialize` has tried without success."""
        self._version = version
        self._walks = walks
        both = versions.choose_legacy(offered) is not None and versions.choose_modern(offered) is not None
        self._candidates: tuple[str, ...] = offered if both else versions.LEGACY_VERSIONS
        self._asks = self._is_open = self._has_repeated = False
        self._deadline: float | None = None

    def deadline(self, patience: float) -> float:
        """The time by which the session must be open, over all attempts.

        That is `patience` seconds after the first use.
        """
        if self._deadline is None:
            self._deadline = trio.current_time() + patience
        return self._deadline

    def probing(self, *, shares_pipe: bool) -> None:
        """Note that `server/discover` is sent; on a pipe shared with `initialize` they end together."""
        self.was_probed = True
        self.is_probing = shares_pipe and not (self.pinned and self.era == "modern")

    def next_version(self) -> str | None:
        """The next version for `initialize`; None if all were refused."""
        if self._version is not None and not self.refused:
            return self._version
        return versions.choose_legacy(self._candidates, self.refused)

    def narrow(self, offered: list[str]) -> None:
        """Restrict further attempts to these versions."""
        self._version = None
        self._candidates = tuple(offered)

    def asking(self, version: str) -> None:
        """Note that `initialize` is sent."""
        self.refused.append(version)
        self._asks, self.is_due = True, False

    def answered(self, *, is_open: bool) -> None:
        """Note that `initialize` was answered, or `server/discover` by a modern server."""
        self._asks, self._is_open = False, is_open
        if is_open:
            self.is_probing = False

    def start_over(self) -> None:
        """Forget refusals, which were those of another transport."""
        self.refused.clear()

    def prepare_restart(self) -> bool:
        """Choose the first message to another process or connection; return whether to start it."""
        if self._is_open or not self.has_read or (self.pinned and self.era == "modern"):
            return False
        asked, self._asks = self._asks, False
        if self.is_probing:
            self.is_probing, self.era = False, "legacy"
            if asked:
                self.refused.pop()  # the probe may have caused its end
            return True
        if not asked:
            return self._walks and self.is_due
        self.has_walked = self.next_version() is None
        return self._walks and self.cut_off()

    def cut_off(self) -> bool:
        """Choose the `initialize` after one without a response; return whether there is one.

        A connection may end for other reasons, so the same version is tried once more before older ones.
        """
        if not self._has_repeated:
            self._has_repeated = True
            self.refused.pop()
        return self.next_version() is not None

    @property
    def hung_on_probe(self) -> bool:
        """Whether the process has read the probe and sent nothing, as far as known."""
        return self.is_probing and self._asks and self.has_read


class ServerIntroduction(msgspec.Struct, frozen=True, kw_only=True):
    """A backend's description of itself."""

    era: Era
    version: str
    capabilities: dict[str, msgspec.Raw]
    server_info: msgspec.Raw = jsonrpc.ABSENT
    instructions: str | None = None
    asked: str = ""
    """The version that `initialize` named; empty in the modern era."""
    offered: tuple[str, ...] = ()
    """The versions in a present or former `server/discover` result; empty if unknown."""

    other_era: Era | None = None
    """The era that the server may offer beside the one of this session."""


class _InitializeResult(msgspec.Struct, kw_only=True):
    """The members of an initialize or discover result that the gateway reads."""

    protocolVersion: str = ""  # ruff: ignore[mixed-case-variable-in-class-scope] - the wire's name
    given_versions: list[str] | None = msgspec.field(name="supportedVersions", default=None)
    capabilities: msgspec.Raw = jsonrpc.ABSENT
    serverInfo: msgspec.Raw = jsonrpc.ABSENT  # ruff: ignore[mixed-case-variable-in-class-scope] - the wire's name
    instructions: str | None = None
    meta: msgspec.Raw = msgspec.field(default=jsonrpc.ABSENT, name="_meta")

    @property
    def supported_versions(self) -> list[str]:
        """The versions; null counts as an empty list."""
        return self.given_versions or []


class _Unsupported(msgspec.Struct):
    supported: list[str] | None = None


class _Refusal(msgspec.Struct):
    """A JSON-RPC error as the body of an HTTP response, whatever its id."""

    error: msgspec.Raw


_hellos = msgspec.json.Decoder(_InitializeResult)
_unsupported = msgspec.json.Decoder(_Unsupported)


async def introduce(
    conversation: Conversation, attempts: Attempts, *, probe_timeout: float, timeout: float
) -> ServerIntroduction:
    """Detect the era (unless `attempts` names it) and shake hands; set the conversation's hop accordingly.

    `attempts` records the messages sent, for another process or connection if this one ends.

    Raises:
        BackendUnfit: the server is not of the era that the config names.
        BackendError: no response in time, or none that MCP allows.
    """
    if attempts.era == "legacy":
        return await initialize(conversation, attempts, timeout=timeout)
    legacy = conversation.hop
    is_pinned = attempts.pinned and attempts.era == "modern"
    attempts.probing(shares_pipe=conversation.shares_pipe)
    conversation.hop = _modern(legacy, versions.LATEST_MODERN)
    request_id, waiter = conversation.begin("server/discover")
    try:
        patience = timeout if attempts.era == "modern" else probe_timeout
        await _wait(waiter, patience)
        refusal = waiter.outcome
        offered = _offered(refusal) if isinstance(refusal, Failure) and refusal.code == UNSUPPORTED_VERSION else []
        if versions.choose_modern(offered) is not None:
            # It refuses a version that it offers: the spec says to choose from the list and retry.
            conversation.end(request_id)
            request_id, waiter = conversation.begin("server/discover")
            await _wait(waiter, patience)
        introduction = _discovered(conversation, waiter.outcome, attempts)
        if introduction is not None:
            return introduction
        if is_pinned:
            _raise_not_modern(conversation, waiter.outcome)
        # The probe stays open: a server that starts slowly may answer it later, and may then refuse `initialize`.
        conversation.hop = legacy
        try:
            introduction = await initialize(conversation, attempts, timeout=timeout)
        except BackendError:
            late = None if conversation.is_closed else _discovered(conversation, waiter.outcome, attempts)
            if late is None:
                raise
            return late
        if isinstance(waiter.outcome, Complete) and _discovered(conversation, waiter.outcome, attempts) is not None:
            conversation.hop = legacy
            introduction = msgspec.structs.replace(introduction, offered=attempts.offered, other_era=Era.MODERN)
        return introduction
    finally:
        conversation.end(request_id)


def _modern(hop: Hop, version: str) -> Hop:
    return msgspec.structs.replace(hop, era=Era.MODERN, version=version)


def _offered(failure: Failure) -> list[str]:
    try:
        return jsonrpc.read(_unsupported, failure.data or b"{}").supported or []
    except jsonrpc.UNDECODABLE:
        return []


async def _wait(waiter: PendingRequest, timeout: float) -> None:
    with trio.move_on_after(timeout):
        await waiter.event.wait()


def _raise_not_modern(conversation: Conversation, outcome: Outcome | None) -> NoReturn:
    """Explain why the response to `server/discover` was not modern. Raises BackendError.

    Only a clear response shows that the era is wrong: silence and internal errors may be temporary.
    """
    if isinstance(outcome, BackendError):
        raise outcome
    answer = outcome.message if isinstance(outcome, Failure) else "nothing usable"
    text = f"does not speak a modern protocol version (era: modern): {answer}"
    if outcome is None or (isinstance(outcome, Failure) and outcome.code == jsonrpc.INTERNAL_ERROR):
        raise BackendProtocol(conversation.backend, text)
    raise BackendUnfit(conversation.backend, f"{text}; {AUTO_HINT}")


def _discovered(conversation: Conversation, outcome: Outcome | None, attempts: Attempts) -> ServerIntroduction | None:
    """Read the response to the probe; None means that the backend is legacy.

    An invalid response means legacy too: a legacy server may refuse an unknown request with any status and any page, or
    by closing the connection.
    """
    if isinstance(outcome, BackendError):
        if isinstance(outcome, (BackendProtocol, BackendExited)):
            return None
        raise outcome
    if isinstance(outcome, Failure):
        if outcome.code not in _MODERN_ERRORS:
            return None
        offered = _offered(outcome)
        if versions.choose_legacy(offered) is not None:  # even a modern server may offer only legacy versions
            attempts.offered = tuple(offered)
            attempts.narrow(offered)
            return None
        attempts.answered(is_open=True)  # it is modern: no other process is needed
        raise _no_common_version(conversation, outcome.message)
    if not isinstance(outcome, Complete):
        return None
    try:
        hello = _read_hello(conversation, outcome)
    except BackendProtocol as problem:
        log.debug("%s; treating it as legacy", problem)
        return None
    attempts.offered = tuple(hello.supported_versions)
    version = versions.choose_modern(hello.supported_versions)
    if version is None:
        if versions.choose_legacy(hello.supported_versions) is not None:
            attempts.narrow(hello.supported_versions)
        return None
    attempts.answered(is_open=True)
    try:  # 2026-07-28 basic/index, "_meta"
        server_info = jsonrpc.decode_object(hello.meta).get(meta.SERVER_INFO, jsonrpc.ABSENT)
    except ValueError:
        server_info = jsonrpc.ABSENT
    conversation.hop = _modern(conversation.hop, version)
    return ServerIntroduction(
        era=Era.MODERN,
        version=version,
        capabilities=_capabilities(hello),
        server_info=server_info,
        instructions=hello.instructions,
        offered=attempts.offered,
        other_era=None if attempts.refuses_legacy else Era.LEGACY,
    )


def _no_common_version(conversation: Conversation, answer: str) -> BackendProtocol:
    spoken = ", ".join(versions.SUPPORTED_VERSIONS)
    return BackendProtocol(conversation.backend, f"speaks none of our protocol versions ({spoken}): {answer}")


def _read_hello(conversation: Conversation, outcome: Complete) -> _InitializeResult:
    # Clients receive it, and some parsers refuse lone surrogates.
    result = surrogates.without_lone_surrogates(outcome.result)
    if result is not outcome.result:
        text = "backend %r: lone surrogates in its introduction are served as U+FFFD"
        log.warning(text, conversation.backend, extra={"backend": conversation.backend})
    try:
        return _hellos.decode(result)
    except jsonrpc.UNDECODABLE as exc:
        raise BackendProtocol(conversation.backend, f"introduced itself with an invalid result: {exc}") from None


def _capabilities(hello: _InitializeResult) -> dict[str, msgspec.Raw]:
    """The capabilities that the backend declares; anything but an object counts as absent."""
    try:
        declared = jsonrpc.decode_object(hello.capabilities)
    except ValueError:
        return {}
    return {name: span for name, span in declared.items() if span != jsonrpc.NULL}


async def initialize(conversation: Conversation, attempts: Attempts, *, timeout: float) -> ServerIntroduction:
    """Carry out the legacy handshake (2025-11-25 basic/lifecycle, "Initialization" and "Version Negotiation").

    If the server refuses a version, the next one that it may support is tried, each at most once.
    """
    first: Outcome | None = None
    while True:
        asked = attempts.next_version() or versions.LATEST_LEGACY
        attempts.asking(asked)
        params: dict[str, object] = {
            "protocolVersion": asked,
            "capabilities": conversation.hop.capabilities,
            "clientInfo": conversation.hop.client_info,
        }
        outcome = await conversation.request("initialize", params, timeout=timeout)
        if not isinstance(outcome, (BackendExited, BackendTooSlow)):
            attempts.answered(is_open=isinstance(outcome, Complete))
        first = first or outcome
        if isinstance(outcome, Complete) or (isinstance(outcome, BackendExited) and conversation.is_closed):
            break
        attempts.is_due = _may_ask_again(outcome, attempts)
        if not attempts.is_due or conversation.is_closed:
            break
        log.info("backend %r does not accept %s; trying %s", conversation.backend, asked, attempts.next_version())
    if not isinstance(outcome, Complete):
        # The first refusal explains best why no version was accepted.
        refusal = _refusal(first)
        offered = [] if refusal is None else _offered(refusal)
        if refusal is not None and not versions.choose_legacy(offered):
            is_pinned = attempts.pinned and attempts.era == "legacy"
            if is_pinned and refusal.code in _NO_HANDSHAKE and (not offered or versions.choose_modern(offered)):
                text = f"does not speak the legacy era (era: legacy): {refusal.message}; {AUTO_HINT}"
                raise BackendUnfit(conversation.backend, text)
            if offered:
                raise _no_common_version(conversation, f"{refusal.message} (it offers {', '.join(offered)[:200]})")
        expect_result(conversation, "initialize", first)
        raise BackendProtocol(conversation.backend, "answered initialize without a result")
    hello = _read_hello(conversation, outcome)
    if hello.protocolVersion not in versions.LEGACY_VERSIONS:
        spoken = ", ".join(versions.LEGACY_VERSIONS)
        text = f"wants protocol version {hello.protocolVersion!r}; the gateway speaks {spoken}"
        raise BackendProtocol(conversation.backend, text)
    conversation.notify("notifications/initialized")
    return ServerIntroduction(
        era=Era.LEGACY,
        version=hello.protocolVersion,
        capabilities=_capabilities(hello),
        server_info=hello.serverInfo,
        instructions=hello.instructions,
        asked=asked,
        offered=attempts.offered,
        other_era=None if versions.choose_modern(attempts.offered) is None else Era.MODERN,
    )


def _may_ask_again(outcome: Outcome, attempts: Attempts) -> bool:
    """Return whether to try `initialize` with another version; record the remaining versions.

    These are the ones in `data.supported`, else those in the error's text, else all older ones.
    """
    failure = _refusal(outcome)
    if failure is not None:
        if offered := _offered(failure):
            attempts.narrow(offered)
            return attempts.next_version() is not None
        text = f"{failure.message} {(failure.data or b'').decode(errors='replace')}"
        may_be_older = failure.code not in _MODERN_ERRORS and failure.code != jsonrpc.METHOD_NOT_FOUND
    elif isinstance(outcome, BackendProtocol):
        text, may_be_older = outcome.body.decode(errors="replace"), outcome.status in _UNFIT_STATUSES
    else:
        return isinstance(outcome, BackendExited) and attempts.cut_off()
    named = [version for version in versions.find_legacy(text) if version not in attempts.refused]
    if named:
        attempts.narrow(named)
    return attempts.next_version() is not None if named or may_be_older else False


def _refusal(outcome: Outcome | None) -> Failure | None:
    """Return the JSON-RPC error in an outcome, or in the body of its HTTP response."""
    if isinstance(outcome, Failure):
        return outcome
    if not isinstance(outcome, BackendProtocol):
        return None
    try:
        error = jsonrpc.decode_error(msgspec.json.decode(outcome.body, type=_Refusal).error)
    except jsonrpc.UNDECODABLE:
        return None
    return Failure(error.code, error.message, None if error.data is jsonrpc.ABSENT else bytes(error.data), Era.LEGACY)


def expect_result(conversation: Conversation, method: str, outcome: Outcome) -> Complete:
    """Return the outcome's result.

    Raises:
        BackendError: the outcome is not a result.
    """
    match outcome:
        case Complete():
            return outcome
        case Failure():
            text = f"answered {method} with error {outcome.code}: {outcome.message}"
            raise BackendProtocol(conversation.backend, text)
        case BackendError():
            raise outcome
        case _:
            raise BackendProtocol(conversation.backend, f"answered {method} without a complete result")


def change_filter(greeting: ServerIntroduction) -> dict[str, object]:
    """Return the `subscriptions/listen` filter for every list that the backend says can change."""
    return {f"{feature}ListChanged": True for feature in FEATURES if has_flag(greeting, feature, "listChanged")}


def has_flag(greeting: ServerIntroduction, feature: str, name: str) -> bool:
    """Return whether the backend declares e.g. `{"resources": {"subscribe": true}}`."""
    try:
        settings = jsonrpc.decode_object(greeting.capabilities.get(feature, jsonrpc.EMPTY_OBJECT))
    except ValueError:
        return False
    return bytes(settings.get(name, b"")) == b"true"
