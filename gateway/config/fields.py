"""Types and bounds that the fields of several sections share.

`title` words what a value must be; the reader, the JSON Schema and the reference all take it from here. Pure.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

# Some thirty years: long enough for "never", short enough for every clock that a deadline meets.
LONGEST_SECONDS = 1e9
LARGEST_COUNT = 2**53 - 1

Seconds = Annotated[float, Meta(gt=0, le=LONGEST_SECONDS, title="a number of seconds above 0")]
Count = Annotated[int, Meta(ge=1, le=LARGEST_COUNT, title="a whole number of at least 1")]
Room = Annotated[int, Meta(ge=0, le=LARGEST_COUNT, title="a whole number of at least 0")]
Rate = Annotated[float, Meta(gt=0, le=LONGEST_SECONDS, title="a number of calls a second, above 0")]
TimesByGlob = Annotated[dict[str, Seconds], Meta(title="an object of seconds by glob")]
Share = Annotated[float, Meta(ge=0, le=1, title="a number from 0 to 1")]
Port = Annotated[int, Meta(ge=1, le=65_535, title="a port, 1 to 65535")]
NameLength = Annotated[int, Meta(ge=16, le=LARGEST_COUNT, title="a whole number of at least 16")]
Namespace = Annotated[
    str, Meta(pattern=r"\A[A-Za-z0-9_.-]{0,64}\Z", title="at most 64 letters, digits, '_', '-' and '.'")
]
Separator = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_.-]{1,8}\Z", title="1 to 8 letters, digits, '_', '-' and '.'")]
KeyList = Annotated[
    str,
    Meta(
        pattern=r"\A[A-Za-z0-9+/_-]{43}=?(,[A-Za-z0-9+/_-]{43}=?)*\Z",
        title="one or more keys of 32 bytes in Base64, with commas between (make one with `openssl rand -base64 32`)",
    ),
]
ShownName = Annotated[
    str, Meta(pattern=r"\A[^\x00-\x1f\x7f\ud800-\udfff]{1,128}\Z", title="1 to 128 characters in one line")
]


Globs = Annotated[tuple[str, ...], Meta(title="a list of globs")]

ALL = ("*",)
"""The globs that fit every name."""


def doc(description: str, *, at_start_only: bool = False) -> Meta:
    """Describe a field, for `--help`, the README and the JSON Schema.

    Args:
        description: one or more sentences.
        at_start_only: a reload does not apply a change of this field; the next start of the gateway does.
    """
    if at_start_only:
        description += " A change applies at the next start."
    return Meta(description=description, extra={"at_start_only": at_start_only})
