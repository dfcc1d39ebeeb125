"""Where clients are told what is for them alone, by the key of their sessions with backends.

Such a key is the stdio process, a legacy session, or an authenticated principal; of a principal several streams may be
open, and each of them hears everything. Whoever opens a mailbox closes it when the client has gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import msgspec

    Mailbox = Callable[[str, dict[str, msgspec.Raw]], None]


class ClientNotifications:
    """All mailboxes of all clients. A mailbox takes a method and params, and returns at once."""

    def __init__(self) -> None:
        self._boxes: dict[str, list[Mailbox]] = {}

    def __len__(self) -> int:
        """Clients that have one."""
        return len(self._boxes)

    def register(self, key: str, mailbox: Mailbox) -> None:
        """Have a mailbox filled with what is for this client."""
        self._boxes.setdefault(key, []).append(mailbox)

    def close(self, key: str, mailbox: Mailbox) -> None:
        """Take a mailbox away. Safe to repeat, and for one that never was."""
        boxes = self._boxes.get(key, [])
        if mailbox in boxes:
            boxes.remove(mailbox)
        if not boxes:
            self._boxes.pop(key, None)

    def deliver(self, key: str, method: str, params: dict[str, msgspec.Raw]) -> None:
        """Tell a client something; one that has gone, or has no mailbox, does not get it."""
        for mailbox in tuple(self._boxes.get(key, ())):
            mailbox(method, params)
