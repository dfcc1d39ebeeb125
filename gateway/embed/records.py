"""Records of a configuration's servers: usable, or with the reason why not.

Any thread may read a `Registry` at any time: its table is replaced whole, and in a record only `connected` and `error`
change, each in one step, by the loop that uses the server.
"""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING, Any, cast

import msgspec

from gateway.config import Config, GatewaySettings, ServerConfig, parse_config, parse_server
from gateway.embed.errors import InvalidConfig, NotInitialized, UnknownServer
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping


class Record:
    """One server."""

    def __init__(self, name: str, raw: object, config: ServerConfig | None, error: str = "") -> None:
        self.name = name
        self.raw = raw
        """The server's entry as the program gave it."""
        self.config = config
        """None if the entry is wrong."""
        self.error = error
        self.connected = False
        """Whether the last connection attempt succeeded and connections have not all been closed since."""

    @property
    def is_usable(self) -> bool:
        """Whether a connection is possible."""
        return self.config is not None and not self.config.disabled

    def check_usable(self) -> ServerConfig:
        """Return the configuration. Raises NotInitialized."""
        if self.config is None or self.config.disabled:
            text = f"server {self.name!r} was not initialized: {self.error or 'it is disabled'}"
            raise NotInitialized(text)
        return self.config

    def status(self) -> dict[str, Any]:
        """Return `{"connected", "error", "initialized"}`."""
        return {"connected": self.connected, "error": self.error, "initialized": self.is_usable}


class Registry:
    """All servers of one configuration, and its settings."""

    def __init__(
        self,
        records: Mapping[str, Record] | None = None,
        settings: GatewaySettings | None = None,
        rest: Config | None = None,
    ) -> None:
        self.records = dict(records or {})
        self.settings = settings or GatewaySettings()
        self.rest = rest or Config({})
        """All other sections, such as access control."""

    def __getitem__(self, name: str) -> Record:
        try:
            return self.records[name]
        except KeyError:
            known = ", ".join(map(repr, self.records)) or "none"
            text = f"there is no server {name!r}; configured are {known}"
            raise UnknownServer(text) from None

    def config(self) -> Config:
        """Return the usable part of the configuration."""
        servers = {name: one.config for name, one in self.records.items() if one.config is not None}
        return msgspec.structs.replace(self.rest, servers=servers, gateway=self.settings, warnings=(), source="config")

    def raw(self) -> dict[str, Any]:
        """Return the unchanged entries by name."""
        return {name: copy.deepcopy(one.raw) for name, one in self.records.items()}

    def replace_with(self, new: Registry) -> list[str]:
        """Take over another registry's content; return the removed and changed servers.

        Records of unchanged servers are kept with their status.
        """
        old, records = self.records, dict(new.records)
        for name, record in new.records.items():
            known = old.get(name)
            if known is not None and record.config is not None and known.config == record.config:
                known.raw = record.raw
                records[name] = known
        self.records, self.settings, self.rest = records, new.settings, new.rest
        return [name for name, record in old.items() if records.get(name) is not record]


def read_registry(config: object, *, strict: bool, name: str | None = None) -> Registry:
    """Read a configuration in the format `{"mcpServers": {NAME: {...}}}`, without reading files.

    Unless `strict`, problems of a server are recorded with it. `name` is the name that clients see.

    Raises:
        InvalidConfig: it is not a configuration, or, if `strict`, one server is wrong.
    """
    if not isinstance(config, dict):
        text = f"the configuration must be a dict like {{'mcpServers': {{...}}}}, not {type(config).__name__}"
        raise InvalidConfig([text])
    whole = cast("dict[str, Any]", config)
    section = "servers" if "servers" in whole and "mcpServers" not in whole else "mcpServers"
    servers: object = whole.get(section)
    if not isinstance(servers, dict):
        text = f"{section!r} must be a dict of servers by name, not {type(servers).__name__}"
        raise InvalidConfig([text])
    try:
        rest = parse_config({**whole, section: servers if strict else {}}, environ=os.environ)
    except ConfigError as exc:
        raise InvalidConfig(exc.problems) from None
    settings = rest.gateway
    if name is not None:
        settings = msgspec.structs.replace(settings, name=name)
    records: dict[str, Record] = {}
    for key, raw in cast("dict[str, object]", servers).items():
        given = copy.deepcopy(raw)
        try:
            records[str(key)] = Record(str(key), given, parse_server(str(key), raw, environ=os.environ))
        except ConfigError as exc:
            records[str(key)] = Record(str(key), given, None, "; ".join(exc.problems))
    return Registry(records, settings, rest)
