"""A choice of tools: what is offered of a catalog, under which description and schema.

Names are public names. What is not chosen is neither listed nor routed; what is chosen keeps everything else that its
backend says of it. Pure.
"""

from __future__ import annotations

import msgspec

from gateway import jsonrpc


class Offer(msgspec.Struct, frozen=True):
    """How one tool is offered; None is as its backend says."""

    description: str | None = None
    schema: msgspec.Raw | None = None
    """The `inputSchema`, an object of type `object`."""
    title: str | None = None


def described(raw: bytes, offer: Offer) -> bytes:
    """A tool's entry as it is offered."""
    changes: dict[str, object] = {}
    if offer.title is not None:
        changes["title"] = offer.title
    if offer.description is not None:
        changes["description"] = offer.description
    if offer.schema is not None:
        changes["inputSchema"] = offer.schema
    if not changes:
        return raw
    members: dict[str, object] = dict(jsonrpc.decode_object(raw))
    return jsonrpc.encode({**members, **changes})
