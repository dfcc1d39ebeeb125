"""Config formats: JSON, JSON with comments and TOML, chosen by file extension."""

from __future__ import annotations

import json
import os

import pytest

from gateway.config import load_config
from gateway.config.text import load_valid, plain_json
from gateway.errors import ConfigError
from gateway.reload.source import ConfigSource

JSONC = """{ // all
  "mcpServers": {
    "a": {"command": "x//y", "args": ["/* no */", "é",], /* here */ "env": {"K": "${K:-v}"}},
  },
  "gateway": {"drain_grace": 7},
}"""
TOML = """# all
[mcpServers.a]
command = "x//y"
args = ["/* no */", "é"]
env = { K = "${K:-v}" }
[gateway]
drain_grace = 7
"""


@pytest.mark.parametrize(("name", "text"), [("c.jsonc", JSONC), ("c.toml", TOML), ("c.toml", "\ufeff" + TOML)])
def test_all_formats_load_equally(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    for config in (load_config(path, environ={}), ConfigSource(path, environ={}).open()):
        server = config.servers["a"]
        assert (server.command, server.args, server.env) == ("x//y", ("/* no */", "é"), {"K": "v"})
        assert config.gateway.drain_grace == 7
    assert load_valid(path.read_bytes(), str(path))["mcpServers"]["a"]["env"] == {"K": "${K:-v}"}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("c.json", '{"mcpServers": {}} // no', "comments"),
        ("c.jsonc", '{"mcpServers": {"a": }}', "line 1, column 22"),
        ("c.toml", "[mcpServers\n", "is not valid TOML"),
        ("c.toml", "[mcpServers.a]\ncommand = 1979-05-27\n", "'command'"),
        ("c.toml", "mcpServers = 1\n", "must be an object"),
        ("c.toml", " \n", "is empty"),
    ],
)
def test_format_errors_include_their_location(tmp_path, name, text, said):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        load_config(path, environ=os.environ)


def test_places_stay_where_they_are():
    plain = plain_json(JSONC)
    assert len(plain) == len(JSONC)
    assert [line.find('"') for line in plain.split("\n")] == [line.find('"') for line in JSONC.split("\n")]
    assert json.loads(plain)["mcpServers"]["a"]["args"][0] == "/* no */"
