"""What the management API has changed, over what the file says: servers put, removed, turned on and off.

Each change remembers what the file said of that server at the time. Once the file says something else, the change is
void: whoever edits the file has the last word. Pure but for `ServerConfig`'s own reader.
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
"""In place of the moment of a change that a version kept which did not note it."""


class Change(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is to be made of one server."""

    over: str | None
    """The digest of what the file said of it; null if it said nothing."""
    raw: dict[str, Any] | None = None
    """The server as a config file would have it; null leaves what the file says."""
    disabled: bool | None = None
    removed: bool = False
    at: str = UNDATED
    """When it was made, in ISO 8601."""


class Base(msgspec.Struct, frozen=True):
    """What the changes lie over: a config, and the servers as its file has them, if there is a file."""

    config: Config
    raws: dict[str, dict[str, Any]] = {}
    files: FileReader | None = None
    """Reads the files that the config names (`gateway.config.files`)."""

    def digest(self, name: str) -> str | None:
        """What stands for everything that is said of a server; None if nothing is."""
        if name in self.raws:
            return hashlib.sha256(msgspec.json.encode(self.raws[name], order="sorted")).hexdigest()[:32]
        return "given" if name in self.config.servers else None


class Overlay(msgspec.Struct, frozen=True):
    """All changes, by server."""

    changes: dict[str, Change] = {}
    format: int = 1

    def put(self, base: Base, name: str, raw: Raw) -> Overlay:
        """Another overlay, in which this server is as `raw` has it."""
        return self._with(name, Change(base.digest(name), raw))

    def remove(self, base: Base, name: str) -> Overlay:
        """Another one, without this server."""
        digest = base.digest(name)
        return self._without({name}) if digest is None else self._with(name, Change(digest, removed=True))

    def switch(self, base: Base, name: str, disabled: bool, at: str = UNDATED) -> Overlay:
        """Another one, in which this server is off or on from `at`; without a change where the file says the same."""
        present = self.changes.get(name)
        raw = None if present is None else present.raw
        said = base.config.servers.get(name)
        if raw is None and said is not None and said.disabled == disabled:
            return self._without({name})
        return self._with(name, Change(base.digest(name), raw, disabled, at=at))

    @property
    def removed(self) -> list[str]:
        """The servers of the base that are removed."""
        return [name for name, change in self.changes.items() if change.removed]

    def without_void(self, base: Base) -> tuple[Overlay, list[str]]:
        """Drop the changes of servers of which the file says something else now; returns their names too."""
        void = [name for name, change in self.changes.items() if change.over != base.digest(name)]
        return self._without(set(void)), void

    def compose(self, base: Base, environ: Mapping[str, str]) -> Config:
        """The config with all changes in it.

        Raises:
            ConfigError: a server that was put is not valid, e.g. because a variable is not set any more.
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
            if raw is None:  # given as it is, by a program
                server = base.config.servers[name]
                servers[name] = msgspec.structs.replace(
                    server, disabled=bool(change.disabled), disabled_since=change.at
                )
                continue
            if change.disabled is not None:
                rest = {key: value for key, value in raw.items() if key not in {"enabled", "disabled"}}
                raw = {**rest, "disabled": change.disabled}
            try:  # what came over the API was checked without these files, and names none
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
    """An overlay as it was kept. Raises ValueError if it is none."""
    try:
        overlay = msgspec.json.decode(data, type=Overlay)
    except jsonrpc.UNDECODABLE as exc:
        raise ValueError(str(exc)) from None
    if overlay.format != Overlay().format:
        text = f"format {overlay.format} is not known"
        raise ValueError(text)
    return overlay
