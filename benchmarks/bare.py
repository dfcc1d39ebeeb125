"""The baseline: stock Hypercorn on trio, with an ASGI app that answers a constant.

`python -m benchmarks.bare` serves on a free port of 127.0.0.1, names it on stderr as the gateway does, and ends on
SIGTERM. With `--own` the gateway's HTTP server, which overrides parts of Hypercorn, serves the same app instead: this
separates the gain of the server from the cost of the rest of the gateway.
"""

from __future__ import annotations

import signal
import sys
from functools import partial

import trio
from hypercorn.config import Config
from hypercorn.trio import serve

from benchmarks.answers import CONSTANT

HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(CONSTANT)).encode())]


async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])  # the lifespan protocol: Hypercorn continues without it
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": CONSTANT})


def choose(own, signals):
    """Return the server: a function of app and config for `nursery.start`."""
    if not own:
        return serve
    from gateway.httpd.server import serve_http

    return partial(serve_http, shutdown_trigger=lambda: anext(signals))


async def main(own):
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.errorlog = None
    config.keep_alive_max_requests = 1 << 40  # otherwise every thousandth request costs a new connection
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            (address,) = await nursery.start(choose(own, signals), app, config)
            print(f"listening on {address}/mcp", file=sys.stderr, flush=True)
            if not own:
                await anext(signals)
                nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, "--own" in sys.argv)
