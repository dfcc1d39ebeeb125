"""Answers of authorization servers: harmless ones are accepted, others reported in one sentence."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.oauth_client.answers import (
    UnusableAnswer,
    describe,
    read_challenge,
    read_object,
    read_registration,
    read_resource,
    read_server,
    read_token,
)

WHERE = "the endpoint"
TOKEN = {"access_token": "t0ken", "token_type": "Bearer"}


# -- tokens ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("odd", "usable"),
    [
        ({}, {}),
        ({"token_type": None}, {}),
        ({"token_type": ""}, {}),
        ({"token_type": "bearer"}, {}),
        ({"token_type": "BEARER "}, {}),
        ({"expires_in": 3600}, {"expires_in": 3600}),
        ({"expires_in": 3599.5}, {"expires_in": 3599}),
        ({"expires_in": "3600"}, {"expires_in": 3600}),
        ({"expires_in": " 3599.9 "}, {"expires_in": 3599}),
        ({"expires_in": 0.5}, {}),
        ({"expires_in": 0}, {}),
        ({"expires_in": -1}, {}),
        ({"expires_in": "-1"}, {}),
        ({"expires_in": None}, {}),
        ({"expires_in": ""}, {}),
        ({"expires_in": "soon"}, {}),
        ({"expires_in": "nan"}, {}),
        ({"expires_in": float("nan")}, {}),
        ({"expires_in": float("inf")}, {}),
        ({"expires_in": 10**400}, {}),
        ({"expires_in": True}, {}),
        ({"expires_in": [3600]}, {}),
        ({"expires_in": {"seconds": 1}}, {}),
        ({"scope": "a b"}, {"scope": "a b"}),
        ({"scope": ["a", "b c"]}, {"scope": "a b c"}),
        ({"scope": ["a", 1, None]}, {"scope": "a"}),
        ({"scope": []}, {}),
        ({"scope": ""}, {}),
        ({"scope": None}, {}),
        ({"scope": {"a": 1}}, {}),
        ({"scope": 'a "b'}, {"scope": "a"}),
        ({"refresh_token": "r"}, {"refresh_token": "r"}),
        ({"refresh_token": None}, {}),
        ({"refresh_token": ""}, {}),
        ({"refresh_token": 5}, {}),
        ({"refresh_token": "\ud800"}, {}),
        ({"id_token": {}, "error": "", "x": [[]]}, {}),
        ({"error": None, "error_description": None}, {}),
    ],
)
def test_token_answers_that_are_accepted(odd: dict[str, Any], usable: dict[str, Any]) -> None:
    answer = {**TOKEN, **odd} if "token_type" in odd else {"access_token": "t0ken", **odd}
    assert read_token(answer, WHERE) == {**TOKEN, **usable}


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({}, "answered without 'access_token'"),
        ({"access_token": None}, "an unusable 'access_token' (null)"),
        ({"access_token": ""}, "an unusable 'access_token' (empty)"),
        ({"access_token": 5}, "an unusable 'access_token' (a number)"),
        ({"access_token": ["t"]}, "an unusable 'access_token' (a list)"),
        ({"access_token": {}}, "an unusable 'access_token' (an object)"),
        ({"access_token": True}, "an unusable 'access_token' (a boolean)"),
        ({"access_token": "s3cret x"}, "an unusable 'access_token' (a string)"),
        ({"access_token": "s3cret\r\nx: y"}, "an unusable 'access_token' (a string)"),
        ({"access_token": "s3crét"}, "an unusable 'access_token' (a string)"),
        ({**TOKEN, "token_type": "DPoP"}, "an unusable 'token_type' ('DPoP')"),
        ({**TOKEN, "token_type": "mac"}, "an unusable 'token_type' ('mac')"),
        ({**TOKEN, "token_type": 5}, "an unusable 'token_type' (a number)"),
        ({**TOKEN, "token_type": ["Bearer"]}, "an unusable 'token_type' (a list)"),
        (
            {"error": "bad_verification_code", "error_description": "It has\nexpired."},
            "the error bad_verification_code: It has expired.",
        ),
        ({"error": {"code": 400, "message": "no"}}, "the error 400: no"),
    ],
)
def test_token_answers_that_are_refused(answer: dict[str, Any], text: str) -> None:
    with pytest.raises(UnusableAnswer, match=r"^the endpoint answered with") as caught:
        read_token(answer, WHERE)
    assert text in str(caught.value)
    assert "s3cr" not in str(caught.value)


# -- registrations -----------------------------------------------------------------------------------------------------

URIS = ["http://127.0.0.1:7/callback"]


@pytest.mark.parametrize(
    ("odd", "usable"),
    [
        ({}, {}),
        ({"client_id": 12}, {"client_id": "12"}),
        ({"client_secret": "x"}, {"client_secret": "x"}),
        ({"client_secret": None}, {}),
        ({"client_secret": ""}, {}),
        ({"client_secret": 5}, {}),
        ({"client_secret": None, "token_endpoint_auth_method": "client_secret_basic"}, {}),
        ({"token_endpoint_auth_method": "client_secret_post"}, {}),
        ({"token_endpoint_auth_method": "none"}, {"token_endpoint_auth_method": "none"}),
        ({"token_endpoint_auth_method": None}, {}),
        ({"token_endpoint_auth_method": ["none"]}, {}),
        (
            {"client_secret": "x", "token_endpoint_auth_method": "client_secret_basic"},
            {"client_secret": "x", "token_endpoint_auth_method": "client_secret_basic"},
        ),
        ({"redirect_uris": None}, {}),
        ({"redirect_uris": []}, {}),
        ({"redirect_uris": URIS[0]}, {}),
        ({"redirect_uris": [None, 5, "no address", "http://[::1"]}, {}),
        ({"redirect_uris": ["http://127.0.0.1/callback"]}, {"redirect_uris": ["http://127.0.0.1/callback"]}),
        ({"redirect_uris": {"0": "x"}}, {}),
        ({"client_id_issued_at": 1.5, "client_secret_expires_at": "never"}, {}),
        ({"grant_types": None, "response_types": "code", "scope": ["a"], "contacts": {}, "client_uri": "no"}, {}),
        ({"issuer": "https://evil.example"}, {}),
    ],
)
def test_registrations_that_are_accepted(odd: dict[str, Any], usable: dict[str, Any]) -> None:
    assert read_registration({"client_id": "c", **odd}, WHERE, URIS) == {
        "client_id": "c",
        "redirect_uris": URIS,
        **usable,
    }


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({}, "answered without 'client_id'"),
        ({"client_id": None}, "an unusable 'client_id' (null)"),
        ({"client_id": " "}, "an unusable 'client_id' ("),
        ({"client_id": True}, "an unusable 'client_id' (a boolean)"),
        ({"client_id": ["c"]}, "an unusable 'client_id' (a list)"),
        ({"client_id": "a\nb"}, "an unusable 'client_id' ('a b')"),
        (
            {"error": "invalid_redirect_uri", "error_description": "not yours"},
            "the error invalid_redirect_uri: not yours",
        ),
    ],
)
def test_registrations_that_are_refused(answer: dict[str, Any], text: str) -> None:
    with pytest.raises(UnusableAnswer) as caught:
        read_registration(answer, WHERE, URIS)
    assert text in str(caught.value)


# -- metadata ----------------------------------------------------------------------------------------------------------

SERVER = {
    "issuer": "https://a.example",
    "authorization_endpoint": "https://a.example/authorize",
    "token_endpoint": "https://a.example/token",
}


@pytest.mark.parametrize(
    ("odd", "usable"),
    [
        ({}, {}),
        ({"registration_endpoint": None}, {}),
        ({"registration_endpoint": ""}, {}),
        ({"registration_endpoint": "https://a.example/r"}, {"registration_endpoint": "https://a.example/r"}),
        ({"code_challenge_methods_supported": "S256"}, {"code_challenge_methods_supported": ["S256"]}),
        ({"code_challenge_methods_supported": None}, {}),
        ({"scopes_supported": "a b"}, {"scopes_supported": ["a", "b"]}),
        ({"scopes_supported": ["a", None, 5]}, {"scopes_supported": ["a"]}),
        (
            {"response_types_supported": None, "jwks_uri": 5, "service_documentation": "no", "ui_locales_supported": 1},
            {},
        ),
        ({"client_id_metadata_document_supported": True}, {"client_id_metadata_document_supported": True}),
        (
            {"authorization_response_iss_parameter_supported": "true"},
            {"authorization_response_iss_parameter_supported": True},
        ),
        ({"authorization_response_iss_parameter_supported": "no"}, {}),
    ],
)
def test_metadata_that_are_accepted(odd: dict[str, Any], usable: dict[str, Any]) -> None:
    assert read_server({**SERVER, **odd}, WHERE, is_visited=True) == {**SERVER, **usable}


@pytest.mark.parametrize("name", SERVER)
@pytest.mark.parametrize(
    "value", [None, "", "/relative", "ftp://a.example", "https://", "https://[::1", 5, [SERVER["issuer"]]]
)
def test_metadata_that_are_refused(name: str, value: Any) -> None:
    with pytest.raises(UnusableAnswer, match=f"an unusable '{name}' \\("):
        read_server({**SERVER, name: value}, WHERE, is_visited=True)
    with pytest.raises(UnusableAnswer, match=f"answered without '{name}'"):
        read_server({key: one for key, one in SERVER.items() if key != name}, WHERE, is_visited=True)


def test_a_login_without_a_user_needs_no_page() -> None:
    bare = {name: value for name, value in SERVER.items() if name != "authorization_endpoint"}
    assert read_server(bare, WHERE, is_visited=False)["token_endpoint"] == SERVER["token_endpoint"]


@pytest.mark.parametrize(
    ("odd", "usable"),
    [
        ({}, {}),
        ({"authorization_servers": "https://a.example"}, {}),
        ({"authorization_servers": [None, "https://a.example", 5]}, {}),
        ({"scopes_supported": "a b"}, {"scopes_supported": ["a", "b"]}),
        ({"bearer_methods_supported": "header", "resource_name": 5, "jwks_uri": None}, {}),
    ],
)
def test_resource_metadata_that_are_accepted(odd: dict[str, Any], usable: dict[str, Any]) -> None:
    right = {"resource": "https://m.example/mcp", "authorization_servers": ["https://a.example"]}
    assert read_resource({**right, **odd}, WHERE) == {**right, **usable}


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"authorization_servers": ["https://a.example"]}, "without 'resource'"),
        ({"resource": None, "authorization_servers": ["https://a.example"]}, "an unusable 'resource' (null)"),
        ({"resource": "https://m.example"}, "without 'authorization_servers'"),
        ({"resource": "https://m.example", "authorization_servers": []}, "'authorization_servers' (a list)"),
        ({"resource": "https://m.example", "authorization_servers": [5]}, "'authorization_servers' (a list)"),
    ],
)
def test_resource_metadata_that_are_refused(answer: dict[str, Any], text: str) -> None:
    with pytest.raises(UnusableAnswer) as caught:
        read_resource(answer, WHERE)
    assert text in str(caught.value)


# -- bodies, errors and challenges -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b'{"access_token":"t"}', "application/json"),
        (b'\xef\xbb\xbf{"access_token":"t"}', "application/json"),
        (b'\n{"access_token":"t"}\n', "text/html"),
        (b"access_token=t", "application/x-www-form-urlencoded; charset=utf-8"),
    ],
)
def test_bodies_that_are_read(body: bytes, content_type: str) -> None:
    assert read_object(body, content_type, WHERE) == {"access_token": "t"}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "an empty body"),
        (b"<html>oops</html>", "an HTML page"),
        (b"oops", "a body that is not a JSON object"),
        (b"[]", "a body that is not a JSON object"),
        (b"null", "a body that is not a JSON object"),
        (b"\xff", "a body that is not a JSON object"),
        (b"[" * 100_000, "a body that is not a JSON object"),
        (b'{"a":' + b"9" * 5_000 + b"}", "a body that is not a JSON object"),
    ],
)
def test_bodies_that_are_refused(body: bytes, text: str) -> None:
    with pytest.raises(UnusableAnswer, match=text):
        read_object(body, "application/json", WHERE)


@pytest.mark.parametrize(
    ("status", "content_type", "body", "text"),
    [
        (400, "application/json", b'{"error":"invalid_grant"}', "HTTP 400: invalid_grant"),
        (400, "", b'{"error":"e","error_description":"a\\nb"}', "HTTP 400: e: a b"),
        (401, "", b'{"error":"e","error_description":null}', "HTTP 401: e"),
        (403, "", b'{"error":{"code":7,"message":"no"}}', "HTTP 403: 7: no"),
        (429, "", b'{"message":"slow down"}', "HTTP 429: slow down"),
        (400, "", b'{"detail":"bad"}', "HTTP 400: bad"),
        (400, "", b'{"detail":[{"loc":["x"]}]}', "HTTP 400"),
        (400, "", b"{}", "HTTP 400"),
        (404, "", b"", "HTTP 404"),
        (500, "text/html", b"<html>oops</html>", "HTTP 500 and an HTML page"),
        (502, "", b" <!doctype html>", "HTTP 502 and an HTML page"),
        (500, "text/plain", b"oops\x1b[31m\n", "HTTP 500: oops [31m"),
        (500, "text/plain", b"x" * 5_000, "HTTP 500: " + "x" * 200),
        (302, "", b"", "HTTP 302, a redirect that is not followed"),
        (400, "application/x-www-form-urlencoded", b"error=bad&error_description=a+b", "HTTP 400: bad: a b"),
    ],
)
def test_errors_are_one_line(status: int, content_type: str, body: bytes, text: str) -> None:
    assert describe(status, content_type, body) == text


@pytest.mark.parametrize(
    ("header", "members"),
    [
        ("", {}),
        ("Bearer", {}),
        (
            'Bearer resource_metadata="https://m.example/x", scope="a b"',
            {"resource_metadata": "https://m.example/x", "scope": "a b"},
        ),
        (
            "bearer RESOURCE_METADATA=https://m.example/x,scope=a",
            {"resource_metadata": "https://m.example/x", "scope": "a"},
        ),
        ('resource_metadata="/x"', {"resource_metadata": "/x"}),
        ('Bearer resource_metadata = "/x" scope = "a"', {"resource_metadata": "/x", "scope": "a"}),
        ('Bearer resource_metadata="https://m.example/x', {"resource_metadata": "https://m.example/x"}),
        ('Bearer resource_metadata="https://m.example/x, scope="a"', {"resource_metadata": "https://m.example/x"}),
        ('Bearer resource_metadata=""', {}),
        ('Bearer resource_metadata="/x", resource_metadata="/y"', {"resource_metadata": "/x"}),
        ('Basic realm="scope=no", Bearer scope="a"', {"scope": "a"}),
        (
            'Bearer error="insufficient_scope", error_description="error=x, scope=y", scope="a"',
            {"error": "insufficient_scope", "scope": "a"},
        ),
        ('Bearer scope="a \\"b c\\""', {"scope": "a"}),
        ('Bearer scope="é a"', {"scope": "a"}),
        ('Bearer resource_metadata="https://é.example"', {}),
        ("Bearer =, ,,= scope", {}),
        ("Bearer " + 'x="' * 5_000, {}),
    ],
)
def test_malformed_challenges_are_read_in_part(header: str, members: dict[str, str]) -> None:
    assert read_challenge(header) == members


def test_accepted_answers_fit_the_sdk_models() -> None:
    auth = pytest.importorskip("mcp.shared.auth")
    token = read_token({**TOKEN, "expires_in": "1.5", "scope": ["a"], "refresh_token": None}, WHERE)
    assert auth.OAuthToken.model_validate_json(json.dumps(token)).expires_in == 1
    client = read_registration({"client_id": 1, "client_id_issued_at": 0.5, "client_secret": None}, WHERE, URIS)
    assert auth.OAuthClientInformationFull.model_validate(client).client_secret is None
    assert auth.OAuthMetadata.model_validate(read_server(SERVER, WHERE, is_visited=True))
