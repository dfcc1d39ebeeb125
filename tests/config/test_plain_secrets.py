"""Secrets in plain text are found, and what merely looks like one is not."""

from __future__ import annotations

import json

import pytest

from gateway.config import parse_config, parse_server
from gateway.config.plain_secrets import plain_secrets, plain_secrets_of_config

GITHUB = "ghp_" + "a1B2" * 9
ENVIRON = {"TOKEN": "from-the-environment", "HOME": "/home/me"}


def found(**entry: object) -> list[str]:
    entry = entry if "url" in entry else {"command": "x", **entry}
    return plain_secrets(parse_server("s", entry, environ=ENVIRON))


@pytest.mark.parametrize(
    ("entry", "places"),
    [
        ({"env": {"API_KEY": "correct-horse", "LANG": "C"}}, ["env.API_KEY"]),
        ({"env": {"GITHUB_PAT": GITHUB}}, ["env.GITHUB_PAT"]),
        ({"env": {"DATABASE": "postgres://me:hunter22@db/x"}}, ["env.DATABASE"]),
        ({"url": "https://h/mcp", "headers": {"Authorization": "Bearer correct-horse"}}, ["headers.Authorization"]),
        ({"url": "https://h/mcp", "headers": {"X-Api-Key": "correct-horse"}}, ["headers.X-Api-Key"]),
        ({"url": "https://me:hunter22@h/mcp"}, ["url"]),
        ({"url": "https://h/mcp?apiKey=correct-horse&x=1"}, ["url"]),
        ({"args": ["--api-key", "correct-horse"]}, ["args[1]"]),
        ({"args": ["--token=correct-horse", "x"]}, ["args[0]"]),
        ({"args": ["run", "-e", "SECRET=correct-horse", "image"]}, ["args[2]"]),
        ({"args": ["-y", "server", "postgresql://me:hunter22@db/x"]}, ["args[2]"]),
        ({"args": [GITHUB]}, ["args[0]"]),
        ({"url": "https://h/", "oauth": {"client_id": "c", "client_secret": "horse-battery"}}, ["oauth.client_secret"]),
    ],
    ids=str,
)  # fmt: skip
def test_a_secret_in_plain_text_is_found(entry: dict[str, object], places: list[str]) -> None:
    assert found(**entry) == places


@pytest.mark.parametrize(
    "entry",
    [
        {"env": {"API_KEY": "${TOKEN}", "OTHER_TOKEN": "x-${TOKEN}"}},
        {"env": {"API_KEY": "${UNSET:-}", "PASSWORD": ""}},
        {"env": {"API_KEY": "${UNSET}"}, "disabled": True},
        {"env": {"MAX_TOKENS": "100000", "AUTHOR": "Jane-Doe", "TOKEN_FILE": "/run/secret", "TOKEN_URL": "https://h/x"}},
        {"env": {"KEYBOARD": "german-layout", "SSH_AUTH_SOCK": "~/agent.sock", "AUTH": "disabled"}},
        {"url": "https://h/mcp?key=${TOKEN}", "headers": {"Authorization": "Bearer ${TOKEN}", "Accept": "text/html"}},
        {"url": "https://me@h/mcp?page=correct-horse"},
        {"args": ["--api-key", "${TOKEN}", "--token=${TOKEN}", "-y", "token-server", "--token-file", "/run/token"]},
        {"args": ["--password", "--verbose", "postgresql://me:${TOKEN}@db/x"]},
    ],
    ids=str,
)  # fmt: skip
def test_other_values_are_not_reported(entry: dict[str, object]) -> None:
    assert found(**entry) == []


@pytest.mark.parametrize(("secret", "places"), [("correct-horse", 1), ("${TOKEN}", 0)])
def test_the_secret_of_an_introspection_is_found(secret: str, places: int) -> None:
    introspection = {"url": "https://a.example/introspect", "client_id": "c", "client_secret": secret}
    oauth = {"issuer": "https://a.example", "resource": "https://g.example/mcp", "introspection": introspection}
    config = parse_config(json.dumps({"mcpServers": {}, "access": {"oauth": oauth}}).encode(), environ=ENVIRON)
    assert len(plain_secrets_of_config(config)) == places
