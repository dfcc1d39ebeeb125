"""The version of this package: a module of its own, so that what reports it does not import what embeds it."""

from typing import Final

VERSION: Final = "0.1.0"
