"""The source of the config: a file, and saved changes over the management API.

Everything here blocks; call it in a thread from a loop.
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
    """A config file, or a program's config (`path` is None and `given` set).

    `name` replaces `gateway.name`; `store` saves the changes; without one they are lost at exit.
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
        """The mark of the file when it was last read; see `watch`."""
        self._files = None if path is None else files_of(path, environ)
        self._pipe: tuple[int, int] | None = None
        """The pipe that the config was read from; it can be read only once."""
        self._name = name
        self._store = store
        self._is_unused = False
        """Whether the file of the saved changes was not used; its content is kept."""

    def open(self) -> Config:
        """Read the config for the first time, with the changes over the API.

        Raises:
            ConfigError: the file is invalid.
        """
        self.base = self.read()
        return self.compose()

    def compose(self) -> Config:
        """Apply the API's changes to the base; discard and log obsolete ones."""
        overlay = Overlay()
        if self._store is not None and self.path is not None:
            path = self._store.overlay_path(self.path)
            try:
                overlay = read_overlay(read_plain(path))
            except FileNotFoundError:
                pass
            except (OSError, ValueError) as exc:
                self._is_unused = True
                log.warning(
                    "ignoring unreadable changes over the API: %s: %s",
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
                "ignoring changes over the API that are no longer valid: %s",
                exc,
                extra={"event": "api_changes_dropped", "code": exc.code},
            )
            self.overlay, self._is_unused = Overlay(), True
            return self.base.config

    def read(self) -> Base:
        """Read the file's present config. Raises ConfigError."""
        if self.path is None:
            return self.base
        if self._pipe is not None and self._pipe == _pipe_at(self.path):
            log.warning(
                "config %s is a pipe, which was read at the start; restart the gateway to read it again",
                self.path,
            )
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
        """Whether changes are saved for the next run."""
        return self._store is not None and self.path is not None

    def save_overlay(self, overlay: Overlay) -> None:
        """Save the changes for the next run. Raises OSError."""
        if self._store is not None and self.path is not None:
            path = self._store.overlay_path(self.path)
            if self._is_unused:
                self._store.set_aside(path)
                self._is_unused = False
            self._store.write(path, msgspec.json.encode(overlay))

    def log_discarded(self, names: list[str]) -> None:
        """Log the changes that the file has superseded."""
        for name in names:
            log.warning(
                "server %r: the config file has changed, discarding the change over the API",
                name,
                extra={"event": "api_changes_dropped", "backend": name},
            )


def raw_servers(data: bytes, source: str = "") -> dict[str, dict[str, Any]]:
    """Return the servers of a valid config text; the name `source` determines its format."""
    root: dict[str, Any] = load_valid(data, source)
    return cast("dict[str, dict[str, Any]]", root.get("mcpServers", root.get("servers")))


def _pipe_at(path: Path) -> tuple[int, int] | None:
    """Return the identity of a pipe at a path; None for others."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISFIFO(found.st_mode) else None
