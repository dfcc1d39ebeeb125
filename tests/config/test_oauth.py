"""The field `oauth`: every accepted form, and the exact message for each rejected one."""

# ruff: file-ignore[line-too-long, missing-f-string-syntax]  (one row of a table, one line; variables of a config)

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.config import OAuthSettings, ServerConfig, config_reference, parse_config, parse_server
from gateway.config.oauth import is_same_issuer, normal_issuer
from gateway.config.shown import secrets_of, shown_config
from gateway.errors import ConfigError

SECRET = "s3cr3t-value"
URL = "https://mcp.example.com/mcp"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("https://a.example", "https://a.example/"),
        ("https://a.example:8443", "https://a.example:8443/"),
        ("HTTPS://A.Example", "https://a.example"),
        ("https://a.example:443", "https://a.example"),
        ("https://a.example:", "https://a.example/"),
        ("http://127.0.0.1:80/", "http://127.0.0.1"),
        ("https://a.example/Tenant", "HTTPS://A.EXAMPLE:443/Tenant"),
        ("https://[2001:DB8::1]", "https://[2001:db8::1]:443/"),
        ("urn:x", "urn:x"),
    ],
)
def test_issuers_that_are_equivalent(first: str, second: str) -> None:
    assert is_same_issuer(first, second)
    assert is_same_issuer(second, first)
    assert normal_issuer(first) == normal_issuer(normal_issuer(first)) == normal_issuer(second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("https://a.example", "http://a.example"),
        ("https://a.example", "https://b.example"),
        ("https://a.example", "https://a.example."),
        ("https://a.example:80", "https://a.example"),
        ("https://a.example:8443", "https://a.example"),
        ("https://a.example:0443", "https://a.example"),
        ("https://a.example/tenant", "https://a.example/tenant/"),
        ("https://a.example/tenant", "https://a.example/Tenant"),
        ("https://a.example/%7Etenant", "https://a.example/~tenant"),
        ("https://a.example//", "https://a.example"),
        ("https://a.example/.", "https://a.example"),
        ("https://a.example?x", "https://a.example/?x"),
        ("https://a.example/?", "https://a.example/"),
        ("https://a.example#", "https://a.example"),
        ("https://a.example@b.example", "https://b.example"),
        ("https://u@a.example", "https://a.example"),
        ("https://a.example\n", "https://a.example"),
        (" https://a.example", "https://a.example"),
        ("https://a.example\\", "https://a.example"),
        ("URN:x", "urn:x"),
        ("A.example", "a.example"),
        (None, "https://a.example"),
        (["https://a.example"], "https://a.example"),
        ("", "https://a.example"),
    ],
)
def test_issuers_that_are_not(first: object, second: str) -> None:
    assert not is_same_issuer(first, second)


def read(oauth: object, **fields: Any) -> tuple[ServerConfig, list[str]]:
    raw = {"url": URL, "oauth": oauth} | fields
    config = parse_config({"mcpServers": {"s": raw}}, environ={"SECRET": SECRET, "PORT": "8765"})
    server, warnings = config.servers["s"], config.warnings
    assert not any(SECRET in line for line in warnings)
    assert SECRET not in repr(server.oauth)
    return server, [line.removeprefix("server 's': field ") for line in warnings]


@pytest.mark.parametrize(
    ("written", "read_as"),
    [
        (True, OAuthSettings()),
        ({}, OAuthSettings()),
        (None, OAuthSettings()),
        (False, None),
        ({"scopes": ["a", "b", "a"]}, OAuthSettings(scopes=("a", "b"))),
        ({"scopes": "a  b"}, OAuthSettings(scopes=("a", "b"))),
        ({"scope": "a"}, OAuthSettings(scopes=("a",))),
        ({"scopes": None, "client_id": None}, OAuthSettings()),
        (
            {"clientId": "me", "clientSecret": "${SECRET}", "callbackPort": "${PORT}"},
            OAuthSettings(client_id="me", client_secret=SECRET, redirect_port=8765),
        ),
        ({"issuer": "http://127.0.0.1:9"}, OAuthSettings(issuer="http://127.0.0.1:9")),
        ({"client_metadata_url": "https://h/c.json"}, OAuthSettings(client_metadata_url="https://h/c.json")),
        ({"browser": "elicit", "login_timeout": 60}, OAuthSettings(browser="elicit", login_timeout=60.0)),
    ],
)
def test_every_spelling(written: object, read_as: OAuthSettings | None) -> None:
    server, warnings = read(written)
    assert server.oauth == read_as
    assert warnings == []
    assert server.uses_oauth is (read_as is not None)


@pytest.mark.parametrize(
    ("written", "line"),
    [
        (5, "'oauth' must be an object, true or false, not a number"),
        ({"browser": "tab"}, "'oauth.browser' must be one of 'auto', 'open', 'print', 'elicit', not 'tab'"),
        ({"grant": "password"}, "'oauth.grant' must be one of 'authorization_code', 'client_credentials', not 'password'"),
        ({"redirect_port": 0}, "'oauth.redirect_port' must be a port, 1 to 65535"),
        ({"redirect_port": 70_000}, "'oauth.redirect_port' must be a port, 1 to 65535, and at most 65535"),
        ({"scopes": 5}, "'oauth.scopes' must be a list of strings, not a number"),
        ({"scopes": ["a b"]}, "'oauth.scopes' must contain scopes, each in plain ASCII without spaces and quotes"),
        ({"scopes": 'a"b'}, "'oauth.scopes' must contain scopes, each in plain ASCII without spaces and quotes"),
        ({"client_id": " "}, "'oauth.client_id' must not be empty"),
        ({"client_secret": SECRET}, "'oauth.client_secret' needs 'client_id'"),
        ({"issuer": "http://example.com"}, "'oauth.issuer' must be an https address, or an http one on this machine"),
        ({"issuer": "https://u:p@example.com"}, "'oauth.issuer' must be an https address, or an http one on this machine"),
        ({"issuer": "https://["}, "'oauth.issuer' must be an https address, or an http one on this machine"),
        ({"client_metadata_url": "https://example.com/"}, "'oauth.client_metadata_url' must be an https address with a path"),
        ({"client_metadata_url": "http://h/c.json"}, "'oauth.client_metadata_url' must be an https address with a path"),
        (
            {"grant": "client_credentials", "client_id": "me"},
            "'oauth.grant' is 'client_credentials', which needs 'client_id' and either 'client_secret' or 'private_key'",
        ),
        (
            {"grant": "client_credentials", "client_id": "me", "client_secret": SECRET, "private_key": SECRET},
            "'oauth.grant' is 'client_credentials', which needs 'client_id' and either 'client_secret' or 'private_key'",
        ),
        ({"client_id": "me", "private_key": SECRET}, "'oauth.private_key' is only for the grant 'client_credentials'"),
        ({"grant": "client_credentials", "client_id": "me", "private_key": " "}, "'oauth.private_key' must not be empty"),
    ],
)  # fmt: skip
def test_invalid_settings_are_refused(written: object, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(written)
    assert caught.value.problems == (f"server 's': field {line}",)


def test_suspicious_settings_are_reported() -> None:
    credentials = {"grant": "client_credentials", "client_id": "me", "client_secret": "${SECRET}"}
    server, warnings = read(credentials)
    assert server.oauth is not None
    assert server.oauth.client_secret == SECRET
    assert warnings == [
        "'oauth.issuer' is missing: without it 'url' decides which authorization server gets the secret"
    ]
    assert read({"client_idd": "x"})[1] == ["'oauth.client_idd' is unknown and ignored; did you mean 'client_id'?"]


@pytest.mark.parametrize(
    "fields",
    [{"headers": {"Authorization": "Bearer x"}}, {"headers": {"aUTHORIZATION": "x"}}, {"url": "https://u:p@h/mcp"}],
)
def test_given_credentials_win(fields: dict[str, Any]) -> None:
    server, warnings = read({"client_id": "me"}, **fields)
    assert not server.uses_oauth
    assert "'oauth' is ignored: 'headers' or 'url' already has credentials" in warnings
    quiet = parse_config({"mcpServers": {"s": {"url": URL} | fields}}, environ={})
    assert not quiet.servers["s"].uses_oauth
    assert not any("oauth" in line for line in quiet.warnings)


def test_a_program_has_no_oauth() -> None:
    config = parse_config({"mcpServers": {"s": {"command": "run", "oauth": {}}}}, environ={})
    assert not config.servers["s"].uses_oauth
    assert config.warnings == ("server 's': field 'oauth' is ignored: it applies only to servers with 'url'",)


def test_a_disabled_server_may_lack_its_address() -> None:
    server = parse_server("s", {"url": "${NOPE}", "disabled": True, "oauth": {}}, environ={})
    assert server.disabled


def test_the_reference_has_it() -> None:
    fields = {row.field for row in config_reference() if row.section == "mcpServers.NAME.oauth"}
    assert fields == set(OAuthSettings.__struct_fields__)


@pytest.mark.parametrize("name", ["client_secret", "private_key"])
def test_client_credentials_never_appear_in_text(name: str) -> None:
    plain = "plain-text-secret"  # not from a variable, whose values are masked anyway
    server, _ = read({"grant": "client_credentials", "client_id": "me", name: plain})
    assert plain not in json.dumps(shown_config(server)) + repr(server)
    assert plain in secrets_of(server)
