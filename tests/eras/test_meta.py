"""`_meta`: per-hop members stay, everything else is forwarded."""

from __future__ import annotations

import msgspec
import pytest

from gateway import jsonrpc
from gateway.eras import meta
from gateway.errors import InvalidParams


def members(data: bytes) -> dict[str, msgspec.Raw]:
    return jsonrpc.decode_object(data)


def test_meta_is_parted() -> None:
    hop_keys = dict.fromkeys(meta.REQUEST_HOP_KEYS, 1)
    params = members(jsonrpc.encode({"name": "x", "_meta": {"traceparent": "00-a", **hop_keys, "own/key": None}}))
    travelling, hop = meta.split_request_meta(params)
    assert list(params) == ["name"]
    assert {key: bytes(span) for key, span in travelling.items()} == {"traceparent": b'"00-a"', "own/key": b"null"}
    assert list(travelling) == ["traceparent", "own/key"]
    assert hop.keys() == meta.REQUEST_HOP_KEYS


def test_no_meta_is_none() -> None:
    assert meta.split_request_meta({}) == ({}, {})


@pytest.mark.parametrize("span", [b"[]", b'"x"', b"1", b"null"])
def test_meta_must_be_an_object(span: bytes) -> None:
    with pytest.raises(InvalidParams, match="_meta must be an object"):
        meta.split_request_meta({"_meta": msgspec.Raw(span)})


@pytest.mark.parametrize(
    ("span", "token"),
    [(b"0", 0), (b'"0"', "0"), (b'""', ""), (b"-7", -7), (b"null", None)],
)
def test_progress_tokens_keep_their_type(span: bytes, token: object) -> None:
    assert meta.progress_token({meta.PROGRESS_TOKEN: msgspec.Raw(span)}) == token
    assert meta.progress_token({}) is None


@pytest.mark.parametrize("span", [b"1.5", b"true", b"[]", b"{}"])
def test_other_progress_tokens_are_refused(span: bytes) -> None:
    with pytest.raises(InvalidParams, match="progressToken"):
        meta.progress_token({meta.PROGRESS_TOKEN: msgspec.Raw(span)})


def test_log_levels() -> None:
    assert meta.log_level({}) is None
    assert meta.log_level({meta.LOG_LEVEL: jsonrpc.NULL}) is None
    for level in meta.LOG_LEVELS:
        assert meta.log_level({meta.LOG_LEVEL: jsonrpc.raw(level)}) == level
    for bad in ("DEBUG", "", "warn", 3, [None]):
        with pytest.raises(InvalidParams, match="logLevel"):
            meta.log_level({meta.LOG_LEVEL: jsonrpc.raw(bad)})
