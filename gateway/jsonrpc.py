r"""JSON-RPC 2.0 envelopes: the only part of a message that every package may read.

`params`, `result` and `error` stay `msgspec.Raw`, byte for byte as they came. Invariant: bytes that leave this module
are UTF-8 and contain no CR or LF, so they can be framed as a JSON line or as an SSE `data:` line unchecked. Pure: no
I/O, no state.

JSON's grammar and most parsers allow two things that msgspec refuses; they are read only after it has failed, so that
other messages do not pay: a byte order mark before a text (RFC 8259, 8.1), and the escape of a lone surrogate
(`"\ud83d"`, RFC 8259, 8.2), which JavaScript writes for text cut inside an emoji. Raw spans keep such an escape
unchanged; in a `str` it is a lone surrogate, as in Python's own json, and `encode` writes it as an escape again.
"""

from __future__ import annotations

import json
import re
import secrets
from typing import Any, Final, Self, TypeVar, cast

import msgspec

from gateway import surrogates

Id = int | str
"""A request id: MCP allows strings and integers, never null (basic/index, "Requests")."""

ABSENT: Final = msgspec.Raw(b"")
"""The value of a member that the message did not have."""
EMPTY_OBJECT: Final = msgspec.Raw(b"{}")
NULL: Final = msgspec.Raw(b"null")
"""A common spelling of an absent member."""

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603

MAX_EXACT: Final = 2**53
"""Integers beyond this are not exact as floats."""
LF: Final = 0x0A
CR: Final = 0x0D
"""As numbers: looking for a byte in bytes takes a tenth of the time that way."""
EDGE_BYTES: Final = 65_536
"""Bytes of each end of an undecodable message that are searched for its id."""
LARGE_BYTES: Final = 2**23
"""Bytes from which a message is handled in several steps; one of 80 MB in a single step would delay all others by
0.2 s and more."""

UNREADABLE: Final = "(unreadable)"
"""Replaces the keys of an unreadable object, so that decisions on them can only be refusals."""

Body = bytes | tuple[bytes | memoryview, ...]
"""A message to send; a large one is in parts."""

_DOTTED_I: Final = str.maketrans({0x130: "i", 0x131: "i"})
_ID = rb'"id"\s*:\s*(-?[0-9]{1,40}|"(?:[^"\\]|\\.){0,512}")\s*'
_VERSION = rb'"jsonrpc"\s*:\s*"2\.0"\s*'
_ID_AT_START = re.compile(rb"^(?:\s|\xef\xbb\xbf)*\{\s*(?:" + _VERSION + rb",\s*)?" + _ID + rb"[,}]")
_ID_AT_END = re.compile(rb",\s*" + _ID + rb"(?:,\s*" + _VERSION + rb")?\}\s*$")


class Message(msgspec.Struct, gc=False):
    """One envelope. Absent members are UNSET (id, method) or `ABSENT` (the others).

    A null `params`, `error` or `method` counts as absent.
    """

    id: int | str | msgspec.UnsetType | None = msgspec.UNSET
    method: str | msgspec.UnsetType = msgspec.UNSET
    params: msgspec.Raw = ABSENT
    result: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT


class _OddMessage(msgspec.Struct, gc=False):
    """`Message` from peers without integers, or that write every member they know."""

    id: float | str | msgspec.UnsetType | None = msgspec.UNSET
    method: str | msgspec.UnsetType | None = msgspec.UNSET
    params: msgspec.Raw = ABSENT
    result: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT


class ErrorBody(msgspec.Struct, gc=False):
    """The members of an error response's `error` object."""

    code: int
    given: str | None = msgspec.field(name="message", default=None)
    data: msgspec.Raw = ABSENT

    @property
    def message(self) -> str:
        """The message; empty without one."""
        return self.given or ""


class _Key:
    """A key of an object, compared by identity so that a dict keeps duplicates."""

    __slots__ = ("text",)

    text: str

    @classmethod
    def read(cls, _kind: type, text: str) -> Self:
        """Make a key from a decoded string."""
        key = cls()
        key.text = text
        return key


class Names:
    """Members that a decision depends on, with the spellings that peers may accept."""

    __slots__ = ("_exact", "_folded")

    def __init__(self, *names: str) -> None:
        self._exact = frozenset(names)
        self._folded = frozenset(map(fold, names))

    def second_spelling(self, span: msgspec.Raw | bytes) -> str | None:
        """Return the first key that is duplicate, or one of these names in another case.

        None without one.

        Parsers disagree about both: of two equal members some use the first and some the last, and Go's encoding/json
        reads `NAME` as `name`. Other values have no keys. Lone surrogates in keys count as equal.
        """
        try:
            members = _members.decode(surrogates.without_lone_surrogates(surrogates.without_bom(bytes(span))))
        except msgspec.ValidationError:
            return None
        except UNDECODABLE:
            return UNREADABLE
        seen: set[str] = set()
        for key in members:
            text = key.text
            if text in seen or (text not in self._exact and fold(text) in self._folded):
                return text
            seen.add(text)
        return None


def fold(key: str) -> str:
    """Return a key as compared by peers that ignore case.

    Unicode case folding (so that U+017F is `s` and U+212A is `k`), with the two letters that some languages treat as
    `i`, and cut at a NUL, where strings end in C.
    """
    if "\0" in key:
        key = key.partition("\0")[0]
    return key.lower() if key.isascii() else key.translate(_DOTTED_I).casefold()


class Malformed(ValueError):
    """Bytes that are not a JSON-RPC message. `id` is the request's, if it was found."""

    def __init__(self, code: int, reason: str, request_id: Id | None) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.id = request_id


_messages = msgspec.json.Decoder(Message)
_odd_messages = msgspec.json.Decoder(_OddMessage)
_objects = msgspec.json.Decoder(dict[str, msgspec.Raw])
_members = msgspec.json.Decoder(dict[_Key, msgspec.Raw], dec_hook=_Key.read)
_arrays = msgspec.json.Decoder(list[msgspec.Raw])
_errors = msgspec.json.Decoder(ErrorBody)
_ids = msgspec.json.Decoder(int | str)
_floats = msgspec.json.Decoder(float)
_strings = msgspec.json.Decoder(str)
_anything = msgspec.json.Decoder()
_encoder = msgspec.json.Encoder()

UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Exceptions that decoding hostile bytes can raise (deep nesting is a RecursionError)."""

T = TypeVar("T")


def encode(value: object) -> bytes:
    """Encode a value; a lone surrogate in a string becomes its escape."""
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError:
        return _encode_with_surrogates(value)


def _encode_with_surrogates(value: object) -> bytes:
    match value:
        case str():
            return json.dumps(value).encode("ascii")
        case msgspec.Struct():
            config, members = value.__struct_config__, dict[object, object]()
            for field in msgspec.structs.fields(value):
                member: object = getattr(value, field.name)
                is_default = field.default_factory() if callable(field.default_factory) else field.default
                if member is not msgspec.UNSET and not (config.omit_defaults and member == is_default):
                    members[field.encode_name] = member
            return _encode_with_surrogates(members)
        case dict():
            pairs = cast("dict[object, object]", value).items()
            texts = [
                _encode_with_surrogates(key if isinstance(key, str) else str(key)) + b":" + encode(member)
                for key, member in pairs
            ]
            return b"{" + b",".join(texts) + b"}"
        case list() | tuple():
            return b"[" + b",".join(map(encode, cast("list[object]", value))) + b"]"
        case _:
            return _encoder.encode(value)


def read(decoder: msgspec.json.Decoder[T], data: msgspec.Raw | bytes) -> T:
    """Decode a peer's text, with lone surrogate escapes and a byte order mark before it.

    Raises:
        msgspec.DecodeError: it is not JSON, or not of the decoder's type; see also `UNDECODABLE`.
    """
    try:
        return decoder.decode(data)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        text = surrogates.without_bom(bytes(data))
        masked, mark = surrogates.masked(text)
        if mark is None:
            if len(text) == len(bytes(data)):
                raise
            return decoder.decode(text)
        return cast("T", surrogates.unmasked(decoder.decode(masked), mark))


def _read_again(decoder: msgspec.json.Decoder[T], data: msgspec.Raw | bytes) -> T:
    """Read a value that the decoder alone cannot. Raises ValueError."""
    try:
        return read(decoder, data)
    except UNDECODABLE as exc:
        raise ValueError(str(exc)) from None


def decode(data: bytes) -> Message:
    """Decode one envelope.

    Raises:
        Malformed: the bytes are not UTF-8, not JSON (-32700), or not a JSON-RPC object with a valid id (-32600).
    """
    try:
        if not data.isascii():
            data.decode()
        message = _messages.decode(data)
    except UNDECODABLE:
        message = _decode_odd(data)
    if message.params == NULL:
        message.params = ABSENT
    if message.error is not ABSENT and message.error == NULL:
        message.error = ABSENT
    if message.id is None and message.error is ABSENT:
        raise Malformed(INVALID_REQUEST, "the id must be a string or an integer, not null", None)
    return message


def _decode_odd(data: bytes) -> Message:
    """Decode a message that deviates in a tolerated way. Raises Malformed.

    It may have a byte order mark, a lone surrogate, an id like 2.0 or a null method.
    """
    try:
        data.decode()
        return read(_messages, data)
    except msgspec.ValidationError as exc:
        problem = Malformed(INVALID_REQUEST, f"not a JSON-RPC message: {exc}", recover_id(data))
    except UNDECODABLE as exc:
        raise Malformed(PARSE_ERROR, f"not valid JSON: {exc}", recover_id(data)) from None
    try:
        found = read(_odd_messages, data)
    except UNDECODABLE:
        raise problem from None
    request_id = found.id
    if isinstance(request_id, float):
        if abs(request_id) > MAX_EXACT or not request_id.is_integer():
            raise problem
        request_id = int(request_id)
    method = msgspec.UNSET if found.method is None else found.method
    return Message(request_id, method, found.params, found.result, found.error)


def recover_id(data: bytes) -> Id | None:
    """Find an undecodable message's id in its two ends; return None without one."""
    for match in (_ID_AT_START.search(data[:EDGE_BYTES]), _ID_AT_END.search(data[-EDGE_BYTES:])):
        if match is not None:
            try:
                return read(_ids, match[1])
            except UNDECODABLE:
                return None
    return None


def is_batch(data: bytes) -> bool:
    """Return whether the body is a JSON array, which only protocol version 2025-03-26 allows."""
    start = data.lstrip()[:1]
    return start == b"[" or (start == surrogates.BOM[:1] and surrogates.without_bom(data).startswith(b"["))


def decode_batch(data: bytes, *, most: int) -> list[bytes]:
    """Split a batch into its messages.

    Raises:
        Malformed: not an array, an empty one, or one of more than `most` messages.
    """
    try:
        if not data.isascii():
            data.decode()
        parts = [bytes(part) for part in read(_arrays, data)]
    except UNDECODABLE as exc:
        raise Malformed(PARSE_ERROR, f"not valid JSON: {exc}", None) from None
    if not 1 <= len(parts) <= most:
        raise Malformed(INVALID_REQUEST, f"a batch must hold 1 to {most} messages, not {len(parts)}", None)
    return parts


def decode_object(raw: msgspec.Raw | bytes) -> dict[str, msgspec.Raw]:
    """Decode the top level of an object; its members stay raw, in their order.

    Raises:
        ValueError: it is not an object (absent counts as an empty one).
    """
    if raw is ABSENT:
        return {}
    try:
        return _objects.decode(raw)
    except UNDECODABLE:
        return _read_again(_objects, raw)


def decode_array(raw: msgspec.Raw | bytes) -> list[msgspec.Raw]:
    """Decode the top level of an array. Raises ValueError for anything else."""
    try:
        return read(_arrays, raw)
    except UNDECODABLE as exc:
        raise ValueError(str(exc)) from None


def decode_string(raw: msgspec.Raw | bytes) -> str:
    """Decode a string. Raises ValueError for anything else."""
    try:
        return _strings.decode(raw)
    except UNDECODABLE:
        return _read_again(_strings, raw)


def decode_id(raw: msgspec.Raw | bytes) -> Id:
    """Decode an id or a progress token (2.0 is the integer 2).

    Raises ValueError for anything but a string or an integer.
    """
    try:
        return read(_ids, raw)
    except UNDECODABLE as exc:
        try:
            number = _floats.decode(raw)
        except UNDECODABLE:
            number = 0.5
        if number.is_integer() and abs(number) <= MAX_EXACT:
            return int(number)
        raise ValueError(str(exc)) from None


def decode_error(raw: msgspec.Raw) -> ErrorBody:
    """Decode an `error` member; an invalid one becomes -32603 with itself as data."""
    try:
        return read(_errors, raw)
    except UNDECODABLE:
        return ErrorBody(INTERNAL_ERROR, "the server sent an error without code and message", raw)


def decode_any(raw: msgspec.Raw | bytes) -> Any:
    """Decode a value completely; only for small values that the gateway itself must understand."""
    return read(_anything, raw)


def raw(value: object) -> msgspec.Raw:
    """Encode a value to a raw span."""
    return msgspec.Raw(encode(value))


class LongStrings:
    """The strings of one message that were set aside, each with its quotes."""

    __slots__ = ("_mark", "_strings", "size")

    def __init__(self) -> None:
        self._mark = b'"' + secrets.token_hex(16).encode()  # no peer can guess it
        self._strings: list[memoryview] = []
        self.size = 0
        """The number of their bytes."""

    def add(self, string: memoryview) -> bytes:
        """Set a string aside; return its placeholder, itself a JSON string."""
        self._strings.append(string)
        self.size += len(string)
        return b'%b%d"' % (self._mark, len(self._strings) - 1)

    def restore(self, text: bytes) -> tuple[bytes | memoryview, ...]:
        """Return the parts of a JSON text in which each placeholder has its string again."""
        parts: list[bytes | memoryview] = []
        first, *rest = text.split(self._mark)
        parts.append(first)
        for one in rest:
            number, _, following = one.partition(b'"')
            parts += (self._strings[int(number)], following)
        return tuple(parts)


def one_line(span: msgspec.Raw | bytes) -> bytes:
    """Return the same JSON without CR and LF, which occur only between tokens.

    msgspec refuses them inside strings, so removing the white space never changes a value.
    """
    data = bytes(span)
    if LF in data or CR in data:
        try:
            return msgspec.json.format(data, indent=-1)
        except (RecursionError, msgspec.DecodeError):  # deeper in the stack than the decoder was, or a lone surrogate
            return data.translate(None, b"\r\n")
    return data


def request(request_id: Id, method: str, params: dict[str, object] | msgspec.Raw) -> bytes:
    """Encode a request."""
    return one_line(encode({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}))


def notification(method: str, params: bytes | None = None) -> bytes:
    """Encode a notification; `params` is an encoded object, or None to omit it."""
    if params is None:
        return b'{"jsonrpc":"2.0","method":%b}' % encode(method)
    return b'{"jsonrpc":"2.0","method":%b,"params":%b}' % (encode(method), one_line(params))


def response(request_id: Id, result: bytes) -> bytes:
    """Encode a result response; `result` is an encoded value, inserted unchanged."""
    encoded_id = b"%d" % request_id if isinstance(request_id, int) else encode(request_id)
    return b"".join((b'{"jsonrpc":"2.0","id":', encoded_id, b',"result":', one_line(result), b"}"))


def response_of(request_id: Id, *spans: bytes | memoryview) -> bytes:
    """Encode a result response; the spans together are an encoded value in one line."""
    encoded_id = b"%d" % request_id if isinstance(request_id, int) else encode(request_id)
    return b"".join((b'{"jsonrpc":"2.0","id":', encoded_id, b',"result":', *spans, b"}"))  # faster than `%` if large


def error_response(request_id: Id | None, code: int, message: str, data: bytes | None = None) -> bytes:
    """Encode an error response; `data` is an encoded value.

    An unknown id becomes null (JSON-RPC 2.0, section 5).
    """
    encoded_id = b"null" if request_id is None else encode(request_id)
    tail = b"" if data is None else b',"data":' + one_line(data)
    return b'{"jsonrpc":"2.0","id":%b,"error":{"code":%d,"message":%b%b}}' % (
        encoded_id,
        code,
        encode(message),
        tail,
    )
