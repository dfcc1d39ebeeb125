"""`mcp-gateway connect`: relay stdio to the shared gateway of a config (`gateway.relay`)."""

from __future__ import annotations

from gateway.calls import NAME_LENGTHS, SEPARATORS
from gateway.cli.flags import Command, Flag, Values
from gateway.cli.options import CONFIG, FILE, STATE, config_path
from gateway.relay.main import DEFAULT_LINGER, run
from gateway.version import VERSION


def seconds(text: str) -> float:
    """Parse a number of seconds."""
    if not text.replace(".", "", 1).isdigit():
        message = f"{text!r} is not a number of seconds; give one like 60"
        raise ValueError(message)
    return float(text)


def connect(values: Values) -> int:
    """Relay until EOF on stdin; return 1 if there is no gateway."""
    length = values.max_name_length
    return run(
        str(config_path(values)),
        VERSION,
        view=values.view,
        linger=values.linger,
        separator=values.separator,
        max_name_length=None if length is None else int(length),
        state=None if values.state_dir is None else str(values.state_dir),
    )


COMMANDS = (
    Command(
        "connect",
        "connect a client on stdio to the shared gateway of a config, and start that gateway if necessary",
        connect,
        (
            FILE,
            CONFIG,
            Flag("--view", "serve the client only this view of the config", "NAME"),
            Flag(
                "--linger",
                "seconds that the gateway keeps running without a client (default 60)",
                "S",
                DEFAULT_LINGER,
                seconds,
            ),
            Flag("--separator", "separator of server and tool in names (default: the config's)", choices=SEPARATORS),
            Flag(
                "--max-name-length",
                "maximum length of names (default: the config's)",
                choices=tuple(map(str, NAME_LENGTHS)),
            ),
            STATE,
        ),
    ),
)
