"""Secrets that a config holds in plain text, for a warning. Pure.

A value counts if its place is one of secrets and no part of it comes from a variable or a file, or if it has the form
of a well-known kind of token. Masking does not depend on this: it covers more, since a wrong warning is a nuisance.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from gateway.masking import Masker, is_maskable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gateway.config.model import Config, ServerConfig

_NAME: Final = re.compile(
    r"(?i)token|secret|passw|pwd|credential|bearer|cookie|authorization|(^|[-_.])auth$"
    r"|(api|access|private|secret|auth|encryption|signing|master)[-_]?key|(^|[-_.])key$"
)
_TOKEN: Final = re.compile(
    r"\b(sk-[\w-]{20,}|gh[oprsu]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|xox[abeprs]-[\w-]{10,}|AKIA[0-9A-Z]{16}"
    r"|AIza[\w-]{35})"
)
_USER: Final = re.compile(r"://[^/@\s:]*:([^/@\s]+)@")
_HARMLESS: Final = re.compile(r"(?i)\d+(\.\d+)?|[~./].*|[a-z][a-z0-9+.-]*://.*|basic|bearer|.*\s.*", re.DOTALL)
"""Numbers, paths, addresses, and words that are not secrets, despite their names."""


def plain_secrets(server: ServerConfig) -> list[str]:
    """Return a server's fields with a secret in plain text, such as `env.TOKEN`."""
    masker = Masker(server.masked)
    # A disabled server may have variables that are not substituted.
    found = [place for place, value in _places(server) if "${" not in value and masker.mask(value) == value]
    return list(dict.fromkeys(found))


def plain_secrets_of_config(config: Config) -> list[str]:
    """Return the same of the section `access`."""
    oauth = None if config.access is None else config.access.oauth
    secret = None if oauth is None or oauth.introspection is None else oauth.introspection.client_secret
    if not secret or Masker(config.masked).mask(secret) != secret:
        return []
    return ["access.oauth.introspection.client_secret"]


def _places(server: ServerConfig) -> Iterator[tuple[str, str]]:
    for name, value in server.env.items():
        yield from _named(f"env.{name}", name, value)
    for name, value in server.headers.items():
        yield from _named(f"headers.{name}", name, value.partition(" ")[2] or value)  # without a scheme
    if server.url is not None:
        yield from _in_url("url", server.url)
    yield from _in_arguments(server.args)
    if server.oauth is not None:
        for name in ("client_secret", "private_key"):
            if value := getattr(server.oauth, name):
                yield f"oauth.{name}", value


def _named(place: str, name: str, value: str) -> Iterator[tuple[str, str]]:
    if _TOKEN.search(value) or (_NAME.search(name) and is_maskable(value) and not _HARMLESS.fullmatch(value)):
        yield place, value
    else:
        yield from _in_url(place, value)


def _in_url(place: str, text: str) -> Iterator[tuple[str, str]]:
    if "://" not in text:
        return
    if (user := _USER.search(text)) is not None:
        yield place, user[1]
    for member in text.partition("?")[2].partition("#")[0].split("&"):
        name, _, value = member.partition("=")
        value = unquote(value)
        if _TOKEN.search(value) or (_NAME.search(name) and is_maskable(value)):
            yield place, value


def _in_arguments(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    option = ""
    for index, arg in enumerate(args):
        name, sign, value = arg.partition("=")
        if option and not arg.startswith("-"):
            yield from _named(f"args[{index}]", option, arg)
        elif sign:
            yield from _named(f"args[{index}]", name, value)
        else:
            yield from _named(f"args[{index}]", "", arg)
        option = arg if arg.startswith("-") and not sign and _NAME.search(arg) else ""
