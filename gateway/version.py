"""The package's version: a separate module, so that reporting it does not import the embedding API."""

VERSION = "0.2.0"
