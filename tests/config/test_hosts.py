"""Hosts and origins: the grammar as a table, and properties of any text."""

from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.admin.access import AdminAccess
from gateway.config import parse_config
from gateway.config.hosts import Authority, Origin, parse_authority, parse_origin
from gateway.errors import ConfigError
from gateway.frontends.http.host_policy import HostPolicy

ACCEPTED = {
    "localhost": ("localhost", None),
    "LocalHost:80": ("localhost", 80),
    "localhost:": ("localhost", None),  # RFC 3986: port = *DIGIT
    "localhost:00080": ("localhost", 80),
    "my_host.a-b.example:65535": ("my_host.a-b.example", 65535),
    "127.0.0.1:0": ("127.0.0.1", 0),
    "[::1]": ("::1", None),
    "[0:0:0:0:0:0:0:1]:8080": ("::1", 8080),
    "[::FFFF:127.0.0.1]": ("::ffff:7f00:1", None),
    "gw.example.": ("gw.example.", None),  # a name of its own: not the one without the dot
    "1.example": ("1.example", None),
}
REFUSED = [
    "", ":", ":80", ".", "..", "a..b", ".a",
    "a ", " a", "a\t", "a\n", "a\x00", "a b", "a,b", "a;b", "a=b", "a/b", "a?b", "a#b", "a\\b",
    "a:b", "a:80:80", "a:-1", "a:+1", "a: 80", "a:65536", "a:100000", "a:\uff18\uff10", "a:0x50",
    "user@a", "user:pw@a", "@a", "a@", "localhost@evil.com", "evil.com@localhost", "evil.com:80@localhost",
    "[::1].evil.com", "evil.com[::1]", "[::1]evil.com:80", "[::1]:80.evil.com", "[::1][::1]", "[[::1]]",
    "[::1", "::1]", "::1", "[]", "[]:80", "[localhost]", "[127.0.0.1]", "[::1%25eth0]", "[::1%eth0]", "[v1.a]",
    "[::1 ]", "[ ::1]", "[::1]x", "x[::1]", "[:::1]", "[::1::]", "[1:2:3:4:5:6:7:8:9]", "[::g]",
    "local%68ost", "localhost%00.evil.com", "%6c",
    "l\u043ecalhost", "\uff4cocalhost", "localhost\xff", "\u4f8b.example",
    "127.1", "127.0.0.1.", "127.0.0.01", "0177.0.0.1", "127.0.0.256", "0x7f.0.0.1", "0x7f000001", "2130706433",
    "1.2.3.4.5", "evil.7", "http://localhost", "//localhost", "null", "*", "a" * 256,
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), ACCEPTED.items())
def test_hosts_that_are_read(text: str, expected: tuple[str, int | None]) -> None:
    assert parse_authority(text) == Authority(*expected)


@pytest.mark.parametrize("text", [text for text in REFUSED if text != "null"])
def test_invalid_hosts_are_refused_everywhere(text: str) -> None:
    assert parse_authority(text) is None
    assert parse_origin(f"http://{text}") is None
    value = text.encode("utf-8", "surrogateescape")
    assert HostPolicy("127.0.0.1").refusal({b"host": value}) is not None
    assert HostPolicy("127.0.0.1").refusal({b"host": b"localhost", b"origin": b"http://" + value}) is not None
    # A proxy may have forwarded it: with an unreadable host, no client is known to be local.
    assert not text or not AdminAccess("token", host="localhost").may_read({b"host": value}, guarded=False)
    with pytest.raises(ConfigError):
        parse_config({"mcpServers": {}, "access": {"allow_hosts": [text]}}, environ={})
    with pytest.raises(ConfigError):
        parse_config({"mcpServers": {}, "access": {"allow_origins": [f"http://{text}"]}}, environ={})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://localhost", ("http", "localhost", 80)),
        ("https://LOCALHOST:443", ("https", "localhost", 443)),
        ("http://[::1]:6274", ("http", "::1", 6274)),
        ("null", None),
        ("NULL", None),
        ("", None),
        ("localhost", None),
        ("http:localhost", None),
        ("http:/localhost", None),
        ("http://localhost/", None),
        ("http://localhost:", None),
        ("http://a http://b", None),
        ("http://a, http://b", None),
        ("http://a,http://b", None),
        ("http://a\thttp://b", None),
        ("null http://localhost", None),
        ("ftp://localhost", None),
        ("file://localhost", None),
        ("ws://localhost", None),
        (" http://localhost", None),
        ("http://localhost ", None),
        ("xhttp://localhost", None),
    ],
)
def test_origins(text: str, expected: tuple[str, str, int] | None) -> None:
    assert parse_origin(text) == (None if expected is None else Origin(*expected))


@given(st.text())
@example("[::1].evil.com")
@example("evil.com[::1]")
def test_a_host_must_match_the_whole_text(text: str) -> None:
    found = parse_authority(text)
    if found is None:
        return
    host = f"[{found.host}]" if ":" in found.host else found.host
    rest = text.lower().removeprefix(host)
    if ":" in found.host:
        literal, _, rest = text[1:].partition("]")
        assert ipaddress.ip_address(literal) == ipaddress.ip_address(found.host)
    assert not rest or (rest[0] == ":" and int(rest[1:] or 0) == (found.port or 0))
    assert parse_authority(host) == Authority(found.host)


@given(st.text(alphabet="[]:.@%/ 017locahstevi\\"), st.sampled_from(["localhost", "127.0.0.1", "[::1]"]), st.data())
def test_nothing_beside_an_own_host_passes_for_it(noise: str, own: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(own)))
    text = own[:at] + noise + own[at:]
    if HostPolicy("127.0.0.1").refusal({b"host": text.encode()}) is None:
        assert re.fullmatch(r"(localhost|127\.0\.0\.1|\[[0:]*:0*1\])(:[0-9]*)?", text), text


def test_origins_compare_equal_with_their_default_port() -> None:
    policy = HostPolicy("127.0.0.1")
    policy.permit(["https://page.example:443"], ["[2001:DB8:0::1]", "GW.example"])
    assert policy.refusal({b"host": b"[2001:db8::1]:80", b"origin": b"https://page.example"}) is None
    assert policy.cors_headers(b"https://page.example")[0] == (b"access-control-allow-origin", b"https://page.example")
    assert policy.cors_headers(b"https://page.example:444") == ()
    assert policy.refusal({b"host": b"gw.example", b"origin": b"http://page.example"}) is not None
