"""The command line that clients and services get: absolute, and never in a cache."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path

import pytest

from gateway.cli import program
from gateway.cli.output import CommandError


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """An environment of `uvx`, in a cache that has no tag yet."""
    prefix = tmp_path / "cache" / "archive-v0" / "x"
    prefix.mkdir(parents=True)
    (prefix / program.CACHE_TAG).touch()  # as uv and virtualenv mark every environment
    monkeypatch.setattr(sys, "prefix", str(prefix))
    return prefix


def test_the_command_is_absolute(environment):
    assert Path(program.program_words()[0]).is_absolute()


@pytest.mark.parametrize(
    ("origin", "source"),
    [
        (None, "trio-mcp-gateway"),
        ({"url": "file:///home/ada/my%20clone", "dir_info": {}}, "'/home/ada/my clone'"),
        ({"url": "https://example.com/g.git", "vcs_info": {"vcs": "git"}}, "git+https://example.com/g.git"),
    ],
)
def test_a_cached_program_is_not_written(environment, monkeypatch, origin, source):
    (environment.parent.parent / program.CACHE_TAG).touch()
    found = type("Found", (), {"read_text": lambda _self, _name: None if origin is None else json.dumps(origin)})
    monkeypatch.setattr(program, "distribution", lambda _name: found())
    with pytest.raises(CommandError, match="may be cleaned") as refused:
        program.program_words()
    assert refused.value.hint.startswith(f"uv tool install {source};")


def test_an_unknown_origin_is_the_packages_name(environment, monkeypatch):
    (environment.parent.parent / program.CACHE_TAG).touch()

    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(program, "distribution", absent)
    with pytest.raises(CommandError) as refused:
        program.program_words()
    assert "uv tool install trio-mcp-gateway" in refused.value.hint
