"""The lists of a backend: tools, prompts, resources and templates, each read independently.

A list that fails affects only itself: it is empty, or has the entries of the pages that were read, and its problem is
part of the `Listing`. Only the end of the session, or no response to any list, fails a start. A server that answers
promptly is sent one list request at a time, since many are written for a client that does so.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from gateway import jsonrpc
from gateway.backends.session.contracts import wait_any
from gateway.backends.session.handshake import expect_result
from gateway.calls import Failure
from gateway.catalog.listing import MAX_ITEMS, Item, Listing, clean, declares, offered_capabilities
from gateway.eras.caching import Hint, merge_hints, read_hint
from gateway.eras.meta import gateways_in_meta
from gateway.eras.methods import FEATURES, Kind
from gateway.errors import MAX_REASON, BackendError, BackendProtocol, BackendTooSlow, BackendUnfit
from gateway.masking import SECRETS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    import msgspec

    from gateway.backends.session.conversation import Conversation
    from gateway.backends.session.handshake import ServerIntroduction

MAX_PAGES: Final = 1_000
"""Maximum pages read of one list: the cursors of a backend may never end."""
LIST_PATIENCE: Final = 1.0
"""Seconds after which the next list is requested although the last request has no response yet."""
LIST_SHARE: Final = 0.5
"""Fraction of a start's remaining time after which unanswered lists are dropped, if others were answered."""
UNDECLARED_WAIT: Final = 5.0
"""Seconds for the lists of a server that declares none: many servers do not answer unknown methods."""
UNDECLARED_LINGER: Final = 1.0
"""Seconds that the other lists of such a server get once it has answered one."""

log = logging.getLogger("gateway.backend")


class _Reading:
    """One list while it is being read."""

    def __init__(self, conversation: Conversation, kind: Kind, *, timeout: float, quiet: bool) -> None:
        self.kind = kind
        self.unread: bool | None = None
        """Whether reading an incomplete list again may help."""
        self.failure: BackendError | None = None
        self.is_answered = False
        """Whether the backend has answered, if only with an error."""
        self.loop: BackendUnfit | None = None
        """The error of a list that contains this gateway's own entries."""
        self.gateways: tuple[str, ...] = ()
        """The gateways behind the backend."""
        self.done = trio.Event()
        self._conversation = conversation
        self._timeout = timeout
        self._quiet = quiet
        self._spans: list[msgspec.Raw] = []
        self._hints: list[Hint] = []
        self._problems: list[str] = []

    async def run(self) -> None:
        """Read all pages (server/utilities/pagination: an empty cursor is not the end)."""
        seen: set[str] = set()
        params: dict[str, object] = {}
        for number in range(MAX_PAGES):
            page = await self._read_page(params)
            if page is None:
                break
            spans, cursor = page
            if cursor is not None and cursor in seen:
                self._note(f"the cursors of {self.kind.list_method} repeat; the list ends there")
                if spans != self._spans[-len(spans) :]:  # otherwise it is the last page again
                    self._spans += spans
                break
            self._spans += spans
            if cursor is None or len(self._spans) > MAX_ITEMS:
                break
            if number == MAX_PAGES - 1:
                self._note(f"{self.kind.member}: over {MAX_PAGES} pages; the rest is left out")
            seen.add(cursor)
            params = {"cursor": cursor}
        self.done.set()

    async def _read_page(self, params: dict[str, object]) -> tuple[list[msgspec.Raw], str | None] | None:
        """Return one page's entries and the next cursor; None if there is no such page."""
        method, member = self.kind.list_method, self.kind.member
        outcome = await self._conversation.request(
            method, params, timeout=self._timeout, on_problem=self._problems.append
        )
        # Of the gateway's own errors only an invalid response counts; a refusal over HTTP, a subclass of it, does not.
        self.is_answered |= not isinstance(outcome, BackendError) or type(outcome) is BackendProtocol
        try:
            members = jsonrpc.decode_object(expect_result(self._conversation, method, outcome).result)
        except BackendError as problem:
            is_unknown = isinstance(outcome, Failure) and outcome.code == jsonrpc.METHOD_NOT_FOUND
            self.fail(problem, again=not is_unknown, expected=is_unknown and self.kind is Kind.TEMPLATES)
            return None
        except ValueError:
            text = f"answered {method} with a result that is not an object"
            self.fail(BackendProtocol(self._conversation.backend, text), again=False)
            return None
        self.gateways, above = gateways_in_meta(members), self._conversation.hop.gateways
        if not set(self.gateways).isdisjoint(above):  # its list would hold this gateway's own tools, and grow forever
            text = f"lists this gateway's own catalog ({' -> '.join((*above, *self.gateways))})"
            self.loop = BackendUnfit(
                self._conversation.backend, f"{text}; remove this server here, or the gateway there"
            )
            self.fail(self.loop, again=False)
            return None
        self._hints.append(read_hint(members))
        span = bytes(members.get(member, b""))
        if span in {b"", b"null"}:  # some languages write an empty list like this
            self._note(f"answered {method} without {member!r}; it counts as an empty list")
            span = b"[]"
        try:
            entries = jsonrpc.decode_array(span)
        except ValueError:
            text = f"answered {method} without a valid {member!r} array"
            self.fail(BackendProtocol(self._conversation.backend, text), again=False)
            return None
        cursor = members.get("nextCursor")
        if cursor is None or bytes(cursor) == b"null":
            return entries, None
        try:
            return entries, jsonrpc.decode_string(cursor)
        except ValueError:
            self._note(f"answered {method} with a nextCursor that is not a string; the list ends there")
            return entries, None

    def _note(self, problem: str) -> None:
        if not self._quiet:
            self._problems.append(problem)

    def fail(self, problem: BackendError, *, again: bool, expected: bool = False) -> None:
        """Note that the list is incomplete or missing; `again`: a retry may help."""
        self.failure = problem
        self.unread = again
        if self._spans:
            self._problems.append(f"{problem.reason}; the {len(self._spans)} {self.kind.member} before that are served")
        elif self._quiet or expected:
            self.unread = None
            log.debug("%s", problem, extra={"backend": self._conversation.backend})
        else:
            self._problems.append(f"{problem.reason}; no {self.kind.member} are served")
        self.done.set()

    def finish(self) -> tuple[tuple[Item, ...], tuple[str, ...]]:
        """Return the entries, and the problems with them and with the list."""
        if not self.done.is_set():
            text = f"did not answer {self.kind.list_method} in time"
            self.fail(BackendTooSlow(self._conversation.backend, text), again=True)
        items, problems = clean(self.kind, self._spans, merge_hints(self._hints))
        # Twice the limit, since a problem may contain the reason of an error.
        return items, tuple(SECRETS.mask_briefly(text, 2 * MAX_REASON) for text in (*self._problems, *problems))


async def list_all(conversation: Conversation, greeting: ServerIntroduction, *, timeout: float) -> Listing:
    """Read each list that the backend declares; if it declares none, try each once.

    Errors of undeclared lists mean that there is no such list. Problems are logged, and kept in the listing.

    Raises:
        BackendError: the session has ended, or no declared list was answered in time.
    """
    declared = [feature for feature in FEATURES if declares(greeting.capabilities, (feature,))]
    wanted = [feature for feature in FEATURES if feature in greeting.capabilities] if declared else FEATURES
    left = min(timeout, trio.current_effective_deadline() - trio.current_time()) * LIST_SHARE
    wait = timeout if declared else min(UNDECLARED_WAIT, left)
    readings = [
        _Reading(conversation, kind, timeout=wait, quiet=kind.feature not in declared)
        for kind in Kind
        if kind.feature in wanted
    ]
    if declared:
        await _read_all(readings, LIST_PATIENCE, left, 0.0)
    else:
        await _read_all(readings, 0.0, 0.0, UNDECLARED_LINGER)
    _raise_if_gone(conversation, readings)
    for reading in readings:
        if reading.loop is not None:
            raise reading.loop
    listing = _collect(readings)
    failures = [reading.failure for reading in readings if reading.failure is not None and not reading.is_answered]
    if declared and len(failures) == len(readings):
        raise failures[0]
    _log(conversation, listing.warnings)
    return Listing(
        items=listing.items,
        capabilities=offered_capabilities(greeting.capabilities, listing.items),
        instructions=greeting.instructions,
        problems=listing.problems,
        unread=listing.unread,
        gateways=listing.gateways,
    )


async def _read_all(readings: list[_Reading], patience: float, least: float, linger: float) -> None:
    """Read lists, each at most `patience` seconds after the previous one.

    They get `least` seconds in all, then until one of them is answered, and then `linger` seconds more.
    """
    deadline = trio.current_time() + least
    async with trio.open_nursery() as nursery:
        for reading in readings:
            nursery.start_soon(reading.run)
            with trio.move_on_after(patience):
                await reading.done.wait()
        with trio.move_on_at(deadline):
            await _wait_done(readings)
        while not any(reading.is_answered for reading in readings) and not all(r.done.is_set() for r in readings):
            await wait_any(*(reading.done for reading in readings if not reading.done.is_set()))
        with trio.move_on_after(linger):
            await _wait_done(readings)
        nursery.cancel_scope.cancel(reason="the other lists were answered")


async def _wait_done(readings: Iterable[_Reading]) -> None:
    for reading in readings:
        await reading.done.wait()


async def list_feature(
    conversation: Conversation, feature: str, *, timeout: float, known: Collection[str] = ()
) -> Listing:
    """Read the lists of one feature again; `known` problems are not logged.

    Raises:
        BackendError: the session has ended.
    """
    readings = [_Reading(conversation, kind, timeout=timeout, quiet=False) for kind in Kind if kind.feature == feature]
    for reading in readings:
        await reading.run()
    _raise_if_gone(conversation, readings)
    listing = _collect(readings)
    _log(conversation, [text for text in listing.warnings if text not in known])
    return listing


def _collect(readings: Collection[_Reading]) -> Listing:
    items: dict[Kind, tuple[Item, ...]] = {}
    problems: dict[Kind, tuple[str, ...]] = {}
    unread: dict[Kind, bool] = {}
    for reading in readings:
        kind = reading.kind
        items[kind], problems[kind] = reading.finish()
        if reading.unread is not None:
            unread[kind] = reading.unread
    gateways = tuple(dict.fromkeys(each for reading in readings for each in reading.gateways))
    return Listing(items=items, problems=problems, unread=unread, gateways=gateways)


def _raise_if_gone(conversation: Conversation, readings: Iterable[_Reading]) -> None:
    """Raise the cause of the session's end, if it has ended."""
    for reading in readings:
        if conversation.is_closed and reading.failure is not None:
            raise reading.failure


def _log(conversation: Conversation, problems: Iterable[str]) -> None:
    for problem in problems:
        log.warning(
            "backend %r: %s",
            conversation.backend,
            problem,
            extra={"event": "list_problem", "backend": conversation.backend},
        )
