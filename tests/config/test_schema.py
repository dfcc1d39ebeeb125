"""The JSON Schema accepts and rejects the same configs as the gateway."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from gateway.cli import main
from gateway.config import GatewaySettings, ServerConfig, config_reference, parse_config
from gateway.config.access import AccessSettings
from gateway.config.fields import specs_of, structs_within
from gateway.config.schema import config_schema
from gateway.config.views import ViewConfig
from gateway.errors import ConfigError

EXAMPLES = Path(__file__).parent.parent / "examples"
SCHEMA = config_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def takes(config):
    """Whether the gateway takes it."""
    try:
        parse_config(config, environ={"N": "3", "HOME": "/h"}, files=lambda _: "A=1")
    except ConfigError:
        return False
    return True


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.name)
def test_the_examples_are_valid(path):
    VALIDATOR.validate(json.loads(path.read_text(encoding="utf-8")))


def test_every_field_is_in_it_with_its_description():
    described = {
        (name, key): member.get("description")
        for name, one in SCHEMA["$defs"].items()
        for key, member in one["properties"].items()
    }
    docs = set(described.values())
    for row in config_reference():
        assert row.doc in docs, row
    assert not {"name", "masked"} & SCHEMA["$defs"]["ServerConfig"]["properties"].keys()


def test_every_alias_is_in_it():
    structs = {
        struct
        for root in (ServerConfig, GatewaySettings, AccessSettings, ViewConfig)
        for struct in structs_within(root)
    }
    aliases = {(struct, spec) for struct in structs for spec in specs_of(struct) if specs_of(struct)[spec].aliases}
    assert len(aliases) > 8
    for struct, name in aliases:
        properties = SCHEMA["$defs"][struct.__name__]["properties"]
        for alias in specs_of(struct)[name].aliases:
            assert properties[alias] == {**properties[name], "description": f"The same as {name!r}."}


def one(**fields):
    return {"mcpServers": {"s": {"command": "x", **fields}}}


KEY = {"name": "a", "hash": "sha256:" + "0" * 64}
GOOD = [
    {"$schema": "./schema.json", "mcpServers": {}},
    {"servers": {"s": {"url": "http://h/", "type": "http", "timeout": 3, "enabled": True}}},
    one(
        call_timeout="${N}",
        restart=False,
        shutdown_grace=1,
        rate_limit=5,
        circuit_breaker=True,
        crash_limit=False,
        era="${E:-auto}",
    ),
    one(restart=True, shutdown_grace=[1, 1, "${N}"], circuit_breaker=False, envFile=".env", cwd=None),
    one(restart={"jitter": 0}, max_concurrency=None, tools=["a*"], env={"A": 1, "B": True}, args=[1]),
    one(includeTools=["a"], tool_timeouts={"a": 3}, idle_timeout=2, unknown=1),
    one(tools={"overrides": {"a": {"inputSchema": {"type": "object"}}}}),
    {"servers": {"s": {"url": "http://h/", "oauth": {"clientId": "x", "callbackPort": 80, "scope": "a b"}}}},
    {"servers": {"s": {"url": "http://h/", "oauth": False, "headers": {"A": "x"}}}},
    {"mcpServers": {}, "gateway": {"separator": "__", "page_size": 3}, "access": {"keys": [{**KEY, "rate_limit": 1}]}},
    one(tools={"overrides": {"a": {"rename": "b", "parameters": {"type": "object"}}, "c": {"enabled": "${E:-false}"}}}),
    {"mcpServers": {}, "gateway": {"audit": True}},
    {"mcpServers": {}, "gateway": {"audit": {"file": "a.jsonl", "arguments": "${E:-false}"}}},
    {"mcpServers": {}, "gateway": None, "views": {"v": {"tools": ["a"], "maxNameLength": 64}}},
]
BAD = [
    {},
    {"mcpServers": {}, "servers": {}},
    {"mcpServers": []},
    {"mcpServers": {"a b": {"command": "x"}}},
    {"mcpServers": {"s": {}}},
    {"mcpServers": {"s": {"command": "x", "url": "http://h/"}}},
    one(call_timeout=0),
    one(call_timeout="3"),
    one(args="x"),
    one(era="old"),
    one(transport="pigeon"),
    one(restart=3),
    one(shutdown_grace=[1, 1]),
    one(max_concurrency=1.5),
    one(namespace="a b"),
    {"mcpServers": {}, "gateway": {"separator": "/"}},
    {"mcpServers": {}, "access": {"keys": [{"name": "a"}]}},
    {"mcpServers": {}, "access": {"kees": []}},
]


@pytest.mark.parametrize("config", GOOD, ids=json.dumps)
def test_accepted_configs_fit_the_schema(config):
    assert takes(config)
    VALIDATOR.validate(config)


@pytest.mark.parametrize("config", BAD, ids=json.dumps)
def test_rejected_configs_violate_the_schema(config):
    assert not takes(config)
    assert not VALIDATOR.is_valid(config)


def test_the_command_prints_it(capsys):
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(SCHEMA))
