"""Server requests: the capability that each one needs, and its form in each era.

Sampling, elicitation and roots are requests in the legacy era and `inputRequests` in the modern one (2026-07-28
basic/patterns/mrtr). A client gets only requests whose capability it has declared.
"""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING, Final

import msgspec

from gateway import jsonrpc
from gateway.calls import Era
from gateway.eras import blocks, contents, meta
from gateway.eras.methods import APPS, CAPABILITY
from gateway.eras.versions import LATEST_LEGACY

if TYPE_CHECKING:
    from gateway.calls import Caller, Failure

URL_ELICITATION_REQUIRED: Final = -32042
SAMPLING: Final = "sampling/createMessage"
ELICITATION: Final = "elicitation/create"
ROOTS: Final = "roots/list"

_UNSAFE_SCHEMES: Final = frozenset({
    "about", "blob", "chrome", "data", "file", "filesystem", "javascript", "vbscript", "view-source",
})  # fmt: skip
"""Schemes of no web page: a client that opens one runs the server's code, or reads its own files."""

_RESULT: Final = jsonrpc.Names("inputRequests", "requestState", "resultType")
_REQUEST: Final = jsonrpc.Names("method", "params")
_REFUSAL: Final = jsonrpc.Names("elicitations")
_ONCE: Final = jsonrpc.Names()
_ELICITED: Final = jsonrpc.Names("mode", "url", "elicitationId", "_meta")
_UNCLEAR: Final = "a member of an elicitation appears twice or differs from one of MCP only in case"

_FIRST_IN: Final = {"elicitation": "2025-06-18"}
"""Capabilities that the first revision lacks; modes of elicitation and tools in sampling came with 2025-11-25."""

BRIDGEABLE: Final = jsonrpc.raw({
    "roots": {"listChanged": True},
    "sampling": {"tools": {}},
    "elicitation": {"form": {}, "url": {}},
    "extensions": {APPS: {"mimeTypes": ["text/html;profile=mcp-app"]}},
})
"""The capabilities declared to a backend whose session serves clients not yet known.

A server may list tools with pages only if MCP Apps is declared; a client that does not show pages ignores them.
"""


def missing_capability(caller: Caller, method: str, params: dict[str, msgspec.Raw]) -> str | None:
    """Return the capability that this request needs, if the client has not declared it.

    A capability newer than the client's protocol version counts as missing, even if declared.
    """
    name = CAPABILITY[method]
    if caller.version < _FIRST_IN.get(name, ""):
        return name
    try:
        declared = jsonrpc.decode_object(caller.capabilities)
        settings = jsonrpc.decode_object(declared[name])
    except (KeyError, ValueError):
        return name
    is_older = caller.version < LATEST_LEGACY
    if method == SAMPLING and ("tools" in params or "toolChoice" in params) and (is_older or "tools" not in settings):
        return "sampling.tools"
    if method == ELICITATION:
        mode = elicitation_mode(params)
        if is_older and mode != "form":
            return f"elicitation.{mode}"
        # `elicitation: {}` means form only, as it did before there were modes (client/elicitation, "Capabilities").
        if mode not in settings and not (mode == "form" and "url" not in settings):
            return f"elicitation.{mode}"
    return None


def shows_apps(caller: Caller) -> bool:
    """Return whether the client has declared that it shows the pages of tools (MCP Apps)."""
    declared = blocks.read(caller.capabilities) or {}
    return blocks.read((blocks.read(declared.get("extensions")) or {}).get(APPS)) is not None


def elicitation_mode(params: dict[str, msgspec.Raw]) -> str:
    """Return `form` or `url`; form by default."""
    try:
        return jsonrpc.decode_string(params["mode"])
    except (KeyError, ValueError):
        return "form"


def unsafe_url(params: dict[str, msgspec.Raw]) -> str | None:
    """Return the reason to show this URL to no client, or None.

    client/elicitation, "Safe URL Handling".

    It must not contain a name or password, nor have a scheme that runs something or reads a file, nor occur in two
    spellings of the member, since the client may open the other one. It is read as by browsers: without white space,
    and with or without the slashes of an address. The reason does not repeat the URL.
    """
    if _ELICITED.second_spelling(jsonrpc.encode(params)) is not None:
        return _UNCLEAR
    url = re.sub(r"[\x00-\x20]", "", blocks.read_string(params, "url"))
    scheme, found, rest = url.partition(":")
    scheme = scheme.lower()
    if found and scheme in _UNSAFE_SCHEMES:
        return f"the url to visit has the scheme {scheme}:, which must not be sent to a client"
    if found and (scheme in {"http", "https"} or rest.startswith("//")):
        authority = re.split(r"[/?#\\]", rest.lstrip("/\\"), maxsplit=1)[0]
        if "@" in authority:
            return "the url to visit holds credentials, which must not be sent to a client"
    return None


def unsafe_elicitation(result: bytes) -> str | None:
    """Return the reason to withhold an `input_required` result for its URLs, or None."""
    try:
        wanted = (read_input_required(result).wanted or {}).values()
    except ValueError:
        return None  # an unknown form: its URLs will not be visited
    if any(one.method == ELICITATION for one in wanted) and _is_unclear_required(result):
        return _UNCLEAR
    return next((why for one in wanted if one.method == ELICITATION and (why := unsafe_url(one.params))), None)


def unsafe_refusal(failure: Failure) -> str | None:
    """Return the reason to withhold the data of a -32042 from all clients, or None."""
    if failure.code != URL_ELICITATION_REQUIRED:
        return None
    wanted = _elicitations(failure)
    if wanted and _is_unclear_refusal(failure):
        return _UNCLEAR
    return next((why for params in wanted if (why := unsafe_url(params))), None)


def _is_unclear_required(result: bytes) -> bool:
    """Return whether client and gateway may read different elicitations in an `input_required` result."""
    requests = blocks.read(msgspec.Raw(result)) or {}
    if _RESULT.second_spelling(result) or _ONCE.second_spelling(requests.get("inputRequests", jsonrpc.EMPTY_OBJECT)):
        return True
    for span in (blocks.read(requests.get("inputRequests")) or {}).values():
        params = (blocks.read(span) or {}).get("params", jsonrpc.EMPTY_OBJECT)
        if _REQUEST.second_spelling(span) or _ELICITED.second_spelling(params):
            return True
    return False


def _is_unclear_refusal(failure: Failure) -> bool:
    data = msgspec.Raw(failure.data or b"{}")
    if _REFUSAL.second_spelling(data) is not None:
        return True
    try:
        spans = jsonrpc.decode_array((blocks.read(data) or {})["elicitations"])
    except (KeyError, ValueError):
        return False
    return any(_ELICITED.second_spelling(span) is not None for span in spans)


class InputRequest(msgspec.Struct):
    """One entry of `inputRequests`."""

    method: str
    given: dict[str, msgspec.Raw] | None = msgspec.field(name="params", default=None)

    @property
    def params(self) -> dict[str, msgspec.Raw]:
        """Its params, without optional ones that are null."""
        found = dict(self.given or {})
        meta.drop_nulls(self.method, found)
        return found


class InputRequiredBody(msgspec.Struct):
    """The members of an `input_required` result that the gateway reads; null counts as absent."""

    wanted: dict[str, InputRequest] | None = msgspec.field(name="inputRequests", default=None)
    state: msgspec.Raw = msgspec.field(name="requestState", default=jsonrpc.NULL)


_input_required = msgspec.json.Decoder(InputRequiredBody)


def read_input_required(result: bytes) -> InputRequiredBody:
    """Read an `input_required` result. Raises ValueError if its form is not MCP's."""
    try:
        return jsonrpc.read(_input_required, result)
    except jsonrpc.UNDECODABLE as exc:
        raise ValueError(str(exc)) from None


def for_version(method: str, params: dict[str, msgspec.Raw], version: str) -> dict[str, msgspec.Raw]:
    """Convert a request for a client of this version: downgrade content and choices.

    Raises:
        ValueError: this version has no form for it, or it must not be shown to any client.
    """
    if method == ELICITATION and (unsafe := unsafe_url(params)) is not None:
        raise ValueError(unsafe)
    if version >= LATEST_LEGACY:
        return params
    params = dict(params)
    if method == SAMPLING:
        _split_messages(params)
        contents.downgrade_blocks(params, version)
    elif method == ELICITATION:
        blocks.change_one(
            params, "requestedSchema", lambda form: blocks.change_one(form, "properties", _downgrade_properties)
        )
    return params


def _split_messages(params: dict[str, msgspec.Raw]) -> None:
    """Split messages: before 2025-11-25 a message held only one block."""
    try:
        messages = jsonrpc.decode_array(params["messages"])
    except (KeyError, ValueError):
        return
    split: list[object] = []
    for message in messages:
        members = blocks.read(message) or {}
        try:
            parts = jsonrpc.decode_array(members["content"])
        except (KeyError, ValueError):
            split.append(message)
            continue
        split += [{**members, "content": part} for part in parts]
    params["messages"] = jsonrpc.raw(split)


def _downgrade_properties(properties: dict[str, msgspec.Raw]) -> bool:
    """Downgrade choices: before 2025-11-25 there was no multiple choice, and titles were in `enumNames`."""
    changed = False
    for name in list(properties):
        field = blocks.read(properties[name]) or {}
        if blocks.read_string(field, "type") == "array":
            text = f"{name!r} asks for several choices, which the client's protocol version cannot ask for"
            raise ValueError(text)
        if "oneOf" in field and "enum" not in field:
            options = [blocks.read(span) or {} for span in jsonrpc.decode_array(field.pop("oneOf"))]
            values = [blocks.read_string(option, "const") for option in options]
            titles = [blocks.read_string(option, "title") for option in options]
            titles = [title or value for title, value in zip(titles, values, strict=True)]
            properties[name] = jsonrpc.raw({**field, "enum": values, "enumNames": titles})
            changed = True
    return changed


def for_legacy_client(method: str, params: dict[str, msgspec.Raw]) -> dict[str, msgspec.Raw]:
    """Return an input request as legacy params; a URL elicitation gets an id."""
    if method == ELICITATION and elicitation_mode(params) == "url" and "elicitationId" not in params:
        return {**params, "elicitationId": jsonrpc.raw(str(uuid.uuid4()))}
    return params


def for_modern_client(params: dict[str, msgspec.Raw]) -> dict[str, msgspec.Raw]:
    """Return legacy params as an input request's: without task, id and progress token."""
    kept = {name: span for name, span in params.items() if name not in {"task", "elicitationId"}}
    own = blocks.read(kept.pop("_meta", None)) or {}
    own.pop(meta.PROGRESS_TOKEN, None)
    if own:
        kept["_meta"] = jsonrpc.raw(own)
    return kept


def answer_to_refusal(method: str) -> bytes | None:
    """Return a client's error as a modern server expects it, if it can be expressed.

    Elicitations are cancelled; other requests have no such form.
    """
    return b'{"action":"cancel"}' if method == ELICITATION else None


class _Elicitations(msgspec.Struct):
    elicitations: list[dict[str, msgspec.Raw]] = []


_elicitation_lists = msgspec.json.Decoder(_Elicitations)


def _elicitations(failure: Failure) -> list[dict[str, msgspec.Raw]]:
    try:
        return jsonrpc.read(_elicitation_lists, failure.data or b"{}").elicitations
    except jsonrpc.UNDECODABLE:
        return []


def url_input_requests(failure: Failure, caller: Caller) -> dict[str, object] | None:
    """Return a legacy backend's -32042 (URL elicitation required) as input requests for a modern client.

    None if it is another error, names no URL or a forbidden one, or the client has not declared `elicitation.url`.
    """
    if failure.code != URL_ELICITATION_REQUIRED or failure.era is not Era.LEGACY:
        return None
    wanted = _elicitations(failure)
    if (
        not wanted
        or unsafe_refusal(failure) is not None
        or any(missing_capability(caller, ELICITATION, params) is not None for params in wanted)
    ):
        return None
    return {
        f"input-{number}": {"method": ELICITATION, "params": for_modern_client(params)}
        for number, params in enumerate(wanted, 1)
    }
