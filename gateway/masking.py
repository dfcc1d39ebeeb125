"""Masking of secrets in text by value: those substituted in a config, and others.

A `Masker` has a set of values. It finds each one verbatim, percent-encoded and JSON-escaped, in any mixture of these
and in any case, even if the text was truncated in the middle of one. Overlapping values are masked as one. `SECRETS` is
process-wide: the owner of a config in use registers its secrets there, and all text that the gateway itself writes
(errors about backends, log lines, listings) is masked with it. Messages between backends and clients never are.
"""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

MASK: Final = "***"
MIN_SECRET: Final = 6
"""Minimum length of a masked value: shorter ones occur by chance."""
PIECE: Final = 64
"""Length of the pieces of a long value that are searched for, so that a part of it is found too."""
MANY_KEYS: Final = 100
"""Number of keys of one length above which looking up each part of a text is faster than searching for each key."""
PLAIN: Final = frozenset({
    "127.0.0.1", "critical", "default", "development", "disabled", "enabled", "localhost", "production", "staging",
    "warning",
})  # fmt: skip
"""Common values: masking them protects nothing and makes lines unreadable."""
_FORMS: Final = re.compile(r"(?<=://)[^/@\s]+(?=@)|(?i:(?<=\bbearer )[\w.~+/=-]{6,})")
_RUN: Final = re.compile(r"[A-Za-z0-9_.-]+")
"""Characters left unchanged by every encoding."""
_SHORT: Final = {"\n": "n", "\r": "r", "\t": "t", "\b": "b", "\f": "f", '"': '"', "/": "/", "'": "'"}
_CUT_MARKS: Final = ("'...", '"...', "...", "…")
_AFTER_CUT: Final = "'\".…)]}>\ufffd"
"""What may follow a truncation, up to the end of the text."""
_ESCAPED_AT_MOST: Final = 3
"""Backslashes before an escaped character: a JSON text inside a JSON string inside a `repr`."""


class _Needle:
    """One value, or a piece of a long one."""

    __slots__ = ("_text", "_units", "is_head", "key")

    def __init__(self, text: str) -> None:
        self._text = text
        self._units: list[tuple[str, ...]] | None = None
        head = text[:MIN_SECRET]  # at a truncation this much of the value must match
        self.key = max(_RUN.findall(head), key=len, default="").lower()
        """A lower-case string contained in every text with the value; may be empty."""
        self.is_head = len(self.key) == MIN_SECRET

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield the spans of the value in a lower-case text, overlapping ones too."""
        cut = len(text.rstrip(_AFTER_CUT))
        units = self._units
        if units is None:
            units = self._units = [_spellings(part) for part in re.findall(r"\\+|[^\\]", self._text)]
        for opening in (self.key,) if self.is_head else units[0]:
            start = text.find(opening)
            while start >= 0:
                end = _match(units, text, start, cut)
                if end is not None:
                    yield start, end
                start = text.find(opening, start + 1)


def _match(units: list[tuple[str, ...]], text: str, at: int, cut: int) -> int | None:
    """Return where a value that begins here ends, perhaps by truncation.

    At a truncation, at least `MIN_SECRET` of its characters must match.

    `cut` is where the text may have been truncated last; earlier truncations have marks.
    """
    places = {at}  # more than one where backslashes are ambiguous
    for count, spellings in enumerate(units):
        following = {at + len(one) for at in places for one in spellings if text.startswith(one, at)}
        if not following:
            if count < MIN_SECRET:
                return None
            return max((at for at in places if at >= cut or text.startswith(_CUT_MARKS, at)), default=None)
        places = following
    return max(places)


def _spellings(part: str) -> tuple[str, ...]:
    """Return the spellings of a character, or run of backslashes, in lower-case text."""
    if part.isascii() and _RUN.fullmatch(part):
        return (part.lower(),)
    if part[0] == "\\":
        return (
            "%5c" * len(part),
            "%255c" * len(part),
            *("\\" * count for count in range(len(part), 4 * len(part) + 1)),
        )
    quoted = "".join(f"%{byte:02x}" for byte in part.encode(errors="surrogatepass"))
    code = ord(part)
    escapes = [f"u{code:04x}"] if code < 0x10000 else [f"u{code:08x}"]
    if code < 0x100:
        escapes.append(f"x{code:02x}")
    if part in _SHORT:
        escapes.append(_SHORT[part])
    twice = quoted.replace("%", "%25")  # a URL in the query of another URL
    found = {_lower(part), quoted, twice, *({"+", "%2b"} if part == " " else set[str]())}
    for slash in ("\\" * count for count in range(1, _ESCAPED_AT_MOST + 1)):
        found.update(slash + escape for escape in escapes)
        if code >= 0x10000:  # in JSON a pair, each half with a backslash of its own
            high, low = divmod(code - 0x10000, 0x400)
            found.add(f"{slash}u{0xD800 + high:04x}{slash}u{0xDC00 + low:04x}")
    return tuple(found)


def _lower(text: str) -> str:
    """Return the text in lower case without moving any character."""
    if text.isascii():
        return text.lower()
    return "".join(low if len(low := char.lower()) == 1 else char for char in text)


def _pieces(value: str) -> Iterator[str]:
    """Return the parts of a value to search for: each line, long ones in pieces.

    A short value is also searched for as a whole.
    """
    value = value.strip()
    found = [value] if len(value) <= PIECE else []
    found += [line.strip() for line in value.splitlines()]
    for line in found:
        if not is_maskable(line):
            continue
        for at in range(0, len(line), PIECE):
            yield line[at : at + PIECE] if at + PIECE <= len(line) else line[-PIECE:]


def is_maskable(value: str) -> bool:
    """Return whether a value is long and unusual enough to be masked."""
    return len(value) >= MIN_SECRET and value.lower() not in PLAIN


class Masker:
    """Masks a set of values in texts. Immutable."""

    def __init__(self, values: Mapping[str, str], known: Masker | None = None) -> None:
        """Prepare the values, each with its replacement; reuse equal ones of `known`."""
        lent = {} if known is None else known._needles
        self._needles: dict[str, _Needle] = {}
        self._by_key: dict[str, list[str]] = {}
        self._shown: dict[str, str] = {}
        for value, instead in values.items():
            for piece in _pieces(value):
                if piece in self._needles:
                    continue
                needle = self._needles[piece] = lent.get(piece) or _Needle(piece)
                self._by_key.setdefault(needle.key, []).append(piece)
                self._shown[piece] = instead
        self._key_lengths = sorted(set(map(len, self._by_key)))

    def mask(self, text: str) -> str:
        """Return the text with each value replaced."""
        if len(text) < MIN_SECRET:
            return text
        lowered = _lower(text)
        keys: Iterable[str]
        if len(self._by_key) < MANY_KEYS * len(self._key_lengths):
            keys = [key for key in self._by_key if key in lowered]
        else:
            ends = ((length, len(lowered) - length + 1) for length in self._key_lengths)
            keys = self._by_key.keys() & {lowered[at : at + length] for length, end in ends for at in range(end)}
        spans = [
            (start, end, self._shown[piece])
            for key in keys
            for piece in self._by_key[key]
            for start, end in self._needles[piece].spans(lowered)
        ]
        if not spans:
            return text
        # Spans that touch are merged, and a span of two values shows the name of neither.
        spans.sort()
        parts: list[str] = []
        done = 0
        start, end, instead = spans[0]
        for another, its_end, its_instead in (*spans[1:], (len(text) + 1, 0, "")):
            if another < end or (another == end and its_instead == instead):
                if its_end > end:
                    instead = its_instead if its_instead == instead or another == start else MASK
                    end = its_end
                continue
            parts += (text[done:start], instead)
            done = end
            start, end, instead = another, its_end, its_instead
        return "".join((*parts, text[done:]))


def mask_texts(value: object, mask: Callable[[str], str]) -> object:
    """Return a JSON value with all strings except keys masked."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {key: mask_texts(item, mask) for key, item in cast("dict[object, object]", value).items()}
    if isinstance(value, list | tuple):
        return [mask_texts(item, mask) for item in cast("list[object] | tuple[object, ...]", value)]
    return value


class Secrets:
    """The secrets of every config in use, masked in all text of this process."""

    def __init__(self) -> None:
        self._held: dict[object, frozenset[str]] = {}
        self._known: frozenset[str] = frozenset()
        self._masker = Masker({})
        self._lock = threading.Lock()  # several embedded gateways have a thread each

    def hold(self, holder: object, values: Iterable[str]) -> None:
        """Mask these values until `release`; replaces the previous values of the same holder."""
        with self._lock:
            before, now = self._held.get(holder), frozenset(values)
            self._held[holder] = now
            if before is not None or not now <= self._known:
                self._change()

    def release(self, holder: object) -> None:
        """Stop masking the values of one holder, except those of other holders. Idempotent."""
        with self._lock:
            self._held.pop(holder, None)
            self._change()

    def replace(self, values: Iterable[str]) -> None:
        """Replace the masked values of the process's own config."""
        self.hold(Secrets, values)

    def _change(self) -> None:
        known = frozenset(value for values in self._held.values() for value in values)
        if known != self._known:
            self._known, self._masker = known, Masker(dict.fromkeys(known, MASK), self._masker)

    def mask(self, text: str) -> str:
        """Mask the values and common secrets in a text: URL user info, bearer tokens."""
        text = self._masker.mask(text)
        return _FORMS.sub(MASK, text) if "://" in text or "bearer " in text.lower() else text

    def mask_briefly(self, text: str, most: int) -> str:
        """Mask a text and truncate it to about `limit` characters, ending in `...`."""
        return self.mask(text if len(text) <= most else f"{text[:most]}...")

    def mask_all(self, value: object) -> object:
        """Return a JSON value with all strings except keys masked."""
        return mask_texts(value, self.mask)


SECRETS: Final = Secrets()
"""Process-wide, as logging is."""
