"""Pages of a list, and the cursors between them (server/utilities/pagination). Pure."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING

import msgspec

from gateway import jsonrpc
from gateway.errors import InvalidParams

if TYPE_CHECKING:
    from gateway.catalog.kinds import Kind


class Page(msgspec.Struct, frozen=True):
    """A run of a list's entries, and the cursor of the next run."""

    chunks: tuple[bytes, ...]
    """Encoded entries, some of them joined; all joined they are what stands between the list's brackets."""
    next_cursor: str | None

    @property
    def joined(self) -> bytes:
        """What stands between the list's brackets."""
        return b",".join(self.chunks)


def encode_cursor(kind: Kind, index: int, last: str) -> str:
    """The cursor of the page that begins at `index`, behind the entry named `last`."""
    return base64.urlsafe_b64encode(jsonrpc.encode([kind.member, index, last])).decode()


def decode_cursor(kind: Kind, cursor: str) -> tuple[int, str]:
    """What `encode_cursor` was given.

    Raises:
        InvalidParams: the cursor is none of ours.
    """
    text = "params.cursor is none that this server gave; list again without a cursor"
    try:
        member, index, last = msgspec.json.decode(
            base64.b64decode(cursor, altchars=b"-_", validate=True), type=tuple[str, int, str]
        )
    except (binascii.Error, ValueError, *jsonrpc.UNDECODABLE):
        raise InvalidParams(text) from None
    if member != kind.member or index < 0:
        raise InvalidParams(text)
    return index, last


def encode_list(kind: Kind, page: Page, *, head: bytes = b"", tail: bytes = b"") -> bytes:
    """The result object of a list method; `head` and `tail` are further members with their commas."""
    cursor = b"" if page.next_cursor is None else b',"nextCursor":' + jsonrpc.encode(page.next_cursor)
    before, after = b'{%b"%b":[' % (head, kind.member.encode()), b"]%b%b}" % (cursor, tail)
    if not page.chunks:
        return before + after
    first, *others = page.chunks
    if not others:
        return b"%b%b%b" % (before, first, after)
    *others, last = others
    return b",".join([before + first, *others, last + after])  # a list of thousands is copied once
