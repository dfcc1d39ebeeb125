"""Secrets taken out of what is logged: by value, where the config names them, and by their usual forms.

A child may print its own key, and an error may repeat a header: what the gateway logs passes through here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

MASK: Final = "***"
MIN_SECRET: Final = 6
"""Characters of a value that is masked wherever it stands: shorter ones occur by chance."""
_FORMS: Final = re.compile(r"(?<=://)[^/@\s]+(?=@)|(?i:(?<=\bbearer )[\w.~+/=-]{6,})")


class Secrets:
    """The values that no line may show."""

    def __init__(self) -> None:
        self._known: list[str] = []

    def replace(self, values: Iterable[str]) -> None:
        """Mask these values from now on, and those given before no more."""
        self._known = sorted({value for value in values if len(value) >= MIN_SECRET}, key=len, reverse=True)

    def mask(self, text: str) -> str:
        """A text without them. Looked for one by one, which takes a tenth of the time of one pattern for all."""
        for value in self._known:
            if value in text:
                text = text.replace(value, MASK)
        return _FORMS.sub(MASK, text) if "://" in text or "bearer " in text.lower() else text


SECRETS: Final = Secrets()
"""Of this process: logging is the process's, too."""
