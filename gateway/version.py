"""The version of this package: a module of its own, so that what reports it does not import what embeds it."""

VERSION = "0.2.0"
