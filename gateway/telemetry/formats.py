r"""Formatting of events as one line each: text (`console`) or JSON (`json`).

Logged text often comes from others (a backend's stderr, a client's names), so newlines and control characters are
escaped, which prevents forged lines and terminal escape sequences.
"""

from __future__ import annotations

import logging
import re
import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, Literal

import msgspec

from gateway.masking import SECRETS
from gateway.telemetry.fields import details_of, fields_of

Format = Literal["console", "json"]
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def one_line(text: str) -> str:
    r"""Escape control characters, line separators and changes of direction as `\n`, `\x1b`, `\u2028`."""
    return _CONTROL.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    char = found[0]
    code = ord(char)
    return _SHORT.get(char) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


class Console(logging.Formatter):
    """`12:00:00 INFO    gateway.backend.time: text [call=7]`: adds the fields that are not in the text."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as one line."""
        message = SECRETS.mask(record.getMessage())
        fields = {name: SECRETS.mask(str(value)) for name, value in fields_of(record).items()}
        extra = [f"{name}={value}" for name, value in fields.items() if value not in message]
        text = f"{_clock(int(record.created))} {record.levelname:<7} {record.name}: {message}" + (
            f" [{' '.join(extra)}]" if extra else ""
        )
        problem = _traceback(self, record)
        return one_line(text if problem is None else f"{text}\n{SECRETS.mask(problem)}")


@lru_cache(maxsize=2)
def _clock(second: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(second))


class JsonLines(logging.Formatter):
    """`{"time", "level", "logger", "message"}`, then the event, the known fields, and any `traceback`."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as one line."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        event: dict[str, object] = {
            "time": when.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": SECRETS.mask(record.getMessage()),
            **{name: _masked(value) for name, value in (details_of(record) | fields_of(record)).items()},
        }
        problem = _traceback(self, record)
        if problem is not None:
            event["traceback"] = SECRETS.mask(problem)
        return encode_line(event)


def _masked(value: object) -> object:
    """Mask a field. JSON with secrets becomes text, since masking may break it."""
    if isinstance(value, str):
        return SECRETS.mask(value)
    if not isinstance(value, msgspec.Raw):
        return value
    text = bytes(value).decode(errors="replace")
    masked = SECRETS.mask(text)
    return value if masked == text else masked


def encode_line(event: dict[str, object]) -> str:
    """Encode an event as one line of JSON, whatever its texts contain."""
    try:
        text = msgspec.json.encode(event, enc_hook=repr).decode()
    except UnicodeEncodeError:  # a lone surrogate
        clean = {
            key: value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
            for key, value in event.items()
        }
        text = msgspec.json.encode(clean, enc_hook=repr).decode()
    return one_line(text)  # characters that JSON need not escape


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str | None:
    if record.exc_info and not record.exc_text:
        record.exc_text = formatter.formatException(record.exc_info)
    parts = [part for part in (record.exc_text, record.stack_info) if part]
    return "\n".join(parts) or None
