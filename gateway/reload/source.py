"""Where the config comes from: a file, and what the management API has changed over it, kept in the state directory.

Everything in here blocks; whoever runs a loop calls it in a thread.
"""

from __future__ import annotations

import logging
import stat
from typing import TYPE_CHECKING, Any, cast

import msgspec

from gateway.config import Config, parse_config
from gateway.config.parse import files_of, read_file
from gateway.config.text import load_valid
from gateway.errors import ConfigError
from gateway.reload.overlay import Base, Overlay, read_overlay
from gateway.reload.watch import mark_of
from gateway.store import read_plain

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from gateway.reload.watch import Mark
    from gateway.store import Store

log = logging.getLogger("gateway.reload")


class ConfigSource:
    """A config file, or a config that a program gives as it is (then `path` is None and `given` is not).

    `name` stands in place of `gateway.name`; `store` is where changes are kept, None keeps none beyond this run.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        environ: Mapping[str, str],
        name: str | None = None,
        store: Store | None = None,
        given: Config | None = None,
    ) -> None:
        self.path = path
        self.environ = environ
        self.base = Base(Config({}) if given is None else given)
        self.overlay = Overlay()
        self.mark: Mark = ()
        """What the file was like when it was read last; see `watch`."""
        self._files = None if path is None else files_of(path, environ)
        self._pipe: tuple[int, int] | None = None
        """Which pipe the config was read from, which can be done only once."""
        self._name = name
        self._store = store

    def open(self) -> Config:
        """Read for the first time, with what was changed over the API.

        Raises:
            ConfigError: the file is not valid.
        """
        self.base = self.read()
        return self.compose()

    def compose(self) -> Config:
        """The base with what was changed over the API; what no longer fits is left out and logged."""
        overlay = Overlay()
        if self._store is not None and self.path is not None:
            path = self._store.overlay_path(self.path)
            try:
                overlay = read_overlay(read_plain(path))
            except FileNotFoundError:
                pass
            except (OSError, ValueError) as exc:
                log.warning(
                    "what was changed over the API cannot be read and is left out: %s: %s",
                    path,
                    exc,
                    extra={"event": "api_changes_dropped"},
                )
        self.overlay, void = overlay.without_void(self.base)
        self.log_discarded(void)
        try:
            return self.overlay.compose(self.base, self.environ)
        except ConfigError as exc:
            log.error(
                "what was changed over the API is left out, for it is not valid any more: %s",
                exc,
                extra={"event": "api_changes_dropped", "code": exc.code},
            )
            self.overlay = Overlay()
            return self.base.config

    def read(self) -> Base:
        """What the file says now. Raises ConfigError."""
        if self.path is None:
            return self.base
        if self._pipe is not None and self._pipe == _pipe_at(self.path):
            log.warning("config %s is a pipe, which was read at the start; restart the gateway to read it", self.path)
            return self.base
        self.mark = mark_of(self.path)
        self._pipe = _pipe_at(self.path)
        data = read_file(self.path)
        if self._files is not None:
            self._files.forget()
        config = parse_config(data, environ=self.environ, source=str(self.path), files=self._files)
        if self._name is not None:
            config = msgspec.structs.replace(config, gateway=msgspec.structs.replace(config.gateway, name=self._name))
        return Base(config, raw_servers(data, str(self.path)), self._files)

    @property
    def keeps(self) -> bool:
        """Whether changes survive a restart."""
        return self._store is not None and self.path is not None

    def save_overlay(self, overlay: Overlay) -> None:
        """Have the changes survive a restart. Raises OSError."""
        if self._store is not None and self.path is not None:
            self._store.write(self._store.overlay_path(self.path), msgspec.json.encode(overlay))

    def log_discarded(self, names: list[str]) -> None:
        """Log which changes have been overtaken by the file."""
        for name in names:
            log.warning(
                "server %r: the file says something else now, so what was changed over the API is void",
                name,
                extra={"event": "api_changes_dropped", "backend": name},
            )


def raw_servers(data: bytes, source: str = "") -> dict[str, dict[str, Any]]:
    """The servers of a valid config as its text has them; the name of the `source` says in which format."""
    root: dict[str, Any] = load_valid(data, source)
    return cast("dict[str, dict[str, Any]]", root.get("mcpServers", root.get("servers")))


def _pipe_at(path: Path) -> tuple[int, int] | None:
    """Which pipe stands at a path; None if none does."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISFIFO(found.st_mode) else None
