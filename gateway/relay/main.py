"""Fast command line of `connect`; anything not plainly valid is left to `gateway.cli`."""

from __future__ import annotations

import os

from gateway.relay.copying import Relay
from gateway.relay.greetings import Greetings
from gateway.relay.places import Place, RelayError, check_lineage, warn
from gateway.relay.starting import open_gateway

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

OPTIONS = ("--config", "--view", "--linger", "--separator", "--max-name-length", "--state-dir")
DEFAULT_LINGER = 60.0


def main(words: Sequence[str], version: str) -> int | None:
    """Run `connect` with these arguments; return None if they need `gateway.cli`."""
    given: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        name, sign, value = word.partition("=")
        if not word.startswith("-"):
            name, value = "--config", word
        elif name not in OPTIONS:
            return None
        elif not sign:
            value = next(rest, "-")
        if name in given or not value or value.startswith("-"):
            return None
        given[name] = value
    linger = given.get("--linger", str(DEFAULT_LINGER))
    length = given.get("--max-name-length")
    if "--config" not in given or not linger.replace(".", "", 1).isdigit() or length not in {None, "48", "64"}:
        return None
    if given.get("--separator") not in {None, "_", "__"}:
        return None
    return run(
        given["--config"],
        version,
        view=given.get("--view"),
        linger=float(linger),
        separator=given.get("--separator"),
        max_name_length=None if length is None else int(length),
        state=given.get("--state-dir"),
    )


def run(
    config: str,
    version: str,
    *,
    view: str | None = None,
    linger: float = DEFAULT_LINGER,
    separator: str | None = None,
    max_name_length: int | None = None,
    state: str | None = None,
) -> int:
    """Relay stdio to the shared gateway of this config; return the exit code.

    Args:
        config: path of the config file.
        version: the version of this package; gateways of other versions are not used.
        view: the view that the client sees, None for everything.
        linger: seconds that the gateway stays after its last client.
        separator: the separator in names, None for the config's.
        max_name_length: the maximum length of names, None for the config's.
        state: the state directory, None for the default one.
    """
    try:
        place = Place(config, os.environ, version, state)
        check_lineage(place, os.environ)
        hello = {"view": view, "linger": linger, "separator": separator, "max_name_length": max_name_length}
        Relay(
            lambda last, meanwhile: open_gateway(place, {**hello, "last_asked": last}, os.environ, meanwhile),
            Greetings(place, hello),
        ).run()
    except RelayError as exc:
        warn(f"error: {exc}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
