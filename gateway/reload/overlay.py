"""Changes made over the management API, on top of the config file.

Servers are added, removed, enabled and disabled. Each change records the file's entry for the server at the time. Once
the entry differs, the change is discarded: edits of the file take precedence. Pure except for `ServerConfig`'s own
reader.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

import msgspec

from gateway import jsonrpc
from gateway.config import Config, parse_server
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.config.files import FileReader

    Raw = dict[str, Any]


UNDATED: Final = "some time"
"""The time of a change saved by a version that did not record it."""


class Change(msgspec.Struct, frozen=True, omit_defaults=True):
    """The change of one server."""

    over: str | None
    """The digest of the file's entry; null if there was none."""
    raw: dict[str, Any] | None = None
    """The server in the format of a config file; null keeps the file's entry."""
    disabled: bool | None = None
    removed: bool = False
    at: str = UNDATED
    """The time of the change, in ISO 8601."""


class Base(msgspec.Struct, frozen=True):
    """The base of the changes: a config, and its file's entries, if any."""

    config: Config
    raws: dict[str, dict[str, Any]] = {}
    files: FileReader | None = None
    """Reads the files that the config names (`gateway.config.files`)."""

    def digest(self, name: str) -> str | None:
        """Return a digest of a server's entry; None if there is none."""
        if name in self.raws:
            return hashlib.sha256(msgspec.json.encode(self.raws[name], order="sorted")).hexdigest()[:32]
        return "given" if name in self.config.servers else None


class Overlay(msgspec.Struct, frozen=True):
    """All changes, by server."""

    changes: dict[str, Change] = {}
    format: int = 1

    def put(self, base: Base, name: str, raw: Raw) -> Overlay:
        """Return an overlay with this server set to `raw`."""
        return self._with(name, Change(base.digest(name), raw))

    def remove(self, base: Base, name: str) -> Overlay:
        """Return an overlay with this server removed."""
        digest = base.digest(name)
        return self._without({name}) if digest is None else self._with(name, Change(digest, removed=True))

    def switch(self, base: Base, name: str, disabled: bool, at: str = UNDATED) -> Overlay:
        """Return an overlay with this server disabled or enabled at `at`.

        Without a change if the file agrees.
        """
        present = self.changes.get(name)
        raw = None if present is None else present.raw
        said = base.config.servers.get(name)
        if raw is None and said is not None and said.disabled == disabled:
            return self._without({name})
        return self._with(name, Change(base.digest(name), raw, disabled, at=at))

    @property
    def removed(self) -> list[str]:
        """The removed servers of the base."""
        return [name for name, change in self.changes.items() if change.removed]

    def without_void(self, base: Base) -> tuple[Overlay, list[str]]:
        """Drop the changes of servers whose entries now differ; also return their names."""
        void = [name for name, change in self.changes.items() if change.over != base.digest(name)]
        return self._without(set(void)), void

    def compose(self, base: Base, environ: Mapping[str, str]) -> Config:
        """Return the config with all changes applied.

        Raises:
            ConfigError: an added server is invalid, e.g. because a variable is no longer set.
        """
        if not self.changes:
            return base.config
        servers = dict(base.config.servers)
        problems: list[str] = []
        for name, change in self.changes.items():
            if change.removed:
                servers.pop(name, None)
                continue
            raw = change.raw or base.raws.get(name)
            if raw is None:  # passed by a program
                server = base.config.servers[name]
                servers[name] = msgspec.structs.replace(
                    server, disabled=bool(change.disabled), disabled_since=change.at
                )
                continue
            if change.disabled is not None:
                rest = {key: value for key, value in raw.items() if key not in {"enabled", "disabled"}}
                raw = {**rest, "disabled": change.disabled}
            try:  # entries from the API were checked without these files, and name none
                server = parse_server(name, raw, environ=environ, files=base.files)
            except ConfigError as exc:
                problems += exc.problems
                continue
            if change.disabled is not None:
                server = msgspec.structs.replace(server, disabled_since=change.at)
            servers[name] = server
        if problems:
            raise ConfigError(problems)
        return msgspec.structs.replace(base.config, servers=servers)

    def _with(self, name: str, change: Change) -> Overlay:
        return Overlay({**self.changes, name: change})

    def _without(self, names: set[str]) -> Overlay:
        return Overlay({name: change for name, change in self.changes.items() if name not in names})


def read_overlay(data: bytes) -> Overlay:
    """Decode a saved overlay. Raises ValueError if it is invalid."""
    try:
        overlay = msgspec.json.decode(data, type=Overlay)
    except jsonrpc.UNDECODABLE as exc:
        raise ValueError(str(exc)) from None
    if overlay.format != Overlay().format:
        text = f"format {overlay.format} is unknown"
        raise ValueError(text)
    return overlay
