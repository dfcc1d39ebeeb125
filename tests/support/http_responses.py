"""Responses as bytes, parsed by the gateway's parser or h11 as reference."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import h11

from gateway.http_client.response_parser import MAX_FRAMING, InvalidResponse, ResponseParser

if TYPE_CHECKING:
    from collections.abc import Iterable


def text_of(value: bytes) -> str:
    """Decode the value of a field: UTF-8, or else Latin-1."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


@dataclass
class ParsedResponse:
    """One response, as far as it has come."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict[str, str])
    cookies: list[str] = field(default_factory=list[str])
    body: bytes = b""
    is_complete: bool = False
    keeps_alive: bool = False
    is_refused: bool = False


def read_response(parts: Iterable[bytes], *, ends: bool) -> ParsedResponse:
    """Parse one response with the gateway's parser; `ends`: the connection then ends."""
    parser, body, refused = ResponseParser(), b"", False
    try:
        for part in parts:
            parser.receive(part)
            body += b"".join(parser.pop_pieces())
        if ends:
            parser.receive_eof()
    except InvalidResponse:
        refused = True
        body += b"".join(parser.pop_pieces())
    if not parser.is_answered:
        return ParsedResponse(is_refused=refused)
    keeps_alive = parser.keeps_alive and parser.is_complete
    found = (parser.status_code, parser.headers, parser.cookies, body, parser.is_complete, keeps_alive, refused)
    return ParsedResponse(*found)


def read_response_by_h11(parts: Iterable[bytes], *, ends: bool) -> ParsedResponse:
    """Parse with h11, which the gateway's former client used."""
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_FRAMING)
    parser.send(h11.Request(method="POST", target="/", headers=[("host", "a"), ("content-length", "0")]))
    parser.send(h11.EndOfMessage())
    found = ParsedResponse()
    try:
        for part in [*parts, *([b""] if ends else [])]:
            parser.receive_data(part)
            while not isinstance(event := parser.next_event(), type):  # the sentinels are types
                if isinstance(event, h11.Response):
                    found.status = event.status_code
                    for raw_name, raw_value in event.headers:
                        name, value = bytes(raw_name).decode("ascii"), text_of(bytes(raw_value))
                        if name == "set-cookie":
                            found.cookies.append(value)
                        else:
                            found.headers[name] = f"{found.headers[name]}, {value}" if name in found.headers else value
                elif isinstance(event, h11.Data):
                    found.body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    found.is_complete = True
                    found.keeps_alive = parser.their_state is h11.DONE and not parser.trailing_data[0].strip(b"\r\n")
                    return found
                elif isinstance(event, h11.ConnectionClosed):
                    return found
    except h11.RemoteProtocolError:
        found.is_refused = True
    return found
