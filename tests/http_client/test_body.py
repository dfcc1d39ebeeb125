"""Bodies of responses that end early: their pieces are freed although the exception lives on."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
import trio

from gateway.budget import Budget, Intake
from gateway.errors import BackendExited
from gateway.http_client.body import read_body
from gateway.http_client.errors import BodyTooLong, Undecodable

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 100_000


class Body:
    """A response whose body breaks after its pieces."""

    status_code = 200
    cookies = ()

    def __init__(self, pieces: list[bytes], problem: BaseException, coding: str | None) -> None:
        self.headers: dict[str, str] = {} if coding is None else {"content-encoding": coding}
        self._pieces = pieces
        self._problem = problem

    async def read_raw(self, take: Callable[[bytes], None]) -> None:
        """See `Response`."""
        await trio.lowlevel.checkpoint()
        for piece in self._pieces:
            take(piece)
        raise self._problem

    async def aclose(self) -> None:
        """See `Response`."""
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    ("most", "budget", "coding", "expected"),
    [
        (2 * SIZE, 10 * SIZE, None, BodyTooLong),
        (10 * SIZE, 2 * SIZE, None, BodyTooLong),
        (10 * SIZE, 10 * SIZE, None, BackendExited),
        (10 * SIZE, 10 * SIZE, "br", Undecodable),
    ],
)
async def test_a_failed_body_frees_its_pieces_at_once(
    most: int, budget: int, coding: str | None, expected: type[Exception]
) -> None:
    pieces = [bytes(SIZE + i) for i in range(3)]
    before = [sys.getrefcount(piece) for piece in pieces]
    body = Body(pieces, BackendExited("b", "died"), coding)
    with pytest.raises(expected) as caught:
        await read_body(body, most, Intake(Budget(budget), evict=True))
    kept = [sys.getrefcount(piece) for piece in pieces]
    del caught
    # The piece that was refused is still in the traceback.
    assert sum(now > then for now, then in zip(kept, before, strict=True)) <= 1
