"""A server's config for display: every secret masked, everything else with its effective value.

Values of `env` and `headers` are never shown, nor the parts of arguments and URLs that usually contain keys; values
from variables and files are shown everywhere as spelled in the file, `${NAME}`. Masking is by place and by value, not
by resemblance to a key: a secret need not look like one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.config.model import NOT_WRITTEN, public_address
from gateway.masking import MASK, Masker, mask_texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.config.model import Config, ServerConfig

_TELLING = re.compile(r"(?i)(key|token|secret|passw|pwd|auth|credential|bearer|cookie|session)")
_USERINFO = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def shown_config(server: ServerConfig) -> dict[str, Any]:
    """Return all fields of a server except its name, without secrets."""
    fields: dict[str, Any] = msgspec.to_builtins(server)
    spell = Masker(server.masked).mask
    fields = {name: mask_texts(value, spell) for name, value in fields.items() if name not in NOT_WRITTEN}
    fields["args"] = shown_args(fields["args"])
    fields["env"] = dict.fromkeys(server.env, MASK)
    fields["headers"] = dict.fromkeys(server.headers, MASK)
    fields["url"] = None if server.url is None else public_address(fields["url"])
    for name in ("client_secret", "private_key"):
        if server.oauth is not None and getattr(server.oauth, name) is not None:
            fields["oauth"][name] = MASK
    return fields


def secrets_of(server: ServerConfig) -> set[str]:
    """Return a server's secret values: substituted ones, and those that `shown_config` masks by place."""
    found = {value for name, value in server.env.items() if _TELLING.search(name)} | set(server.masked)
    for value in server.headers.values():
        found |= {value, value.partition(" ")[2]}  # and without the scheme of `Authorization`
    if server.url is not None:
        found.update(_USERINFO.findall(server.url))
        for member in server.url.partition("?")[2].split("&"):
            name, _, value = member.partition("=")
            if _TELLING.search(name):
                found.add(value)
    if server.oauth is not None:
        found |= {server.oauth.client_secret or "", server.oauth.private_key or ""}
    for given, shown in zip(server.args, shown_args(server.args), strict=True):
        if shown.endswith(MASK):
            found.add(given.removeprefix(shown.removesuffix(MASK)))
    return found - {""}


def secrets_of_config(config: Config) -> set[str]:
    """Return the secret values of a whole config, including disabled servers."""
    secrets = set(config.masked).union(*map(secrets_of, config.servers.values()))
    oauth = None if config.access is None else config.access.oauth  # keys are present only as hashes
    if oauth is not None and oauth.introspection is not None and oauth.introspection.client_secret:
        secrets.add(oauth.introspection.client_secret)
    return secrets


def shown_args(args: Sequence[str]) -> list[str]:
    """Mask arguments: values of secret options and `NAME=`, user and query of URLs."""
    shown: list[str] = []
    masks_next = False
    for arg in args:
        option, sign, value = arg.partition("=")
        if masks_next and not arg.startswith("-"):
            shown.append(MASK)
        elif sign and value and _TELLING.search(option):
            shown.append(f"{option}={MASK}")
        elif "://" in arg:
            address, query, _ = _USERINFO.sub(MASK, arg).partition("?")
            shown.append(address + query + (MASK if query else ""))
        else:
            shown.append(arg)
        masks_next = arg.startswith("-") and not sign and _TELLING.search(arg) is not None
    return shown
