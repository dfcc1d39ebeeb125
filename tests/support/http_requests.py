"""Requests as bytes, parsed by the gateway's parser or h11 as reference."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import h11

from gateway.httpd.request_parser import END_OF_MESSAGE, ProtocolError, RequestHead, RequestParser

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_HEAD = 16_384
Headers = list[tuple[bytes, bytes]]


@dataclass
class Parsed:
    """One request, as far as it has arrived."""

    method: str
    target: bytes
    version: str
    headers: Headers
    keeps_alive: bool = False
    body: bytes = b""
    complete: bool = False


@dataclass
class Reading:
    """What a parser found in a stream: requests, then a refusal's status or None."""

    requests: list[Parsed]
    refused: int | None = None
    left: bytes = b""


def read(parts: Iterable[bytes], *, max_head: int = MAX_HEAD) -> Reading:
    """Parse with the gateway's parser, up to a request that ends the connection."""
    parser = RequestParser(max_head)
    reading = Reading([])
    ended = False
    for part in parts:
        parser.receive(part)
        try:
            while not ended and (event := parser.next_event()) is not None:
                if isinstance(event, RequestHead):
                    head = event
                    reading.requests.append(
                        Parsed(head.method, head.target, head.version, head.headers, head.keeps_alive)
                    )
                elif event == END_OF_MESSAGE:
                    reading.requests[-1].complete = True
                    ended = not reading.requests[-1].keeps_alive
                else:
                    reading.requests[-1].body += event
        except ProtocolError as error:
            reading.refused = error.status
            break
    reading.left = bytes(parser._buffer)
    return reading


def read_by_h11(parts: Iterable[bytes]) -> Reading:
    """Parse with h11: a new parser for each request, without upgrades."""
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
    reading = Reading([])
    for part in parts:
        parser.receive_data(part)
        try:
            while True:
                event = parser.next_event()
                if isinstance(event, h11.Request):
                    method, version = event.method.decode(), event.http_version.decode()
                    headers = [(bytes(name), bytes(value)) for name, value in event.headers]
                    reading.requests.append(Parsed(method, bytes(event.target), version, headers))
                elif isinstance(event, h11.Data):
                    reading.requests[-1].body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    request = reading.requests[-1]
                    values = b",".join(value.lower() for name, value in request.headers if name == b"connection")
                    tokens = [token.strip() for token in values.split(b",")]
                    closes = parser.their_state is h11.MUST_CLOSE or (
                        parser.their_state is h11.MIGHT_SWITCH_PROTOCOL
                        and (request.version < "1.1" or b"close" in tokens or request.method == "CONNECT")
                    )
                    request.complete, request.keeps_alive = True, not closes
                    if closes:
                        return reading
                    rest = parser.trailing_data[0]
                    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
                    if rest:
                        parser.receive_data(rest)
                else:
                    break
        except h11.RemoteProtocolError as error:
            reading.refused = error.error_status_hint
            break
    return reading


def split(data: bytes, at: Iterable[int]) -> list[bytes]:
    """Cut at these offsets."""
    cuts = [0, *sorted({min(each, len(data)) for each in at}), len(data)]
    return [data[start:end] for start, end in pairwise(cuts) if start < end]
